"""`python evaluate.py --evidence true`: tests, controls, rediscoveries and transfer of the masks of runs."""

import csv
import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from masklearn import ranks
from masklearn.cli.cost_table import duration
from masklearn.cli.drawing import draw_evidence, draw_matrix
from masklearn.cli.evaluate_bank import load_model
from masklearn.cli.evaluate_flags import EvaluateFlags
from masklearn.cli.evaluation_texts import evaluation_texts, load_texts, settings_learned_on
from masklearn.cli.evidence_sources import OtherRun, evidence_sources
from masklearn.cli.rank_watch import GO_ON
from masklearn.cli.run_folder import CONFIG_FILE, MASK_FILE, METRICS_FILE, TABLES_FOLDER, RunFolder
from masklearn.cli.run_parts import require_shared
from masklearn.cli.stopping import StopBetweenSteps
from masklearn.data import leave_out_if_changed
from masklearn.data.source_settings import names_source
from masklearn.density.study_folder import REPORT_FILE
from masklearn.errors import UserError
from masklearn.evaluation import aligned
from masklearn.evaluation.measure import nan_to_none
from masklearn.evidence.bench import Bench
from masklearn.evidence.cost import EvidenceCost, expected_cost
from masklearn.evidence.gather import Evidence, gather, independent_parts
from masklearn.evidence.kept_parts import KeptParts, inputs_of
from masklearn.evidence.plan import EvidencePlan
from masklearn.evidence.rediscovery import Rediscoverer
from masklearn.evidence.sources import Sources
from masklearn.evidence.together import compute_together
from masklearn.evidence.transfer import Table, transfer_matrix
from masklearn.evidence.verdicts import CLAIMS
from masklearn.files import atomic_write
from masklearn.mask_file import Mask
from masklearn.models import load_lm
from masklearn.progress import no_bar
from masklearn.training.progress import phase_bars

EVIDENCE_FOLDER, EVIDENCE_FILE = "evidence", "evidence.json"
"""Where evidence goes: beside the mask file, unless --out names another folder."""
REDISCOVERED_FOLDER, PARTS_FOLDER = "rediscovered", "parts"
"""Where masks that are learned again are kept, and all other finished parts."""
MATRIX, MATRIX_PAGE = "transfer_matrix", "transfer_matrix.html"
"""Table and page of several runs, whose masks are evaluated on the texts of each other."""


def run_evidence(flags: EvaluateFlags, plan: EvidencePlan, masks: Sequence[Mask], requested: dict[str, Any]) -> None:
    """Gather and write the evidence on each mask file.

    Args:
        flags: The mask files.
        plan: How much evidence is gathered.
        masks: Their contents.
        requested: The `--data.*` flags given.

    Raises:
        UserError: If masks or texts allow no evidence.
    """
    if requested:
        names = ", ".join(f"--data.{key}" for key in requested)
        raise UserError(f"--evidence uses the texts of the mask's run. Leave out {names}; other texts: --plan.transfer")
    for path, mask in zip(flags.mask, masks, strict=True):
        _require_testable(path, mask)
    names, transfers = run_names(flags.mask), dict[str, Table]()
    runs = [
        OtherRun(name, mask, settings_learned_on(path, mask))
        for path, name, mask in zip(flags.mask, names, masks, strict=True)
    ]
    folders = [_folder(path, name, flags) for path, name in zip(flags.mask, names, strict=True)]
    load_model_of = LastModel()

    def load(i: int) -> tuple[Bench, Rediscoverer, Sources]:
        others = [*runs[:i], *runs[i + 1 :]]
        return _load_one(flags.mask[i], runs[i].bank, flags, plan, folders[i], others, load_model_of)

    for i in range(1, len(runs)):  # their faults show before the first takes its time
        load(i)
    for i, run in enumerate(runs):
        folder = RunFolder(folders[i])
        ranks.first_alone(lambda folder=folder: folder.acquire("--out"))
        require_shared(folder.path, "--out")
        try:
            evidence = _gather_one(flags.mask[i], flags, plan, folder.path, partial(load, i))
        except KeyboardInterrupt:
            kept = f"stopped. Finished parts are kept in {folder.path}"
            raise UserError(f"{kept}. {GO_ON}the same command") from None
        finally:
            folder.release()
        transfers |= {run.name: evidence.tables["transfer"]} if evidence and "transfer" in plan.parts else {}
    matrix = transfer_matrix(transfers)
    if len({row["mask"] for row in matrix}) > 1:  # of several runs, or of a run with several groups
        folder = Path(flags.out) if flags.out else _folder(flags.mask[0], names[0], flags)
        _write_matrix(folder, list(transfers), matrix, flags.track)


