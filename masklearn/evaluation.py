"""Masks x text x metrics to one tidy table: the one path by which every reported number is made."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from masklearn.answers import AnswerMetrics, areas, faithfulness
from masklearn.artifact import Mask
from masklearn.baselines import CONTROLS, Baseline, subgraphs
from masklearn.data import Batch
from masklearn.judge import Judge
from masklearn.masked_lm import MaskedLM
from masklearn.metrics import Beside, SubgraphMetrics, TextMetrics
from masklearn.objective import chunks, log_probabilities

AT_ONCE = 8
"""Masks that share a forward."""

Row = dict[str, Any]
ANSWERS = {
    "logit_diff": "logit diff",
    "full_logit_diff": "full diff",
    "prob_diff": "prob diff",
    "accuracy": "accuracy",
    "full_accuracy": "full acc",
    "faithfulness": "faithful",
}
"""Columns that there are where texts have answers."""


@dataclass(frozen=True)
class Seen:
    """Some subgraphs, and what was measured of them text by text."""

    masks: Tensor
    """Boolean, shape (draws, sizes, groups, nodes)."""
    texts: dict[str, Tensor]
    """What `TextMetrics` gives, with draws and sizes in two dimensions."""


@dataclass
class Watch:
    """What is to be seen text by text beside the means, and what was."""

    n_texts: int
    """Texts that are reported on."""
    counts: Mapping[int, int]
    """How often each token comes in the corpus."""
    seen: dict[str, Seen] = field(default_factory=dict)
    """By the name of the subgraphs: `learned`, or that of a baseline."""

    def meter(self, masked_lm: MaskedLM, n_masks: int) -> TextMetrics:
        return TextMetrics(n_masks, self.n_texts, self.counts).to(masked_lm.device)


@torch.no_grad()
def measure(
    masked_lm: MaskedLM, masks: Tensor, batches: Iterable[Batch], by_text: TextMetrics | None = None
) -> tuple[list[Row], Tensor]:
    """Metrics of discrete subgraphs on some text.

    Args:
        masked_lm: The model, with the ablation to evaluate under.
        masks: Boolean, shape (K, groups, nodes): K subgraphs for the texts of every group; of one group, for all texts.
        batches: The text.
        by_text: Takes in what is to be known of every text by itself, if that is wanted.

    Returns:
        One row of metrics for each k, over all texts alike; their meaning is `SubgraphMetrics`'s, and where texts have
        answers, `AnswerMetrics`'s. None stands for what is not defined: a cross-entropy where no text goes on after a
        scored position. And the KL and the TV distance of every group on its own, shape (2, K, groups).
    """
    meters: list[tuple[SubgraphMetrics, AnswerMetrics]] = []
    masks = masks.to(masked_lm.device)
    for batch in (batch.to(masked_lm.device) for batch in batches):
        full = masked_lm.full(batch.input_ids, batch.scored)
        labels = torch.where(batch.real, batch.input_ids, -1).roll(-1, 1)
        labels[:, -1] = -1
        slot = batch.group if masks.shape[1] > 1 else torch.zeros_like(batch.group)
        whose, texts = (of.repeat_interleave(batch.scored.sum(1)) for of in (slot, batch.place))
        for i, begin in enumerate(range(0, len(masks), AT_ONCE)):
            part = slice(begin, begin + AT_ONCE)
            masked = masked_lm(batch.input_ids, batch.scored, masks[part, slot].float(), batch.corrupted)
            if i == len(meters):
                of_subgraphs = SubgraphMetrics(len(masked), masks.shape[1]), AnswerMetrics(len(masked))
                meters.append((of_subgraphs[0].to(masks.device), of_subgraphs[1].to(masks.device)))
            for piece in chunks(full, len(masked), masked_lm.head):
                pair = Beside(*(log_probabilities(h, masked_lm.head) for h in (full[piece], masked[:, piece])))
                came = labels[batch.scored][piece]
                meters[i][0].update(pair, came, whose[piece])
                if by_text:
                    text, read = texts[piece], batch.input_ids[batch.scored][piece]
                    by_text.update(pair, came, text, read, slice(begin, begin + len(masked)))
            if batch.answers is not None:
                last = batch.scored.sum(1).cumsum(0) - 1  # of every text
                logp = log_probabilities(torch.cat([full[None, last], masked[:, last]]), masked_lm.head)
                meters[i][1].update(logp, batch.answers, batch.wrong)
    columns: dict[str, list[float | None]] = {}
    by_group: dict[str, list[Tensor]] = {"kl_by_group": [], "tv_by_group": []}
    for meter, of_answers in meters:
        found = meter.compute() | (of_answers.compute() if of_answers.texts else {})
        for name, parts in by_group.items():
            parts.append(found.pop(name).view(-1, masks.shape[1]))  # torchmetrics squeezes what has one element
        for name, values in found.items():
            columns.setdefault(name, []).extend(map(_known, values.reshape(-1).tolist()))
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return rows, torch.stack([torch.cat(parts) for parts in by_group.values()])


def evaluate(
    masked_lm: MaskedLM,
    mask: Mask,
    batches: Iterable[Batch],
    baselines: Sequence[Baseline] = CONTROLS,
    judge: Judge | None = None,
    watch: Watch | None = None,
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
    chosen = {"learned": mask.mask.transpose(0, 1)[None]} | {name: subgraphs(name, mask, judge) for name in baselines}
    measured, own = _measure_all(masked_lm, "learned", chosen, batches, watch)
    others = {name: _measure_all(masked_lm, name, chosen, batches, watch)[0] for name in baselines}
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


@torch.no_grad()
def top_tokens(masked_lm: MaskedLM, batch: Batch, masks: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The most probable next tokens of one input at its last scored position, under subgraphs.

    Args:
        masked_lm: The model, with the ablation to evaluate under.
        batch: The input alone.
        masks: Boolean, shape (K, nodes).
        k: How many tokens.

    Returns:
        Token ids and probabilities, the most probable first, each of shape (K, k).
    """
    batch = batch.to(masked_lm.device)
    gates = masks[:, None].float().to(masked_lm.device)
    hidden = masked_lm(batch.input_ids, batch.scored, gates, batch.corrupted)[:, -1]
    found = log_probabilities(hidden, masked_lm.head).exp().topk(k)
    return found.indices.cpu(), found.values.cpu()


