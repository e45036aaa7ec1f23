"""What evidence is gathered on besides a bank: its texts in other words, other tasks and texts, other checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from masklearn.cli.evaluate_flags import EvaluateFlags
from masklearn.cli.evaluation_texts import SOURCE_KEYS, SOURCE_OPTIONS
from masklearn.data import MaskData
from masklearn.data.sources import TaskName
from masklearn.errors import UserError
from masklearn.evidence.bench import Bench
from masklearn.evidence.gather import Sources
from masklearn.evidence.plan import EvidencePlan
from masklearn.evidence.rediscovery import Variant, variants
from masklearn.masking import MaskedLM
from masklearn.models import EMBEDDED, load_lm, require_plain

TASKS = get_args(TaskName)
"""Tasks of the embedded generator."""
ONLY_IN_SOURCE = (
    *SOURCE_KEYS,
    *SOURCE_OPTIONS,
    "text_column",
    "corrupted_column",
    "answer_column",
    "wrong_answer_column",
    "completion_column",
)
"""Settings that say where texts come from, which other texts do not share."""
OTHER_TASK_TEXTS = 400
"""Texts of another task that a control is learned on."""


def evidence_sources(
    bench: Bench,
    plan: EvidencePlan,
    load: Callable[[dict[str, Any]], MaskData],
    settings: dict[str, Any],
    flags: EvaluateFlags,
) -> Sources:
    """Load all that a plan asks for, so that what cannot be loaded is known at the start.

    Args:
        bench: The bank.
        plan: What is asked for.
        load: Loads texts by their settings.
        settings: Those of the run.
        flags: Says what is trusted, and the precision.

    Raises:
        UserError: If texts or a checkpoint cannot be loaded, or if a checkpoint is of another shape.
    """
    paraphrased = None
    if plan.paraphrase_column:
        paraphrased = load(settings | {"text_column": plan.paraphrase_column})
    is_embedded, own_task = bench.mask.model.lm == EMBEDDED, bench.data.source.task
    default = [task for task in TASKS if task != own_task] if is_embedded and plan.transfer is None else []
    names = plan.transfer or default
    other_settings = {key: value for key, value in settings.items() if key not in ONLY_IN_SOURCE}
    texts = {name: load(other_settings | _source(name) | {"limit": plan.texts}) for name in names}
    tasks = dict[str, Variant]()
    if default and len(bench.mask.groups) == 1:
        task = default[0]
        data = load(other_settings | {"task": task, "limit": OTHER_TASK_TEXTS})
        tasks[task] = Variant(f"task-{task}", 1, lambda _: data, plan.seed)
    checkpoints = {name: _checkpoint(name, bench, flags) for name in plan.checkpoints or ()}
    return Sources(variants(plan, paraphrased), tasks, texts, checkpoints)


def _source(name: str) -> dict[str, Any]:
    """Settings of a file, or of a task of the embedded generator."""
    return {"task": name} if name in TASKS else {"path": name}


def _checkpoint(name: str, bench: Bench, flags: EvaluateFlags) -> MaskedLM:
    """Another checkpoint of the bank's model: a folder, or a revision on the hub."""
    of_bank = bench.mask.model
    lm, revision = (name, None) if Path(name).expanduser().is_dir() else (of_bank.lm, name)
    dtype = bench.mask.config.get("model", {}).get("dtype", flags.dtype or "float32")
    require_plain(bench.masked_lm.lm, "plan.checkpoints")
    loaded = load_lm(lm, revision, dtype, str(bench.masked_lm.device), **flags.trusted)
    masked_lm = MaskedLM(loaded, bench.masked_lm.ablation)
    if masked_lm.graph != bench.mask.graph:
        raise UserError(
            f"plan.checkpoints: {name} has {masked_lm.graph.n_nodes} nodes, and the masks {bench.mask.graph.n_nodes}. "
            "Give checkpoints of the same model"
        )
    return masked_lm