def _require_testable(path: str, mask: Mask) -> None:
    """Refuse masks for which evidence means nothing, or cannot be gathered."""
    if mask.config.get("model", {}).get("scope") == "input":
        raise UserError(
            f"{path} holds masks of single texts, for which bootstraps and held-out tests mean nothing: there is "
            "one text behind each. Learn shared masks (--model.scope dataset, or column:NAME), or compare those of "
            "single texts in a study: leave out --evidence"
        )
    if mask.positions == "each":
        raise UserError(
            f"{path} was learned with positions each, so that a text makes several inputs, and tests and intervals "
            "over inputs that are not independent mean nothing. Learn with --data.positions all, last or random"
        )
    if (objective := mask.config.get("model", {}).get("objective", "kl")) != "kl":
        raise UserError(
            f"{path} holds masks that minimise {objective}, and the evidence judges and searches by the KL from "
            "the full model. Learn them with --model.objective kl, or leave out --evidence"
        )
    if mask.config.get("texts") and not names_source(mask.config.get("data", {})):
        raise UserError(
            f"{path} was learned on {mask.config['texts']}, which the mask file does not hold, so that its masks "
            "cannot be learned again. Learn them on a file (--data.path of train.py), or leave out --evidence"
        )


def run_names(paths: Sequence[str]) -> list[str]:
    """Short names of mask files: those of their folders, or their own; numbered where they are not unique."""
    files, names = [Path(path).resolve() for path in paths], list[str]()
    for name in (file.parent.name if file.name == MASK_FILE else file.stem for file in files):
        numbered = (f"{name}-{number}" for number in count(2))
        names.append(next(each for each in chain([name], numbered) if each not in names))
    return names


def _folder(path: str, name: str, flags: EvaluateFlags) -> Path:
    """Where the evidence on a mask file goes; not where the report of a run is."""
    for file, what in ((CONFIG_FILE, "a run"), (METRICS_FILE, "an evaluation")):
        if flags.out and (Path(flags.out) / file).is_file():
            raise UserError(
                f"{flags.out} holds {what}, whose report would be replaced. Choose another --out, or leave it out"
            )
    if flags.out is None:
        own = "" if Path(path).name == MASK_FILE else f"-{Path(path).stem}"
        return Path(path).parent / f"{EVIDENCE_FOLDER}{own}"
    return Path(flags.out) / name if len(flags.mask) > 1 else Path(flags.out)


class LastModel:
    """Loads models as `load_lm` does, but that which it has loaded last only once: runs are often on one model."""

    def __init__(self) -> None:
        self._key, self._lm = "", None

    def __call__(self, *args: Any, **kwargs: Any) -> PreTrainedModel:
        """The model, frozen; whoever runs it leaves it as it is."""
        if self._lm is None or self._key != repr((args, kwargs)):
            self._lm = None  # memory for the next one
            self._lm, self._key = load_lm(*args, **kwargs), repr((args, kwargs))
        return self._lm


def _load_one(
    path: str,
    bank: Mask,
    flags: EvaluateFlags,
    plan: EvidencePlan,
    folder: Path,
    others: Sequence[OtherRun],
    load_model_of: LastModel,
) -> tuple[Bench, Rediscoverer, Sources]:
    """Load all that the evidence on one mask file needs."""
    bar, texts = phase_bars(sys.stderr, disable=None), evaluation_texts(path, bank, {}, None)
    masked_lm, model = load_model(path, bank, flags, flags.map_of(bank), load_model_of)
    load = partial(
        load_texts, bank=bank, masked_lm=masked_lm, model=model, scope=texts.scope,
        trust_remote_code=flags.trusted["trust_remote_code"],
    )  # fmt: skip
    try:
        data = load(texts.settings)
    except UserError as error:
        raise UserError(
            f"--evidence learns the masks of {path} again, for which their texts must be where they were: {error}"
        ) from error
    changes = leave_out_if_changed(data, bank.learned_texts.tolist(), "evaluate.py --part all")
    n_held_out, data.parts["test"] = len(data.parts["test"]), data.parts["test"].distinct()
    n_equal = n_held_out - len(data.parts["test"])
    equal = [f"{n_equal} of {n_held_out} held-out texts are equal to others, and left out"] if n_equal else []
    for line in (*data.notices, *changes, *equal):
        print(line)
    mask = bank.of(data.groups.names)
    kept = KeptParts(folder / PARTS_FOLDER, inputs_of(masked_lm, mask, data, plan))
    bench = Bench(masked_lm, mask, data, plan, bar, kept)
    again = Rediscoverer(masked_lm, bench.mask, data, plan, folder / REDISCOVERED_FOLDER, bar, (StopBetweenSteps,))
    return bench, again, evidence_sources(bench, plan, load, texts.settings, flags, others)


