"""Measure discrete subgraphs on text: one row of metrics for each."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from masklearn.data.batching import Batch
from masklearn.evaluation.answer_metrics import AnswerMetrics
from masklearn.evaluation.metrics import DistributionPair, SubgraphMetrics, TextMetrics
from masklearn.masking.masked_lm import MaskedLM
from masklearn.objective import chunks, log_probabilities

MASKS_PER_FORWARD = 8
"""Subgraphs that share a forward pass."""
Row = dict[str, Any]
"""Metrics of one subgraph, or of one size, by name."""


class ScoredPositions(NamedTuple):
    """The scored positions of one batch, text after text."""

    hidden: Tensor
    """Last hidden states of the full model, shape (positions, width)."""
    token: Tensor
    """The last token that the model has read there, shape (positions)."""
    next_token: Tensor
    """The token that follows, or -1 where the text ends, shape (positions)."""
    group: Tensor
    """Index of the text's group among the masks, shape (positions)."""
    text: Tensor
    """Index of the text in its split, shape (positions)."""

    @classmethod
    def of(cls, masked_lm: MaskedLM, batch: Batch, group: Tensor) -> "ScoredPositions":
        """Run the full model on a batch, whose texts have groups of these indices, shape (inputs)."""
        next_tokens = torch.where(batch.real, batch.input_ids, -1).roll(-1, 1)
        next_tokens[:, -1] = -1
        n_positions = batch.scored.sum(1)
        return cls(
            masked_lm.full(batch.input_ids, batch.scored),
            batch.input_ids[batch.scored],
            next_tokens[batch.scored],
            group.repeat_interleave(n_positions),
            batch.text_index.repeat_interleave(n_positions),
        )


@torch.no_grad()
def measure(
    masked_lm: MaskedLM, masks: Tensor, batches: Iterable[Batch], by_text: TextMetrics | None = None
) -> tuple[list[Row], Tensor]:
    """Measure K subgraphs on some text.

    Args:
        masked_lm: The model, with the ablation to evaluate under.
        masks: The subgraphs. Boolean, shape (K, groups, nodes); with a single group, its masks serve all texts.
        batches: The text.
        by_text: Updated with the results of each text, if given.

    Returns:
        One row of metrics for each subgraph, averaged over all texts: see `SubgraphMetrics`, and `AnswerMetrics` if
        texts have answers. With completions also `answer_logp` and `full_answer_logp`, the log-probability of a whole
        completion in nats, a mean over texts. Undefined metrics are None, for example the cross-entropy if no token
        follows a scored position. And the KL and the TV distance of each group, shape (2, K, groups).
    """
    masks = masks.to(masked_lm.device)
    n_groups = masks.shape[1]
    parts = masks.split(MASKS_PER_FORWARD)
    meters = [
        (SubgraphMetrics(len(part), n_groups).to(masks.device), AnswerMetrics(len(part)).to(masks.device))
        for part in parts
    ]
    completions = list[int]()
    for batch in (batch.to(masked_lm.device) for batch in batches):
        completions += [] if batch.completion_lengths is None else batch.completion_lengths.tolist()
        group = batch.group if n_groups > 1 else torch.zeros_like(batch.group)
        full = ScoredPositions.of(masked_lm, batch, group)
        begin = 0
        for part, (meter, answer_meter) in zip(parts, meters, strict=True):
            masked = masked_lm(batch.input_ids, batch.scored, part[:, group].float(), batch.corrupted)
            _update_meters(masked_lm, full, masked, meter, by_text, slice(begin, begin + len(part)))
            _update_answers(masked_lm, batch, full.hidden, masked, answer_meter)
            begin += len(part)
    rows, by_group = _tabulate(meters, n_groups)
    if completions:
        mean_length = sum(completions) / len(completions)
        names = {"answer_logp": "cross_entropy", "full_answer_logp": "full_cross_entropy"}
        rows = [row | {name: -mean_length * row[loss] for name, loss in names.items()} for row in rows]
    return rows, by_group


def _update_meters(
    masked_lm: MaskedLM,
    full: ScoredPositions,
    masked: Tensor,
    meter: SubgraphMetrics,
    by_text: TextMetrics | None,
    subgraphs: slice,
) -> None:
    """Compare the subgraphs' last hidden states (K, positions, width) with the full model's, chunk by chunk."""
    for chunk in chunks(full.hidden, len(masked), masked_lm.unembed):
        pair = DistributionPair(
            log_probabilities(full.hidden[chunk], masked_lm.unembed),
            log_probabilities(masked[:, chunk], masked_lm.unembed),
        )
        meter.update(pair, full.next_token[chunk], full.group[chunk])
        if by_text:
            by_text.update(pair, full.next_token[chunk], full.text[chunk], full.token[chunk], subgraphs)


def _update_answers(
    masked_lm: MaskedLM, batch: Batch, full_hidden: Tensor, masked: Tensor, meter: AnswerMetrics
) -> None:
    """Evaluate the answers of a batch at the position that they follow."""
    if batch.answers is None:
        return
    at = batch.before_answers
    logp = log_probabilities(torch.cat([full_hidden[None, at], masked[:, at]]), masked_lm.unembed)
    meter.update(logp, batch.answers, batch.wrong)


def _tabulate(meters: Sequence[tuple[SubgraphMetrics, AnswerMetrics]], n_groups: int) -> tuple[list[Row], Tensor]:
    """Rows of metrics, and KL and TV by group, of the subgraphs of all meters in a row."""
    columns: dict[str, list[float | None]] = {}
    by_group: dict[str, list[Tensor]] = {"kl_by_group": [], "tv_by_group": []}
    for meter, answer_meter in meters:
        found = meter.compute() | (answer_meter.compute() if answer_meter.texts else {})
        for name, tensors in by_group.items():
            tensors.append(found.pop(name).view(-1, n_groups))  # torchmetrics squeezes results of one element
        for name, values in found.items():
            columns.setdefault(name, []).extend(map(nan_to_none, values.reshape(-1).tolist()))
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return rows, torch.stack([torch.cat(tensors) for tensors in by_group.values()])


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
    top = log_probabilities(hidden, masked_lm.unembed).exp().topk(k)
    return top.indices.cpu(), top.values.cpu()


def nan_to_none(value: float) -> float | None:
    """The value as JSON can hold it, which has no NaN."""
    return None if math.isnan(value) else value
