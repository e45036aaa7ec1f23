"""The report on a bank: metrics of every size and of its baselines, as the content of `metrics.json`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from masklearn.data import Batch, MaskData, SplitName
from masklearn.evaluation.answer_metrics import faithfulness
from masklearn.evaluation.measure import Row, measure, nan_to_none
from masklearn.evaluation.mib import ON_CURVE, answer_areas
from masklearn.evaluation.per_text import PerTextRecorder
from masklearn.mask_file import Mask
from masklearn.masking import MaskedLM
from masklearn.progress import ProgressBar, no_bar
from masklearn.selection.baselines import CONTROLS, N_RANDOM_MASKS, Baseline, subgraphs, subgraphs_of_ranks
from masklearn.selection.scorer import MaskScorer

LEARNED_MASKS = "learned"
"""Name of the bank's own masks among the kinds of subgraphs."""
CONTROL_METRICS = ("kl", "tv", "top1")
"""Metrics that are reported of baselines."""


def evaluate(
    masked_lm: MaskedLM,
    mask: Mask,
    batches: Iterable[Batch],
    baselines: Sequence[Baseline] = CONTROLS,
    scorer: MaskScorer | None = None,
    recorder: PerTextRecorder | None = None,
    bar: ProgressBar = no_bar,
    on_ranks: bool = False,
) -> tuple[list[Row], Tensor]:
    """Evaluate a bank: for every size its metrics, its numbers of heads and MLPs, and baselines of that size.

    Args:
        masked_lm: The model, with the ablation to evaluate under.
        mask: The bank.
        batches: The text to report on.
        baselines: Names of the baselines, see `selection.baselines`.
        scorer: Scores candidate masks on the text that the bank was learned on, for baselines that choose by it;
            random and inverse subgraphs need none. With `on_ranks` that of `rank_scorer`.
        recorder: Collects the results of each text, if given.
        bar: Shows the progress of searches for baselines and of the evaluation.
        on_ranks: Whether ranks share the work, see `measure` and `subgraphs_of_ranks`.

    Returns:
        One row for each size, averaged over the texts of all groups, each under its own group's masks; and the KL and
        TV of each group, shape (2, sizes, groups).
    """
    mask.check()
    masks_of = {LEARNED_MASKS: mask.mask.transpose(0, 1)[None]}
    choose = subgraphs_of_ranks if on_ranks else subgraphs
    masks_of |= {name: choose(name, mask, scorer, bar) for name in baselines}
    rows_of, by_group = _measure_all(masked_lm, masks_of, batches, recorder, bar, on_ranks)
    measured = rows_of[LEARNED_MASKS]
    heads, mlps = (count.float().mean(0) for count in mask.graph.count(mask.mask))
    if "logit_diff" in measured[0]:
        measured = _with_faithfulness(masked_lm, mask, batches, measured, on_ranks)
    rows = [
        {
            "s": s,
            "fraction": s / mask.graph.n_nodes,
            **measured[i],
            "heads": _int_if_whole(heads[i]),
            "mlps": _int_if_whole(mlps[i]),
            "controls": {name: mean_std(rows_of[name][i :: len(mask.sizes)]) for name in baselines},
        }
        for i, s in enumerate(mask.sizes.tolist())
    ]
    return rows, by_group


def _with_faithfulness(
    masked_lm: MaskedLM, mask: Mask, batches: Iterable[Batch], measured: Sequence[Row], on_ranks: bool
) -> list[Row]:
    """The rows with the faithfulness of each, and the references that it compares with.

    The references are `empty`, the model of which nothing is open, and `input`, of which the embedding alone is. Under
    resample ablation the first is a run on the corrupted text, as in MIB; under other ablations the two are the same.
    """
    closed = torch.zeros(1, len(mask.groups), mask.graph.n_nodes, dtype=torch.bool)
    of_input = of_empty = measure(masked_lm, closed, batches, on_ranks=on_ranks)[0][0]
    if masked_lm.ablation.name == "resample":
        corrupted = (b if b.corrupted is None else b._replace(input_ids=b.corrupted) for b in batches)
        of_empty = measure(masked_lm, closed, corrupted, on_ranks=on_ranks)[0][0]
    references = {
        name: {metric: row.get(metric) for metric in ON_CURVE} | {"faithfulness": value}
        for name, row, value in (("empty", of_empty, 0.0), ("input", of_input, faithfulness(of_input, of_empty)))
    }
    return [row | {"faithfulness": faithfulness(row, of_empty), "references": references} for row in measured]


