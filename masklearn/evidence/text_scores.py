"""What subgraphs do on every single text: their KL from the full model, and their score."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masklearn.data import Batch
from masklearn.evaluation.measure import ScoredPositions, forward_parts
from masklearn.masking import MaskedLM
from masklearn.objective import chunks, kl_divergence, log_probabilities
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
    gates, batches = masks.float().to(masked_lm.device), list(batches)
    results = list[tuple[Tensor, Tensor]]()
    work = [(batch, part) for batch in batches for part in forward_parts(len(gates), batch, masked_lm.device)]
    kind = score_name(batches)
    full, on_device, of_batch = None, None, list[tuple[Tensor, Tensor]]()
    for batch, part in bar(work, phase):
        if full is None or on_device is None or not part.start:
            on_device = batch.to(masked_lm.device)
            full = ScoredPositions.of(masked_lm, on_device, torch.zeros_like(on_device.group))
            of_batch = [_score(masked_lm, on_device, full, full.hidden[None], kind)]
        rows = gates[part, None].expand(-1, len(on_device.input_ids), -1)
        masked = masked_lm(on_device.input_ids, on_device.scored, rows, on_device.corrupted)
        of_batch.append(_score(masked_lm, on_device, full, masked, kind))
        if part.stop == len(gates):
            kl, score = (torch.cat(column) for column in zip(*of_batch, strict=True))
            results.append((kl[1:], score))
    kl, score = (torch.cat(column, -1) for column in zip(*results, strict=True))
    return TextScores(kl, score[1:], score[0], kind)


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
        kl, n_texts = list[Tensor](), len(batch.input_ids)
        for part in forward_parts(len(masks), batch, masked_lm.device):
            gates = torch.stack([masks[part], others[part]]).flatten(0, 1).float().to(masked_lm.device)
            rows = gates[:, None].expand(-1, n_texts, -1)
            hidden = masked_lm(batch.input_ids, batch.scored, rows, batch.corrupted).unflatten(0, (2, -1))
            kl.append(_kl_of_pairs(masked_lm, hidden))
        found.append(_mean_by_text(torch.cat(kl), batch.input_of_positions, n_texts))
    return torch.cat(found, -1)


def _kl_of_pairs(masked_lm: MaskedLM, hidden: Tensor) -> Tensor:
    """KL between last hidden states (2, K, positions, width), shape (K, positions)."""
    parts = chunks(hidden[0, 0], 2 * hidden.shape[1], masked_lm.unembed)
    logp = (log_probabilities(hidden[:, :, part], masked_lm.unembed) for part in parts)
    return torch.cat([kl_divergence(first, second) for first, second in logp], -1)


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
    for chunk in chunks(full.hidden, len(masked), masked_lm.unembed):
        full_logp = log_probabilities(full.hidden[chunk], masked_lm.unembed)
        masked_logp = log_probabilities(masked[:, chunk], masked_lm.unembed)
        kl.append(kl_divergence(full_logp, masked_logp))
        token = full.next_token[chunk].clamp(min=0)[None, :, None].expand(len(masked), -1, -1)
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