def _measure_all(
    masked_lm: MaskedLM, name: str, chosen: Mapping[str, Tensor], batches: Iterable[Batch], watch: Watch | None
) -> tuple[list[Row], Tensor]:
    """Measure all draws of one kind of subgraphs, seen text by text if there is a watch."""
    draws, masks = len(chosen[name]), chosen[name].flatten(0, 1)
    by_text = watch.meter(masked_lm, len(masks)) if watch else None
    found = measure(masked_lm, masks, batches, by_text)
    if watch and by_text:
        n_sizes, n_texts = chosen[name].shape[1], watch.n_texts
        by_mask = (draws, n_sizes, n_texts)
        shapes: dict[str, tuple[int, ...]] = {"kl": by_mask, "tv": by_mask, "unigram_kl": by_mask}
        shapes["recovered"] = (*by_mask, -1)
        found_by_text = by_text.compute()  # torchmetrics squeezes what has one element
        shaped = {key: value.view(shapes.get(key, (n_texts,))).cpu() for key, value in found_by_text.items()}
        watch.seen[name] = Seen(chosen[name].cpu(), shaped)
    return found


def _number(mean: Tensor) -> int | float:
    """A mean over groups; of a single group, a count."""
    value = float(mean)
    return int(value) if value.is_integer() else value


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _column(name: str, row: Row) -> str:
    return _shown(row[name])


def _control(name: str, row: Row) -> str:
    found = row["controls"][name]
    return "{kl_mean:.2f} ± {kl_std:.2f}".format(**found) if "n" in found else f"{found['kl']:.3f}"


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
            name: {"kl": [*map(_known, kl)], "tv": [*map(_known, tv)]} for name, (kl, tv) in by_group
        }
    return described


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def table(rows: list[Row]) -> str:
    """The rows as a person would read them."""
    columns: dict[str, Callable[[Row], str]] = {
        "s": lambda r: f"{r['s']}",
        "of all": lambda r: f"{r['fraction']:.0%}",
        "heads": lambda r: f"{r['heads']:.3g}",
        "mlps": lambda r: f"{r['mlps']:.3g}",
        "KL": lambda r: f"{r['kl']:.3f}",
        **{f"{name} KL": partial(_control, name) for name in rows[0]["controls"]},
        "TV": lambda r: f"{r['tv']:.3f}",
        "JS": lambda r: f"{r['js']:.3f}",
        "top-1": lambda r: f"{r['top1']:.1%}",
        "nucleus": lambda r: f"{r['nucleus_median']:.0f}%",
        **{title: partial(_column, name) for name, title in ANSWERS.items() if name in rows[0]},
        "CE": lambda r: _shown(r["cross_entropy"]),
        "full CE": lambda r: _shown(r["full_cross_entropy"]),
    }
    return aligned([list(columns), *([show(row) for show in columns.values()] for row in rows)])


def stages_table(rows: list[Row]) -> str:
    """What cutting cost and what polish brought back, as a person would read it; rows are a learner's `stages`."""
    header, *_ = [["s", *(f"{name} KL" for name in row if name != "s")] for row in rows]
    return aligned([header, *([f"{v:.3f}" if name != "s" else f"{v}" for name, v in row.items()] for row in rows)])


def aligned(cells: list[list[str]]) -> str:
    """Cells (lines, columns) as text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in cells)


def told(described: dict[str, Any]) -> str:
    """The table of a bank, and the areas under its faithfulness where texts have answers."""
    found = described.get("areas")
    of_what = {"mib": "MIB's sizes", "sizes": "these sizes, from none to all (MIB's are --model.sizes mib)"}
    last = "\n\nCPR {cpr:.3f}, CMD {cmd:.3f} over {of}".format(**found, of=of_what[found["over"]]) if found else ""
    return table(described["sizes"]) + last
