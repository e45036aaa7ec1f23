"""What evidence is gathered on besides a bank: its texts in other words, other tasks, texts and checkpoints."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

from torch import Tensor

from masklearn.cli.evaluate_flags import EvaluateFlags
from masklearn.data import MaskData, SplitName
from masklearn.data.batching import SplitDataset
from masklearn.data.source_settings import COLUMN_KEYS, without_source
from masklearn.data.sources import TaskName
from masklearn.data.splits import COLUMN, DATASET
from masklearn.errors import UserError
from masklearn.evidence.bench import Bench
from masklearn.evidence.plan import EvidencePlan
from masklearn.evidence.rediscovery import Variant, variants
from masklearn.evidence.sources import Sources
from masklearn.evidence.transfer import RUN, TEXTS, Checkpoint, OtherTexts, run_texts
from masklearn.mask_file import Mask
from masklearn.masking import MaskedLM
from masklearn.models import EMBEDDED, has_revisions, load_lm, require_plain

TASKS = get_args(TaskName)
"""Tasks of the embedded generator."""
TEXT_COLUMN = "text_column:"
"""What `plan.transfer` puts before the name of a column, to mean the held-out rows of the run in that column."""
OTHER_TASK_TEXTS = 400
"""Texts of another task that a control is learned on."""


class LoadTexts(Protocol):
    """Loads texts by their settings, as `evaluation_texts.load_texts` does for the model at hand."""

    def __call__(self, settings: dict[str, Any], *, scope: str = ..., bank: Mask = ...) -> MaskData:
        """Load them; by default with the scope of the bank at hand."""
        ...


@dataclass(frozen=True)
class OtherRun:
    """Another run, whose held-out texts a bank is evaluated on."""

    name: str
    bank: Mask
    settings: dict[str, Any]
    """Settings of its texts."""


def evidence_sources(
    bench: Bench,
    plan: EvidencePlan,
    load: LoadTexts,
    settings: dict[str, Any],
    flags: EvaluateFlags,
    runs: Sequence[OtherRun] = (),
) -> Sources:
    """Load all that a plan asks for, so that what cannot be loaded is known at the start.

    Args:
        bench: The bank.
        plan: What is asked for.
        load: Loads texts by their settings.
        settings: Those of the run.
        flags: Says what is trusted, and the precision.
        runs: Other runs, to cross with this one.

    Raises:
        UserError: If texts or a checkpoint cannot be loaded, or if a checkpoint is of another shape.
    """
    paraphrased = None
    if column := plan.paraphrase_column:
        with _blamed_on(f"plan.paraphrase_column: {column}"):
            paraphrased = _in_column(column, bench, load, settings)
    is_embedded, own_task = bench.mask.model.lm == EMBEDDED, bench.data.source.task
    known = [task for task in TASKS if task != own_task] if is_embedded else []
    tasks, other_runs = dict[str, Variant](), dict[str, dict[int, Tensor]]()
    if "controls" in plan.parts:
        other_runs = masks_of_runs(bench.mask, runs, settings)
        if known and bench.mask.groups == (DATASET,):
            data = load(_elsewhere(settings) | {"task": known[0], "limit": OTHER_TASK_TEXTS})
            tasks[known[0]] = Variant(f"task-{known[0]}", 1, lambda _: data, plan.seed)
    rediscoveries = variants(plan, bench.data, paraphrased) if "stability" in plan.parts else []
    if "transfer" not in plan.parts:
        return Sources(rediscoveries, tasks, other_runs=other_runs)
    targets = known if plan.transfer is None else plan.transfer
    found = [*_of_plan(bench, targets, load, settings), *_of_runs(bench, runs, load)]
    texts = [one for one in found if isinstance(one, OtherTexts)]
    checkpoints = [_checkpoint(name, bench, flags) for name in plan.checkpoints or ()]
    gaps = [one for one in found if isinstance(one, str)]
    return Sources(rediscoveries, tasks, texts, checkpoints, gaps, other_runs)


def masks_of_runs(bank: Mask, runs: Sequence[OtherRun], settings: dict[str, Any]) -> dict[str, dict[int, Tensor]]:
    """The masks of other runs on the same model that were learned on other texts, as controls.

    Args:
        bank: The bank.
        runs: Other runs. Those on the texts of the bank's run are rediscoveries, and no controls.
        settings: Those of the texts of the bank's run.

    Returns:
        By the name of the run, and of its group if it has several: for each size that the bank has, too, the mask of
        shape (1, nodes).
    """
    found, sizes = dict[str, dict[int, Tensor]](), {*bank.sizes.tolist()}
    for run in runs:
        other = run.bank
        same_model = other.model.fingerprint == bank.model.fingerprint and other.graph == bank.graph
        same_texts = set(other.learned_texts.tolist()) == set(bank.learned_texts.tolist()) != set()
        if not same_model or same_texts or run.settings == settings:
            continue
        for group, masks in zip(other.groups, other.mask, strict=True):
            by_size = {s: mask[None] for s, mask in zip(other.sizes.tolist(), masks, strict=True) if s in sizes}
            found |= {run_texts(run.name, group, other.groups): by_size} if by_size else {}
    return found


@contextmanager
def _blamed_on(what: str) -> Iterator[None]:
    """Errors say which texts of a plan cannot be used."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what} cannot be used: {error}") from error


