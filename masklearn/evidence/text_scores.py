"""What subgraphs do on every single text: their KL from the full model, and their score."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masklearn.data import Batch
from masklearn.evaluation.measure import ScoredPositions, forward_parts
from masklearn.masking import MaskedLM, hidden_of_subgraphs, subgraph_groups
from masklearn.objective import kl_divergence, log_probabilities, logits_of_models
from masklearn.progress import ProgressBar, no_bar

LOG_PROBABILITY, LOGIT_DIFF, ANSWER = "log-probability of the next tokens", "logit difference", "answer log-probability"
"""Names of scores."""


@dataclass(frozen=True)
class TextScores:
    """Results of K subgraphs on each text, on the CPU in float64."""

    kl: Tensor
    """KL(full || subgraph), in nats a scored position, shape (K, texts)."""
    score: Tensor
    """How well a subgraph does on the text; NaN if nothing is known to follow. Shape (K, texts)."""
    full_score: Tensor
    """The same of the full model, shape (texts,)."""
    score_name: str

    @property
    def mean_kl(self) -> Tensor:
        """Mean over texts, shape (K,)."""
        return self.kl.mean(-1)

    def select(self, masks: slice) -> "TextScores":
        """The results of some of the subgraphs."""
        return TextScores(self.kl[masks], self.score[masks], self.full_score, self.score_name)


@torch.no_grad()
def score_texts(
    masked_lm: MaskedLM, masks: Tensor, batches: Iterable[Batch], bar: ProgressBar = no_bar, phase: str = "Texts"
) -> TextScores:
    """Run K subgraphs on some texts.

    The score of a text is its logit difference if it has right and wrong answers, the log-probability of its right
    answers if it has only these, and otherwise the mean log-probability of the tokens that follow scored positions.

    Args:
        masked_lm: The model, under the ablation that closed nodes get.
        masks: The subgraphs. Boolean, shape (K, nodes).
        batches: The texts; all of them are of one group.
        bar: Shows the progress.
        phase: What the progress is called.
    """
    batches, found = list(batches), list[tuple[Tensor, Tensor, Tensor]]()
    kind = score_name(batches)
    work = [(batch, group) for batch in batches for group in subgraph_groups(masked_lm, masks, batch.input_ids.numel())]
    of_batch, full, on_device = None, None, None
    for batch, group in bar(work, phase):
        if batch is not of_batch or full is None or on_device is None:
            of_batch, on_device = batch, batch.to(masked_lm.device)
            full = ScoredPositions.of(masked_lm, on_device, torch.zeros_like(on_device.group))
            full_score = _score(masked_lm, on_device, full, full.hidden[None], kind)[1][0]
            kl, score = (torch.empty(len(masks), len(full_score), dtype=torch.float64) for _ in range(2))
            found.append((kl, score, full_score))
        inputs = on_device.input_ids, on_device.scored, on_device.corrupted
        masked, (kl, score, _) = hidden_of_subgraphs(masked_lm, masks[group], *inputs), found[-1]
        for part in forward_parts(len(group), batch, masked_lm.device):
            kl[group[part]], score[group[part]] = _score(masked_lm, on_device, full, masked[part], kind)
    kl, score, full_score = (torch.cat(column, -1) for column in zip(*found, strict=True))
    return TextScores(kl, score, full_score, kind)


@torch.no_grad()
def kl_between(masked_lm: MaskedLM, masks: Tensor, others: Tensor, batches: Iterable[Batch]) -> Tensor:
    """KL(subgraph || other subgraph) of K pairs, in nats, mean over the scored positions of each text.

    Args:
        masked_lm: The model, under the ablation that closed nodes get.
        masks: The first of each pair. Boolean, shape (K, nodes).
        others: The second, likewise.
        batches: The texts; all of them are of one group.

    Returns:
        On the CPU in float64, shape (K, texts).
    """
    found = list[Tensor]()
    for batch in (batch.to(masked_lm.device) for batch in batches):
        kl = torch.empty(len(masks), len(batch.input_of_positions), device=masked_lm.device)
        for pairs in subgraph_groups(masked_lm, others, 2 * batch.input_ids.numel()):
            both, inputs = torch.cat([masks[pairs], others[pairs]]), (batch.input_ids, batch.scored, batch.corrupted)
            hidden = hidden_of_subgraphs(masked_lm, both, *inputs).unflatten(0, (2, -1))
            kl[pairs] = _kl_of_pairs(masked_lm, hidden)
        found.append(_mean_by_text(kl, batch.input_of_positions, len(batch.input_ids)))
    return torch.cat(found, -1)


def _kl_of_pairs(masked_lm: MaskedLM, hidden: Tensor) -> Tensor:
    """KL between last hidden states (2, K, positions, width), shape (K, positions)."""
    found = logits_of_models(hidden.flatten(0, 1), masked_lm.unembed)
    pairs = (logits.float().log_softmax(-1).unflatten(0, (2, -1)) for _, logits in found)
    return torch.cat([kl_divergence(first, second) for first, second in pairs], -1)


def score_name(batches: Sequence[Batch]) -> str:
    """What the score of these texts is; texts that lack what others have are not scored."""
    if any(batch.wrong is not None for batch in batches):
        return LOGIT_DIFF
    return ANSWER if any(batch.answers is not None for batch in batches) else LOG_PROBABILITY


def _score(
    masked_lm: MaskedLM, batch: Batch, full: ScoredPositions, masked: Tensor, kind: str
) -> tuple[Tensor, Tensor]:
    """KL and score of last hidden states (K, positions, width) on every text, each of shape (K, texts)."""
    n_texts, text = len(batch.input_ids), batch.input_of_positions
    follows = full.next_token >= 0
    kl, logp = list[Tensor](), list[Tensor]()
    for at, logits in logits_of_models(torch.cat([full.hidden[None], masked]), masked_lm.unembed):
        full_logp, masked_logp = logits.float().log_softmax(-1).split([1, len(masked)])
        kl.append(kl_divergence(full_logp, masked_logp))
        token = full.next_token[at].clamp(min=0)[None, :, None].expand(len(masked), -1, -1)
        logp.append(masked_logp.gather(-1, token)[..., 0])
    kl_of_text = _mean_by_text(torch.cat(kl, -1), text, n_texts)
    if kind == LOG_PROBABILITY:
        return kl_of_text, _mean_by_text(torch.cat(logp, -1)[:, follows], text[follows], n_texts)
    if batch.answers is None or (kind == LOGIT_DIFF and batch.wrong is None):
        return kl_of_text, torch.full_like(kl_of_text, torch.nan)
    logp_of_answers = log_probabilities(masked[:, batch.before_answers], masked_lm.unembed)
    right = _mean_of_tokens(logp_of_answers, batch.answers)
    return kl_of_text, right if batch.wrong is None else right - _mean_of_tokens(logp_of_answers, batch.wrong)


def _mean_of_tokens(logp: Tensor, tokens: Tensor) -> Tensor:
    """Mean log-probability of tokens (texts, tokens), which are filled up with -1; NaN where there is none."""
    values = logp.gather(-1, tokens.clamp(min=0).expand(len(logp), -1, -1)).double()
    return values.masked_fill(tokens < 0, torch.nan).nanmean(-1).cpu()


def _mean_by_text(values: Tensor, text: Tensor, n_texts: int) -> Tensor:
    """Means over the positions of every text: (K, positions) to (K, texts); NaN where there are none."""
    total = torch.zeros(len(values), n_texts, dtype=torch.float64, device=values.device)
    count = torch.bincount(text, minlength=n_texts)
    return (total.index_add(1, text, values.double()) / count).cpu()
