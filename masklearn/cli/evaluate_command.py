"""`python evaluate.py`: masks and text to tables."""

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from jsonargparse import ArgumentParser

from masklearn import evaluation
from masklearn.ablation import KEPT, AblationName
from masklearn.cli import study_command
from masklearn.cli.parsing import as_user_errors
from masklearn.cli.run_folder import RESULTS, RunFolder
from masklearn.data import MaskData, SplitName
from masklearn.errors import UserError
from masklearn.files import atomic_write
from masklearn.mask_file import Mask, ModelId
from masklearn.masking import MaskedLM
from masklearn.models import DTypeName, load_lm
from masklearn.selection.baselines import CONTROLS, UNGUIDED, Baseline
from masklearn.selection.scorer import MaskScorer
from masklearn.training.learned_ablation import fit_ablation

SOURCES = ("path", "dataset", "task")
FETCHED = ("subset", "split", "limit")
"""Settings that go with a source."""
CHOICES = ("subset", "split", "text_column")
"""Settings that choose other texts of a source."""
HARMLESS = ("positions", "batch_size", "workers")
"""Settings that change neither which texts there are nor what is held out of them."""
LINKED = ("lm", "revision", "scope", "max_groups", "trust_remote_code")
"""Settings of the texts that come with the model's."""


