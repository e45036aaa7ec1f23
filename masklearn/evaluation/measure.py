"""Measure discrete subgraphs on text: one row of metrics for each."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from masklearn import ranks
from masklearn.data.batching import Batch
from masklearn.evaluation.answer_metrics import AnswerMetrics
from masklearn.evaluation.metrics import DistributionPair, SubgraphMetrics, TextMetrics
from masklearn.masking.masked_lm import MaskedLM
from masklearn.objective import log_probabilities, logits_of_models
from masklearn.progress import ProgressBar, no_bar

MAX_FORWARD_TOKENS, MAX_FORWARD_TOKENS_CPU = 2**15, 2**12
"""Tokens in one forward, over all of its rows; on a CPU more would only miss its caches."""
MAX_MASKS_PER_FORWARD = 64
"""Subgraphs that share a forward pass, at most: their logits at one position are held together."""
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
    masked_lm: MaskedLM,
    masks: Tensor | Sequence[Tensor],
    batches: Iterable[Batch],
    by_text: TextMetrics | None = None,
    bar: ProgressBar = no_bar,
    on_ranks: bool = False,
) -> tuple[list[Row], Tensor]:
    """Measure K subgraphs on some text.

    Args:
        masked_lm: The model, with the ablation to evaluate under.
        masks: The subgraphs. Boolean, shape (K, groups, nodes); with a single group, its masks serve all texts. Or
            several such tensors, whose subgraphs are counted on.
        batches: The text.
        by_text: Updated with the results of each text, if given.
        bar: Shows the progress.
        on_ranks: Whether ranks share the forwards. All must then measure the same, and each gets the results of all.

    Returns:
        One row of metrics for each subgraph, averaged over all texts: see `SubgraphMetrics`, and `AnswerMetrics` if
        texts have answers. With completions also `answer_logp` and `full_answer_logp`, the log-probability of a whole
        completion in nats, a mean over texts. Undefined metrics are None, for example the cross-entropy if no token
        follows a scored position. And the KL and the TV distance of each group, shape (2, K, groups).
    """
    kinds = [kind.to(masked_lm.device) for kind in ([masks] if isinstance(masks, Tensor) else masks)]
    n_masks, n_groups = sum(map(len, kinds)), kinds[0].shape[1]
    meter = SubgraphMetrics(n_masks, n_groups, sync_on_compute=False).to(masked_lm.device)
    answer_meter = AnswerMetrics(n_masks, sync_on_compute=False).to(masked_lm.device)
    batches = list(batches)
    read = batch = full = gates = None
    forwards = [(batch, part) for batch in batches for part in forward_parts(n_masks, batch, masked_lm.device)]
    for texts, part in bar(ranks.section(forwards) if on_ranks else forwards, "Evaluation"):
        if batch is None or full is None or gates is None or texts is not read:
            read, batch = texts, texts.to(masked_lm.device)
            group = batch.group if n_groups > 1 else torch.zeros_like(batch.group)
            full, gates = ScoredPositions.of(masked_lm, batch, group), torch.cat([kind[:, group] for kind in kinds])
        masked = masked_lm(batch.input_ids, batch.scored, gates[part].float(), batch.corrupted)
        _update_meters(masked_lm, full, masked, meter, by_text, part)
        _update_answers(masked_lm, batch, full.hidden, masked, answer_meter, part)
    if on_ranks:
        sum_over_ranks(meter, answer_meter, *([by_text] if by_text else []))
    rows, by_group = _tabulate(meter, answer_meter, n_groups)
    completions = [batch.completion_lengths for batch in batches if batch.completion_lengths is not None]
    return (_with_completions(rows, torch.cat(completions).tolist()) if completions else rows), by_group


def sum_over_ranks(*meters: Metric) -> None:
    """Let meters hold the sums of all ranks; unlike torchmetrics by itself, without a copy of every rank's."""
    for meter in meters:
        meter.sync(lambda state, group: [ranks.summed(state)])


def _with_completions(rows: list[Row], lengths: list[int]) -> list[Row]:
    """The rows with the log-probabilities of whole completions of these lengths, in nats, means over texts.

    A log-probability is None where an output is not finite.
    """
    mean_length = sum(lengths) / len(lengths)
    names = {"answer_logp": "cross_entropy", "full_answer_logp": "full_cross_entropy"}

    def of_completion(loss: float | None) -> float | None:
        return None if loss is None else -mean_length * loss

    return [row | {name: of_completion(row[loss]) for name, loss in names.items()} for row in rows]


def forward_parts(n_masks: int, batch: Batch, device: torch.device) -> list[slice]:
    """The subgraphs, of so many, that share a forward pass on a batch."""
    n_tokens = MAX_FORWARD_TOKENS_CPU if device.type == "cpu" else MAX_FORWARD_TOKENS
    step = min(max(1, n_tokens // batch.input_ids.numel()), MAX_MASKS_PER_FORWARD)
    return [slice(begin, min(begin + step, n_masks)) for begin in range(0, n_masks, step)]


def _update_meters(
    masked_lm: MaskedLM,
    full: ScoredPositions,
    masked: Tensor,
    meter: SubgraphMetrics,
    by_text: TextMetrics | None,
    part: slice,
) -> None:
    """Compare the subgraphs' last hidden states (K, positions, width) with the full model's."""
    for at, logits in logits_of_models(torch.cat([full.hidden[None], masked]), masked_lm.unembed):
        logp = logits.float().log_softmax(-1)
        pair = DistributionPair(logp[0], logp[1:])
        meter.update(pair, full.next_token[at], full.group[at], part)
        if by_text:
            by_text.update(pair, full.next_token[at], full.text[at], full.token[at], part)


def _update_answers(
    masked_lm: MaskedLM, batch: Batch, full_hidden: Tensor, masked: Tensor, meter: AnswerMetrics, part: slice
) -> None:
    """Evaluate the answers of a batch at the position that they follow."""
    if batch.answers is None:
        return
    at = batch.before_answers
    logp = log_probabilities(torch.cat([full_hidden[None, at], masked[:, at]]), masked_lm.unembed)
    meter.update(logp, batch.answers, batch.wrong, part)


def _tabulate(meter: SubgraphMetrics, answer_meter: AnswerMetrics, n_groups: int) -> tuple[list[Row], Tensor]:
    """Rows of metrics, and KL and TV by group, of the subgraphs of the meters."""
    found = meter.compute() | (answer_meter.compute() if answer_meter.texts else {})
    # torchmetrics squeezes results of one element
    by_group = torch.stack([found.pop(name).view(-1, n_groups) for name in ("kl_by_group", "tv_by_group")])
    columns = {name: nan_to_none(values.reshape(-1).tolist()) for name, values in found.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], by_group


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


def nan_to_none(value: Any) -> Any:
    """A value with None in place of every NaN and infinity in its lists and dictionaries, since JSON has neither."""
    if isinstance(value, dict):
        return {key: nan_to_none(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [nan_to_none(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
