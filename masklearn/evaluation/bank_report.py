"""Masks x text x metrics to one tidy table: the one path by which every reported number is made."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from masklearn.data import Batch
from masklearn.evaluation.answer_metrics import areas, faithfulness
from masklearn.evaluation.measure import Row, measure, nan_to_none
from masklearn.evaluation.per_text import PerTextRecorder, PerTextResults
from masklearn.mask_file import Mask
from masklearn.masking import MaskedLM
from masklearn.selection.baselines import CONTROLS, Baseline, subgraphs
from masklearn.selection.scorer import MaskScorer


def evaluate(
    masked_lm: MaskedLM,
    mask: Mask,
    batches: Iterable[Batch],
    baselines: Sequence[Baseline] = CONTROLS,
    scorer: MaskScorer | None = None,
    recorder: PerTextRecorder | None = None,
) -> tuple[list[Row], Tensor]:
    """The table of a bank: for every size its metrics, its nodes, and subgraphs of that size chosen in other ways.

    Args:
        masked_lm: The model, with the ablation to evaluate under.
        mask: The bank.
        batches: The text to report on.
        baselines: Names of the other ways, see `baselines`.
        judge: By which they choose, on the text that masks are learned on; controls need none.
        watch: Takes in what is to be known of every text by itself, if that is wanted.

    Returns:
        One row for each size, over the texts of all groups, each under its own masks; and the KL and TV of every
        group, shape (2, sizes, groups).
    """
    mask.check()
    chosen = {"learned": mask.mask.transpose(0, 1)[None]} | {name: subgraphs(name, mask, scorer) for name in baselines}
    measured, own = _measure_all(masked_lm, "learned", chosen, batches, recorder)
    others = {name: _measure_all(masked_lm, name, chosen, batches, recorder)[0] for name in baselines}
    heads, mlps = (count.float().mean(0) for count in mask.graph.count(mask.mask))
    if "logit_diff" in measured[0]:
        none = torch.zeros(1, 1, mask.graph.n_nodes, dtype=torch.bool)
        empty = measure(masked_lm, none.expand(1, len(mask.groups), -1), batches)[0][0]
        measured = [row | {"faithfulness": faithfulness(row, empty)} for row in measured]
    rows = [
        {
            "s": s,
            "fraction": s / mask.graph.n_nodes,
            **measured[i],
            "heads": _number(heads[i]),
            "mlps": _number(mlps[i]),
            "controls": {name: _spread(found[i :: len(mask.sizes)]) for name, found in others.items()},
        }
        for i, s in enumerate(mask.sizes.tolist())
    ]
    return rows, own


def _measure_all(
    masked_lm: MaskedLM,
    name: str,
    chosen: Mapping[str, Tensor],
    batches: Iterable[Batch],
    recorder: PerTextRecorder | None,
) -> tuple[list[Row], Tensor]:
    """Measure all draws of one kind of subgraphs, seen text by text if there is a watch."""
    draws, masks = len(chosen[name]), chosen[name].flatten(0, 1)
    by_text = recorder.meter(masked_lm, len(masks)) if recorder else None
    found = measure(masked_lm, masks, batches, by_text)
    if recorder and by_text:
        n_sizes, n_texts = chosen[name].shape[1], recorder.n_texts
        by_mask = (draws, n_sizes, n_texts)
        shapes: dict[str, tuple[int, ...]] = {"kl": by_mask, "tv": by_mask, "unigram_kl": by_mask}
        shapes["recovered"] = (*by_mask, -1)
        found_by_text = by_text.compute()  # torchmetrics squeezes what has one element
        shaped = {key: value.view(shapes.get(key, (n_texts,))).cpu() for key, value in found_by_text.items()}
        recorder.seen[name] = PerTextResults(chosen[name].cpu(), shaped)
    return found


def _number(mean: Tensor) -> int | float:
    """A mean over groups; of a single group, a count."""
    value = float(mean)
    return int(value) if value.is_integer() else value


def _spread(rows: list[Row]) -> dict[str, float]:
    """Mean and standard deviation over some subgraphs of the same size; of a single one, its figures."""
    if len(rows) == 1:
        return {name: rows[0][name] for name in ("kl", "tv", "top1")}
    columns = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in ("kl", "tv", "top1")}
    spread = {
        f"{name}_{of}": float(getattr(values, of)()) for name, values in columns.items() for of in ("mean", "std")
    }
    return {"n": len(rows), **spread}


def describe(mask: Mask, rows: list[Row], own: Tensor, data: dict[str, Any]) -> dict[str, Any]:
    """What `metrics.json` says of a bank on texts of such settings: `evaluate`'s rows, and KL and TV of each group."""
    graph = mask.graph
    described = {
        "model": vars(mask.model) | {"n_nodes": graph.n_nodes, "n_layers": graph.n_layers, "n_heads": graph.n_heads},
        "data": data,
        "sizes": rows,
    }
    faithful = [row["faithfulness"] for row in rows if row.get("faithfulness") is not None]
    if len(faithful) == len(rows):
        described["areas"] = areas([row["s"] for row in rows], faithful, graph.n_nodes)
    if len(mask.groups) > 1:
        by_group = zip(mask.groups, own.permute(2, 0, 1).tolist(), strict=True)
        described["groups"] = {
            name: {"kl": [*map(nan_to_none, kl)], "tv": [*map(nan_to_none, tv)]} for name, (kl, tv) in by_group
        }
    return described
