"""Metrics of discrete subgraphs on some text."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from masklearn.data.batching import Batch
from masklearn.evaluation.answer_metrics import AnswerMetrics
from masklearn.evaluation.metrics import DistributionPair, SubgraphMetrics, TextMetrics
from masklearn.masking.masked_lm import MaskedLM
from masklearn.objective import chunks, log_probabilities

AT_ONCE = 8
"""Masks that share a forward."""
Row = dict[str, Any]


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
        whose, texts = (of.repeat_interleave(batch.scored.sum(1)) for of in (slot, batch.text_index))
        for i, begin in enumerate(range(0, len(masks), AT_ONCE)):
            part = slice(begin, begin + AT_ONCE)
            masked = masked_lm(batch.input_ids, batch.scored, masks[part, slot].float(), batch.corrupted)
            if i == len(meters):
                of_subgraphs = SubgraphMetrics(len(masked), masks.shape[1]), AnswerMetrics(len(masked))
                meters.append((of_subgraphs[0].to(masks.device), of_subgraphs[1].to(masks.device)))
            for piece in chunks(full, len(masked), masked_lm.unembed):
                pair = DistributionPair(
                    *(log_probabilities(h, masked_lm.unembed) for h in (full[piece], masked[:, piece]))
                )
                came = labels[batch.scored][piece]
                meters[i][0].update(pair, came, whose[piece])
                if by_text:
                    text, read = texts[piece], batch.input_ids[batch.scored][piece]
                    by_text.update(pair, came, text, read, slice(begin, begin + len(masked)))
            if batch.answers is not None:
                last = batch.scored.sum(1).cumsum(0) - 1  # of every text
                logp = log_probabilities(torch.cat([full[None, last], masked[:, last]]), masked_lm.unembed)
                meters[i][1].update(logp, batch.answers, batch.wrong)
    columns: dict[str, list[float | None]] = {}
    by_group: dict[str, list[Tensor]] = {"kl_by_group": [], "tv_by_group": []}
    for meter, of_answers in meters:
        found = meter.compute() | (of_answers.compute() if of_answers.texts else {})
        for name, parts in by_group.items():
            parts.append(found.pop(name).view(-1, masks.shape[1]))  # torchmetrics squeezes what has one element
        for name, values in found.items():
            columns.setdefault(name, []).extend(map(nan_to_none, values.reshape(-1).tolist()))
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return rows, torch.stack([torch.cat(parts) for parts in by_group.values()])


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
    found = log_probabilities(hidden, masked_lm.unembed).exp().topk(k)
    return found.indices.cpu(), found.values.cpu()


def nan_to_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