def _of_plan(
    bench: Bench, names: Sequence[str], load: LoadTexts, settings: dict[str, Any]
) -> Iterator[OtherTexts | str]:
    """The texts that the plan names, or for each that has none a sentence."""
    for name in names:
        with _blamed_on(f"plan.transfer: {name}"):
            if name.startswith((COLUMN, TEXT_COLUMN)):
                yield from _of_column(bench, name, load, settings)
            else:
                limit = bench.plan.texts + len(bench.mask.learned_texts)  # known texts are left out
                data = load(_elsewhere(settings) | _source(name) | {"limit": limit}, scope=DATASET)
                yield from _unlearned(bench, TEXTS, name, data, "all")


def _of_runs(bench: Bench, runs: Sequence[OtherRun], load: LoadTexts) -> Iterator[OtherTexts | str]:
    """The held-out texts of other runs, or for each that has none a sentence."""
    for run in runs:
        scope = run.bank.config.get("model", {}).get("scope", DATASET)
        with _blamed_on(f"the texts of {run.name}"):
            yield from _unlearned(bench, RUN, run.name, load(run.settings, scope=scope, bank=run.bank), "test")


def _elsewhere(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the run that hold for other texts, too."""
    return {key: value for key, value in without_source(settings).items() if key not in COLUMN_KEYS}


def _source(name: str) -> dict[str, Any]:
    """Settings of a file, or of a task of the embedded generator."""
    return {"task": name} if name in TASKS else {"path": name}


def _in_column(column: str, bench: Bench, load: LoadTexts, settings: dict[str, Any]) -> MaskData:
    """The rows of the run in the text of another column."""
    if bench.data.source.task is not None:
        raise UserError(f"{bench.data.source} have no columns")
    _require_rows(settings)
    return load(settings | {"text_column": column})


def _require_rows(settings: dict[str, Any]) -> None:
    """Refuse the columns of a run that has joined its rows."""
    if settings.get("pack"):
        raise UserError("the run has joined its rows (data.pack), so that they have no columns. Leave it out")


def _of_column(bench: Bench, name: str, load: LoadTexts, settings: dict[str, Any]) -> Iterator[OtherTexts | str]:
    """The held-out rows of the run, by the values of a column or in the text of another column."""
    _require_rows(settings)
    if name.startswith(COLUMN):
        data = load(settings, scope=name)
    else:
        data = _in_column(name.removeprefix(TEXT_COLUMN), bench, load, settings)
    rows, every = {text.row for text in bench.data.parts["test"].encoded}, data.parts["all"]
    held_out = [i for i, text in enumerate(every.encoded) if text.row in rows]
    data.parts["test"] = SplitDataset([every.encoded[i] for i in held_out], [every.groups[i] for i in held_out])
    return _unlearned(bench, TEXTS, name, data, "test")


def _unlearned(bench: Bench, what: str, name: str, data: MaskData, split: SplitName) -> Iterator[OtherTexts | str]:
    """The texts of each group that the masks were not learned on, or a sentence if there are none."""
    groups, known = data.groups.names, frozenset(bench.mask.learned_texts.tolist())
    data.parts[split] = data.parts[split].without(known).distinct()
    for index, group in enumerate(groups):
        of_group = run_texts(name, group, groups)
        if index in data.parts[split].groups:
            batches = data.loader(split, [index], max_texts=bench.plan.texts, by_length=True)
            yield OtherTexts(what, of_group, list(batches))
        else:
            yield f"Transfer to {of_group}: no text there is held out from these masks"


def _checkpoint(name: str, bench: Bench, flags: EvaluateFlags) -> Checkpoint:
    """Another checkpoint of the bank's model: a folder, or a revision on the hub. It is loaded once, to check it."""
    of_bank, is_folder = bench.mask.model, Path(name).expanduser().is_dir()
    if not is_folder and not has_revisions(of_bank.lm):
        raise UserError(
            f"plan.checkpoints: there is no folder {name}, and {of_bank.lm}, the model of the masks, has no revisions, "
            "as it is not on the hub. Give folders of other checkpoints"
        )
    lm, revision = (name, None) if is_folder else (of_bank.lm, name)
    dtype = bench.mask.config.get("model", {}).get("dtype", flags.dtype or "float32")
    require_plain(bench.masked_lm.lm, "plan.checkpoints")

    def load() -> MaskedLM:
        loaded = load_lm(lm, revision, dtype, str(bench.masked_lm.device), **flags.trusted)
        return MaskedLM(loaded, bench.masked_lm.ablation)

    masked_lm = load()
    if masked_lm.graph != bench.mask.graph:
        raise UserError(
            f"plan.checkpoints: {name} has {masked_lm.graph.n_nodes} nodes, and the masks {bench.mask.graph.n_nodes}. "
            "Give checkpoints of the same model"
        )
    if masked_lm.layout.n_embeddings < bench.masked_lm.layout.n_embeddings:
        raise UserError(
            f"plan.checkpoints: {name} has {masked_lm.layout.n_embeddings} embeddings, and the model of the masks "
            f"{bench.masked_lm.layout.n_embeddings}, so that it cannot read their texts. Give checkpoints of that model"
        )
    return Checkpoint(name, masked_lm.layout.fingerprint, load)
