"""`python evaluate.py`: from masks and text to tables."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from masklearn import evaluation, ranks
from masklearn.cli.evaluate_bank import evaluate_bank
from masklearn.cli.evaluate_devices import on_ranks, require_divisible
from masklearn.cli.evaluate_flags import EvaluateFlags
from masklearn.cli.evaluate_text_bank import evaluate_text_bank, require_own_texts
from masklearn.cli.evidence_command import EVIDENCE_FILE, run_evidence
from masklearn.cli.parsing import as_user_errors
from masklearn.cli.run_folder import CONFIG_FILE, METRICS_FILE, RunFolder
from masklearn.cli.study_banks import Evaluated
from masklearn.cli.study_command import write_study
from masklearn.data import MaskData
from masklearn.data.source_settings import MODEL_KEYS
from masklearn.errors import UserError
from masklearn.evidence.plan import EvidencePlan
from masklearn.files import atomic_write
from masklearn.mask_file import Mask
from masklearn.text_bank import TextBank, load_bank

USED_BY_EVIDENCE = {
    "mask", "evidence", "lm", "dtype", "device_map", "devices", "num_nodes", "track", "out", "allow_pickle",
    "trust_remote_code",
}  # fmt: skip
"""Flags of `evaluate.py` that `--evidence` uses, besides those of its plan."""


def run_evaluation(args: list[str] | None) -> None:
    """Run `python evaluate.py`.

    Args:
        args: The command line; that of the process by default.

    Raises:
        UserError: If a flag or a file is not valid, or if the results would overwrite others.
    """
    flags, plan, requested, given = _parse(sys.argv[1:] if args is None else args)
    masks = [load_bank(path) for path in flags.mask]
    require_divisible(flags, masks)
    if flags.evidence:
        of_nodes = [_node_mask(path, mask) for path, mask in zip(flags.mask, masks, strict=True)]
        with on_ranks(flags, is_command=args is None):
            run_evidence(flags, plan, of_nodes, requested)
        return
    flags.require_banks(masks, given)
    flags.fill_defaults(masks, given)
    with on_ranks(flags, is_command=args is None), locked_output(flags.out) as file:
        _evaluate_all(flags, masks, requested, file)


def _node_mask(path: str, bank: Mask | TextBank) -> Mask:
    """The bank, which evidence needs to be one of node masks."""
    if isinstance(bank, TextBank):
        raise UserError(f"{path} holds {bank.unit} of single texts, for which there are no tests. Leave out --evidence")
    return bank


def _parse(args: Sequence[str]) -> tuple[EvaluateFlags, EvidencePlan, dict[str, Any], list[str]]:
    """The flags, those of `--evidence`, the `--data.*` flags that were given, and the names of the others given."""
    parser = ArgumentParser(
        prog="evaluate.py",
        exit_on_error=False,
        allow_abbrev=False,
        description="Evaluate masks on held-out text. data.* flags that are not given are those of the mask's run.",
    )
    parser.add_class_arguments(EvaluateFlags)
    parser.add_class_arguments(EvidencePlan, "plan")
    parser.add_class_arguments(MaskData, "data", skip=set(MODEL_KEYS))
    appended = _each_mask_appended(args)
    with as_user_errors(parser):
        parser.parse_args(appended)  # with defaults, to validate the whole
        given = parser.parse_args(appended, defaults=False).as_dict()
    requested = given.pop("data", {})
    of_plan = given.pop("plan", {})
    if unused := given.get("evidence") and sorted(given.keys() - USED_BY_EVIDENCE):
        raise UserError(
            f"--evidence does not use --{', --'.join(unused)}. Leave out {'it' if len(unused) == 1 else 'them'}, or "
            "--evidence; the flags of evidence are --plan.*"
        )
    flags, plan = EvaluateFlags(**given), EvidencePlan(**of_plan)
    if of_plan and not flags.evidence:
        raise UserError(f"--plan.{next(iter(of_plan))} is a flag of evidence. Add --evidence true, or leave it out")
    return flags, plan, requested, list(given)


def _each_mask_appended(args: Sequence[str]) -> list[str]:
    """The command line with a flag that adds to a list in front of every mask; `--mask a b` gives two."""
    appended, are_masks = list[str](), False
    for arg in args:
        if arg.startswith("-"):
            are_masks = arg == "--mask"
            if not are_masks:
                appended.append(re.sub(r"^--mask=", "--mask+=", arg))
        else:
            appended += ["--mask+", arg] if are_masks else [arg]
    return appended


@contextmanager
def locked_output(out: str | None) -> Iterator[Path | None]:
    """Lock the output folder during an evaluation; of several ranks the first alone does, and writes.

    Args:
        out: The folder; None to write nothing.

    Yields:
        The file for the results.

    Raises:
        UserError: If the file exists, or if another run is using the folder.
    """
    if out is None or ranks.rank():
        yield None
        return
    folder, file = RunFolder(Path(out)), Path(out) / METRICS_FILE

    def require_free() -> None:
        if file.exists():
            raise UserError(f"{file} already exists and is kept. Choose another --out")
        if (folder / EVIDENCE_FILE).is_file():
            raise UserError(f"{out} holds evidence, whose report would be replaced. Choose another --out")
        if (folder / CONFIG_FILE).is_file():  # the results would mark its run as finished
            raise UserError(f"{out} holds a run that is not finished. Choose another --out")

    require_free()
    folder.acquire("--out")
    try:
        require_free()  # another evaluation may have been faster
        yield file
    finally:
        folder.release()


def _evaluate_all(
    flags: EvaluateFlags, masks: Sequence[Mask | TextBank], requested: dict[str, Any], file: Path | None
) -> None:
    """Evaluate mask after mask, print their tables, and write the study and the results."""
    results: list[dict[str, Any]] = []
    banks: list[Evaluated] = []
    has_own_tables = not flags.has_ablation_table or (flags.are_baselines_given and bool(flags.baselines))
    for path, mask in zip(flags.mask, masks, strict=True):
        if isinstance(mask, TextBank):
            require_own_texts(path, mask, flags, requested)
    for path, mask in zip(flags.mask, masks, strict=True):
        if isinstance(mask, TextBank):
            descriptions, evaluated = evaluate_text_bank(path, mask, flags, requested)
        else:
            descriptions, evaluated = evaluate_bank(path, mask, flags, requested)
        banks += evaluated
        results += [{"mask": path} | description for description in descriptions]
        for description in descriptions if has_own_tables else ():
            print(f"{path}: {description['text']}\n\n{evaluation.format_report(description)}\n", flush=True)
    if flags.has_ablation_table:
        learned_under = {path: mask.ablation.name for path, mask in zip(flags.mask, masks, strict=True)}
        print(f"KL under each ablation, in nats per scored token:\n\n{_ablation_table(results, learned_under)}\n")
    if flags.study and ranks.rank() == 0:
        write_study(banks, flags)
    if file:  # last: it marks an evaluation as finished
        atomic_write(file, json.dumps(results[0] if len(results) == 1 else results, indent=2).encode())
        print(f"Written: {file}")


def _ablation_table(results: list[dict[str, Any]], learned_under: dict[str, str]) -> str:
    """KL of every mask and size, a line each, under every ablation that it was evaluated under, a column each."""
    kl = {
        (result["mask"], result.get("column"), row["s"], result["ablation"]): row["kl"]
        for result in results
        for row in result["sizes"]
    }
    names = list(dict.fromkeys(result["ablation"] for result in results))
    lines = [["mask", "learned under", "s", *names]]
    for path, column, s in dict.fromkeys(key[:3] for key in kl):
        of = f", column {column}" if column else ""
        values = (kl[path, column, s, name] for name in names)
        found = ("-" if value is None else f"{value:.3f}" for value in values)
        lines.append([path + of, learned_under[path], str(s), *found])
    return evaluation.aligned(lines)