def subgraphs_evaluated(n_sizes: int, with_answers: bool, resampled: bool = False) -> int:
    """How many subgraphs `evaluate` runs on every text, the full model among them: a bank and the default baselines.

    With answers, faithfulness takes a pass without nodes; under resample ablation another on the corrupted texts.
    """
    draws = 1 + N_RANDOM_MASKS * len(CONTROLS)
    return n_sizes * draws + 1 + (2 * (1 + resampled) if with_answers else 0)


def _measure_all(
    masked_lm: MaskedLM,
    masks_of: Mapping[str, Tensor],
    batches: Iterable[Batch],
    recorder: PerTextRecorder | None,
    bar: ProgressBar,
    on_ranks: bool,
) -> tuple[dict[str, list[Row]], Tensor]:
    """Measure all kinds of subgraphs together, so that the full model runs once on every text.

    Args:
        masked_lm: The model.
        masks_of: The masks of every kind, boolean of shape (draws, sizes, groups, nodes).
        batches: The text.
        recorder: Collects the results of each text, if given.
        bar: Shows the progress.
        on_ranks: See `measure`.

    Returns:
        The rows of every kind, draws x sizes of them; and KL and TV of each group under the first kind's subgraphs.
    """
    counts = [masks.shape[0] * masks.shape[1] for masks in masks_of.values()]
    by_text = recorder.meter(masked_lm, sum(counts)) if recorder else None
    masks = [masks.flatten(0, 1) for masks in masks_of.values()]
    rows, by_group = measure(masked_lm, masks, batches, by_text, bar, on_ranks)
    if recorder and by_text:
        recorder.record(masks_of, by_text)
    ends = [*accumulate(counts)]
    rows_of = {name: rows[end - n : end] for name, end, n in zip(masks_of, ends, counts, strict=True)}
    return rows_of, by_group[:, : counts[0]]


def _int_if_whole(mean: Tensor) -> int | float:
    """A mean over groups as a number; the mean of a single group is a count."""
    value = float(mean)
    return int(value) if value.is_integer() else value


def mean_std(rows: list[Row]) -> dict[str, float | None]:
    """Mean and standard deviation over random subgraphs of the same size; of a single subgraph, its own metrics.

    Both are None if the metric of a subgraph is.
    """
    if len(rows) == 1:
        return {name: rows[0][name] for name in CONTROL_METRICS}
    statistics: dict[str, float | None] = {"n": len(rows)}
    for name in CONTROL_METRICS:
        values = torch.tensor([math.nan if row[name] is None else row[name] for row in rows], dtype=torch.float64)
        statistics |= nan_to_none({f"{name}_mean": float(values.mean()), f"{name}_std": float(values.std())})
    return statistics


def describe(mask: Mask, rows: list[Row], by_group: Tensor, data: dict[str, Any]) -> dict[str, Any]:
    """The content of `metrics.json` for a bank evaluated on text.

    Args:
        mask: The bank.
        rows: One row for each size, from `evaluate`.
        by_group: KL and TV of each group, from `evaluate`, shape (2, sizes, groups).
        data: Settings of the text.
    """
    graph = mask.graph
    described = {
        "model": vars(mask.model) | {"n_nodes": graph.n_nodes, "n_layers": graph.n_layers, "n_heads": graph.n_heads},
        "data": data,
        "sizes": rows,
    }
    if found := answer_areas(rows, graph.n_nodes):
        described["areas"] = found
    if len(mask.groups) > 1:
        described["groups"] = {
            name: nan_to_none({"kl": kl, "tv": tv})
            for name, (kl, tv) in zip(mask.groups, by_group.permute(2, 0, 1).tolist(), strict=True)
        }
    return described


def texts_in_words(data: MaskData, split: SplitName = "test", kind: str = "held-out", source: str = "") -> str:
    """What a split holds, in words: such as `99 held-out texts` or `46 inputs of 11 texts, each under its own masks`.

    Args:
        data: The texts.
        split: The split.
        kind: What its texts are called, unless every text has masks of its own: then no text is held out.
        source: Where they come from.
    """
    n_inputs, n_texts = len(data.parts[split]), len({text.row for text in data.parts[split].encoded})
    inputs = f"{n_inputs} inputs of " if n_inputs > n_texts else ""  # positions each
    of = f" of {source}" if source else ""
    if not data.groups.held_out:
        return f"{inputs}{n_texts} texts{of}, each under its own masks"
    return f"{inputs}all {n_texts} texts{of}" if split == "all" else f"{inputs}{n_texts} {kind} texts{of}"