class EvaluateFlags:
    """Masks to evaluate, and on what.

    Args:
        mask: Mask file; may be given several times.
        lm: Model to evaluate on, where it has moved since the mask was learned.
        dtype: Precision of the weights; that of the mask's run by default.
        part: Texts that count: test, validation, train or all. By default the test split of the mask's own data, and
            all of other data.
        ablation: What closed nodes emit: zero, mean, mean-positional, resample or learned; or a list of them, for one
            table. That of the mask's run by default; values that the mask file lacks are found on the training texts
            of the mask's run.
        baselines: Other ways to choose subgraphs of the same sizes, to stand beside: random, random-matched (as many
            heads and MLPs), norm, attribution, integrated-gradients, single-ablation, greedy, greedy-forward, swap,
            exhaustive (up to 20 nodes). Those that look at texts look at those that the mask was learned on. Searches
            take long: greedy runs every text about half as often as the square of the number of nodes.
        baseline_texts: Texts of every group that baselines look at, at most.
        study: Make the study of computation density of these masks: tables, figures and report.html in --out. By
            default where every mask is of single texts.
        seed: Seed of the study's resamples and permutations.
        track: Log the study to Weights & Biases.
        out: Folder to write metrics.json to; runs/study-<time> by default for a study.
        allow_pickle: Read weights that are no safetensors as well; such a file can run code as it is read.
        trust_remote_code: Run the Python files that come with the model. Never taken from a mask file.
    """

    def __init__(
        self,
        mask: list[str],
        lm: str | None = None,
        dtype: DTypeName | None = None,
        part: SplitName | None = None,
        ablation: AblationName | list[AblationName] | None = None,
        baselines: list[Baseline] | None = None,
        baseline_texts: int = 64,
        study: bool | None = None,
        seed: int = 0,
        track: bool = True,
        out: str | None = None,
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self.mask, self.lm, self.out = mask, lm, out
        self.trusted = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
        self.ablations: list[AblationName] | None = [ablation] if isinstance(ablation, str) else ablation
        self.study, self.seed, self.track = study, seed, track
        self.baselines: Sequence[Baseline] = baselines or CONTROLS
        self.baseline_texts = baseline_texts
        if baseline_texts < 1:
            raise UserError(f"baseline_texts is {baseline_texts}; it must be at least 1")
        self.dtype: DTypeName | None = dtype
        self.part: SplitName | None = part


def run_evaluation(args: list[str] | None) -> None:
    parser = ArgumentParser(
        prog="evaluate.py",
        exit_on_error=False,
        allow_abbrev=False,
        description="Evaluate masks on held-out text. data.* flags that are not given are those of the mask's run.",
    )
    parser.add_class_arguments(EvaluateFlags)
    parser.add_class_arguments(MaskData, "data", skip=set(LINKED))
    given = list(sys.argv[1:] if args is None else args)
    appended = [re.sub(r"^--mask(?==|$)", "--mask+", arg) for arg in given]  # each --mask adds to the list
    with as_user_errors(parser):
        parser.parse_args(appended)  # the whole, for its checks
        overrides = parser.parse_args(appended, defaults=False)
    flags = EvaluateFlags(**{key: value for key, value in overrides.as_dict().items() if key != "data"})
    asked = overrides.as_dict().get("data", {})
    masks = [Mask.load(path) for path in flags.mask]
    flags = study_command.settled(flags, masks)
    with _locked_output(flags.out) as file:
        _evaluate_all(flags, masks, asked, file)


@contextmanager
def _locked_output(out: str | None) -> Iterator[Path | None]:
    """The file that an evaluation ends with, in a folder that is its own as long as it is at work."""
    if out is None:
        yield None
        return
    folder, file = RunFolder(Path(out)), Path(out) / RESULTS

    def require_free() -> None:
        if file.exists():
            raise UserError(f"{file} is there already, and kept. Choose another --out")

    require_free()
    folder.hold("--out")
    try:
        require_free()
        yield file
    finally:
        folder.release()


def _evaluate_all(flags: EvaluateFlags, masks: Sequence[Mask], asked: dict[str, Any], file: Path | None) -> None:
    results, banks, learned_under = [], [], {}
    for path, mask in zip(flags.mask, masks, strict=True):
        found, evaluated = _evaluate_one(path, mask, flags, asked)
        learned_under[path] = mask.ablation.name
        banks += evaluated
        for described in found:
            if len(found) == 1:
                print(f"{path}: {described['text']}\n\n{evaluation.format_report(described)}\n", flush=True)
            results.append({"mask": path} | described)
    if flags.ablations and len(flags.ablations) > 1:
        print(f"KL under each ablation, in nats per scored token:\n\n{_side_by_side(results, learned_under)}\n")
    if flags.study:
        study_command.write(banks, flags)
    if file:  # last: an evaluation that has it is finished
        atomic_write(file, json.dumps(results[0] if len(results) == 1 else results, indent=2).encode())
        print(f"Written: {file}")


def _side_by_side(results: list[dict[str, Any]], learned_under: dict[str, str]) -> str:
    """One line for every mask and size, one column for every ablation that it was evaluated under."""
    kl = {(one["mask"], row["s"], one["ablation"]): row["kl"] for one in results for row in one["sizes"]}
    names = list(dict.fromkeys(one["ablation"] for one in results))
    lines = [["mask", "learned under", "s", *names]]
    for path, s in dict.fromkeys((path, s) for path, s, _ in kl):
        lines.append([path, learned_under[path], str(s), *(f"{kl[path, s, name]:.3f}" for name in names)])
    return evaluation.aligned(lines)


def _settings(path: str, own: dict[str, Any], asked: dict[str, Any], free: bool) -> tuple[dict[str, Any], bool]:
    """The settings of the texts to evaluate on, and whether these are others than the mask's own.

    Args:
        path: The mask file.
        own: Settings of the mask's own texts.
        asked: Settings that a user gave.
        free: Whether it does not matter which texts are held out.

    Raises:
        UserError: If other ones of the mask's own texts would be held out than when it was learned.
    """
    changed = {key for key, value in asked.items() if _plain(key, value) != _plain(key, own.get(key))}
    if changed & set(SOURCES):
        return {key: value for key, value in own.items() if key not in (*SOURCES, *FETCHED)} | asked, True
    if changed & set(CHOICES):
        return {key: value for key, value in own.items() if key != "limit"} | asked, True
    if changed - set(HARMLESS) and own and not free:
        flags = ", ".join(f"--data.{key}" for key in sorted(changed - set(HARMLESS)))
        raise UserError(
            f"{flags} would hold out other texts than those that were when {path} was learned. Leave it out, or look "
            "at all texts, whether they were learned on or not: --part all"
        )
    return own | asked, False


def _plain(key: str, value: Any) -> Any:
    return Path(value).expanduser().resolve() if key == "path" and value else value


def _own_settings(path: str, mask: Mask) -> dict[str, Any]:
    """The settings of its texts that a mask file tells, checked as if a user had given them.

    Raises:
        UserError: If they are not what they should be.
    """
    format_report = {key: value for key, value in mask.config.get("data", {}).items() if key not in LINKED}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MaskData, "data", skip=set(LINKED))
    try:
        with as_user_errors(parser):
            found = parser.parse_object({"data": {"positions": mask.positions} | format_report}).as_dict()["data"]
            return {key: found[key] for key in format_report}
    except UserError as error:
        raise UserError(f"{path} tells of settings that it cannot have been learned with: {error}") from error