def _gather_one(
    path: str,
    flags: EvaluateFlags,
    plan: EvidencePlan,
    folder: Path,
    load: Callable[[], tuple[Bench, Rediscoverer, Sources]],
) -> Evidence | None:
    """Gather and write the evidence on one mask file; None if only its cost is asked for, or on later ranks."""
    start = time.monotonic()
    bench, again, sources = loaded = load()
    print(cost_lines(expected_cost(*loaded)), flush=True)
    if plan.estimate:
        return None
    compute_together(independent_parts(replace(bench, bar=no_bar), again, sources), bench.bar)
    if ranks.rank():
        return None
    with ranks.alone():
        evidence = gather(*loaded)
    _write(folder, path, evidence, time.monotonic() - start, flags.track)
    return evidence


def cost_lines(cost: EvidenceCost) -> str:
    """The expected cost as text."""
    parts = [f"{name} {duration(tokens * cost.seconds_per_token)}" for name, tokens in cost.tokens.items()]
    return f"Expected time: {duration(cost.seconds)} ({', '.join(parts)})"


def _write(folder: Path, path: str, evidence: Evidence, seconds: float, track: bool) -> None:
    """Print verdicts, write tables, page and JSON, and log the tables."""
    print(f"{path}\n\n{verdict_text(evidence.tables['verdicts'])}\n\n{evidence.summary}\n")
    for name, table in evidence.tables.items():
        atomic_write(folder / TABLES_FOLDER / f"{name}.csv", as_csv(table).encode())
    pages = draw_evidence(folder / REPORT_FILE, path, evidence)
    content = {"mask": path, **vars(evidence), "seconds": round(seconds, 1)}
    atomic_write(folder / EVIDENCE_FILE, json.dumps(nan_to_none(content), indent=2).encode())
    if track:
        from masklearn import tracking  # imports wandb, which takes a second

        print(tracking.log_evidence(folder, evidence.facts, evidence.tables))
    written = [*pages, folder / EVIDENCE_FILE, folder / TABLES_FOLDER]
    print(f"Written after {duration(seconds)}: {', '.join(map(str, written))}")


def _write_matrix(folder: Path, runs: Sequence[str], table: Table, track: bool) -> None:
    """Print and write what the masks of every run and group do on the texts of every run and group."""
    print(f"KL on the texts of every run, in nats per scored token:\n\n{matrix_text(table)}\n")
    atomic_write(folder / TABLES_FOLDER / f"{MATRIX}.csv", as_csv(table).encode())
    pages = draw_matrix(folder / MATRIX_PAGE, table)
    if track:
        from masklearn import tracking  # imports wandb, which takes a second

        print(tracking.log_evidence(folder, {"runs": list(runs)}, {MATRIX: table}))
    print(f"Written: {', '.join(map(str, [*pages, folder / TABLES_FOLDER / f'{MATRIX}.csv']))}")


def matrix_text(table: Table) -> str:
    """The KL of the matrix: a line for each mask and size, a column for the texts of each run."""
    columns = list(dict.fromkeys(row["texts"] for row in table))
    kl = {(row["mask"], row["s"], row["texts"]): f"{row['kl']:.3f}" for row in table}
    lines = dict.fromkeys((row["mask"], row["s"]) for row in table)
    cells = [[mask, str(s), *(kl.get((mask, s, texts), "-") for texts in columns)] for mask, s in lines]
    return aligned([["mask", "s", *columns], *cells])


def verdict_text(verdicts: Table) -> str:
    """The verdicts as a table: a line for each claim, a column for each size."""
    columns = list(dict.fromkeys((row["group"], row["s"]) for row in verdicts))
    of_cell = {(row["claim"], row["group"], row["s"]): row["verdict"] for row in verdicts}
    several = len({group for group, _ in columns}) > 1
    head = ["", *(f"{group} s={s}" if several else f"s={s}" for group, s in columns)]
    lines = [[claim, *(of_cell.get((claim, *cell), "-") for cell in columns)] for claim in CLAIMS]
    return aligned([head, *lines])


def as_csv(table: Table) -> str:
    """A table as CSV."""
    file = io.StringIO()
    if table:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in table for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return file.getvalue()