def _evaluate_one(
    path: str, mask: Mask, flags: EvaluateFlags, asked: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[study_command.Evaluated]]:
    """What `metrics.json` says of a mask under every ablation asked for; and what a study takes of each."""
    began = time.monotonic()
    own = _own_settings(path, mask)
    scope = mask.config.get("model", {}).get("scope", "dataset")
    if not isinstance(scope, str):
        raise UserError(f"{path} names a scope that there is not, {scope!r}")
    free = scope == "input" or flags.part in ("train", "all")
    settings, other = _settings(path, own, asked, free)  # other texts take the place of the mask's own
    if other and scope == "input":
        raise UserError(f"{path} holds masks of single texts, and these are others. Leave out --data.*")
    masked_lm, named = _loaded(path, mask, flags)
    whole = mask

    def texts(**settings: Any) -> MaskData:
        # the groups are those of the bank, however many
        settings = {"positions": mask.positions, "trust_remote_code": flags.trusted["trust_remote_code"]} | settings
        data = MaskData(**settings, lm=named.lm, revision=named.revision, scope=scope, max_groups=len(whole.groups))
        data.prepare_data()
        data.setup()
        data.require_context(masked_lm.context)
        return data

    part: SplitName = flags.part or ("all" if other else "test")
    data = texts(**settings)
    mask = whole.of(data.groups.names)
    for remark in data.notices:
        print(remark)
    names = flags.ablations or [mask.ablation.name]
    lacking = set(names) & KEPT - {mask.ablation.name}
    _require_known_texts(path, own, lacking)
    learned_on, choosing = data, set(flags.baselines) - set(UNGUIDED)
    if other and (lacking or choosing):
        try:
            learned_on = texts(**own)
        except UserError as error:
            what = f"values for {' and '.join(sorted(lacking))} ablation" if lacking else "other subgraphs"
            raise UserError(f"{path}: {what} are found on the texts that it was learned on: {error}") from error
    scorer = _scorer(masked_lm, mask, learned_on, flags) if choosing else None
    results, evaluated = [], []
    for name in names:
        masked_lm.ablation = (
            mask.ablation.to(masked_lm.device)
            if name == mask.ablation.name
            else fit_ablation(name, masked_lm, whole.of(learned_on.groups.names).mask, learned_on)
        )
        recorder = evaluation.PerTextRecorder(len(data.parts[part]), data.token_counts) if flags.study else None
        batches = data.loader(part, by_length=True)
        rows, by_group = evaluation.evaluate(masked_lm, mask, batches, flags.baselines, scorer, recorder)
        words = f"{part} texts of {data.source}, {len(data.parts[part])} in number, under {name} ablation"
        results.append(evaluation.describe(mask, rows, by_group, settings) | {"ablation": name, "text": words})
        if recorder:
            seconds = time.monotonic() - began
            one = study_command.Evaluated(
                Path(path), mask, data, part, masked_lm, masked_lm.ablation, recorder, seconds
            )
            evaluated.append(one)
    return results, evaluated


def _loaded(path: str, mask: Mask, flags: EvaluateFlags) -> tuple[MaskedLM, ModelId]:
    """The model of a mask, or the one that was asked for in its place if that is the same.

    Raises:
        UserError: If it is another, or if the mask is not what it should be.
    """
    lm_name, revision = flags.lm or mask.model.lm, None if flags.lm else mask.model.revision
    learned_in = mask.config.get("model", {}).get("dtype", flags.dtype or "float32")
    dtype = flags.dtype or learned_in
    if dtype not in get_args(DTypeName):
        raise UserError(f"{path} names a precision that there is not, {dtype!r}. Give one with --dtype float32")
    if dtype != learned_in and learned_in in get_args(DTypeName):
        raise UserError(f"{path} was learned in {learned_in}, and {dtype} makes other weights. Leave --dtype out")
    lm = load_lm(lm_name, revision, dtype, "cuda" if torch.cuda.is_available() else "cpu", **flags.trusted)
    mask.check()
    masked_lm = MaskedLM(lm, mask.ablation.to(lm.device))
    named = ModelId(lm_name, revision, masked_lm.layout.fingerprint)
    mask.require(named)
    return masked_lm, named


def _require_known_texts(path: str, own: dict[str, Any], lacking: set[AblationName]) -> None:
    if lacking and not own:
        raise UserError(
            f"{path} has no values for {' and '.join(sorted(lacking))} ablation, and does not say what it was learned "
            "on, so that they could be found. Evaluate it under an ablation that needs none: zero or resample"
        )


def _scorer(masked_lm: MaskedLM, mask: Mask, learned_on: MaskData, flags: EvaluateFlags) -> MaskScorer:
    """Who chooses other subgraphs, on what the mask was learned on."""
    place = {name: i for i, name in enumerate(learned_on.groups.names)}
    groups = [place[name] for name in mask.groups]
    print(f"Choosing other subgraphs by up to {flags.baseline_texts} training texts: {', '.join(flags.baselines)}")
    return MaskScorer(masked_lm, learned_on.loader("train", groups, max_texts=flags.baseline_texts), groups)
