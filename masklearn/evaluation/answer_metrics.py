"""Metrics of texts that have answers: whether a subgraph prefers the right one, and how much of that it keeps."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

COUNTED_BY = {"logit_diff": "contrasted", "prob_diff": "texts", "accuracy": "texts", "answer_top1": "texts"}
"""The metrics, and which texts each is a mean over."""


class AnswerMetrics(Metric):
    """Means over texts that have answers, for K subgraphs side by side, at the position that each answer follows.

    `compute` returns tensors of shape (K,):

    - `logit_diff`: mean logit of the right answers' tokens minus that of the wrong ones'; NaN without wrong ones;
    - `prob_diff`: probability of all right answers minus that of all wrong ones;
    - `accuracy`: fraction of texts where a right answer is more probable than all wrong ones or, if there are none,
      than all tokens;
    - `answer_top1`: fraction of texts where the most probable of all tokens is a right answer.

    And the same of the full model, repeated K times: `full_logit_diff`, `full_prob_diff`, `full_accuracy`, and
    `full_answer_top1`.
    """

    full_state_update = False
    texts: Tensor
    """Number of texts with answers."""
    contrasted: Tensor
    """Number of texts with right and wrong answers."""

    def __init__(self, n_masks: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in COUNTED_BY:
            self.add_state(name, torch.zeros(1 + n_masks, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("texts", "contrasted"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logp: Tensor, answers: Tensor, wrong: Tensor | None, masks: slice = slice(None)) -> None:
        """Add a batch of texts.

        Args:
            logp: Log-probabilities after the last token, the full model's first, then those of the subgraphs in
                `masks`. Shape (1 + masks, texts, vocabulary).
            answers: Tokens of the right answers, filled up with -1. Shape (texts, answers). Texts without are ignored.
            wrong: Tokens of the wrong answers, likewise; None if no text has any.
            masks: Which of the K subgraphs these are. The full model is evaluated along with the first of them.
        """
        first = not masks.start
        wrong = torch.full_like(answers[:, :1], -1) if wrong is None else wrong
        has_answer = (answers >= 0).any(-1)
        logp, answers, wrong = logp[:, has_answer], answers[has_answer], wrong[has_answer]
        right, rival = _of_tokens(logp, answers, 0.0), _of_tokens(logp, wrong, 0.0)  # (1 + K, texts, answers)
        contrasted = (wrong >= 0).any(-1)
        difference = right.sum(-1) / (answers >= 0).sum(-1) - rival.sum(-1) / (wrong >= 0).sum(-1)
        prob_diff = _of_tokens(logp.exp(), answers, 0.0).sum(-1) - _of_tokens(logp.exp(), wrong, 0.0).sum(-1)
        best = _of_tokens(logp, answers, -torch.inf).amax(-1)
        best_rival = torch.where(contrasted, _of_tokens(logp, wrong, -torch.inf).amax(-1), logp.amax(-1))
        accurate, first_of_all = torch.where(contrasted, best > best_rival, best >= best_rival), best >= logp.amax(-1)
        values = {"logit_diff": difference[:, contrasted], "prob_diff": prob_diff}
        values |= {"accuracy": accurate, "answer_top1": first_of_all}
        for name, of_texts in values.items():
            total: Tensor = getattr(self, name)
            sums = of_texts.double().sum(-1)
            total[1:][masks] += sums[1:]
            total[:1] += sums[:1] * first
        self.texts += len(answers) * first
        self.contrasted += contrasted.sum() * first

    def compute(self) -> dict[str, Tensor]:
        """The means by name, see the class."""
        means = {name: getattr(self, name) / getattr(self, texts) for name, texts in COUNTED_BY.items()}
        full = {f"full_{name}": mean[:1].expand(len(mean) - 1) for name, mean in means.items()}
        return {name: mean[1:] for name, mean in means.items()} | full


def _of_tokens(values: Tensor, tokens: Tensor, filler: float) -> Tensor:
    """Values (1 + K, texts, vocabulary) of tokens (texts, tokens), and a filler at -1: (1 + K, texts, tokens)."""
    return values.gather(-1, tokens.clamp(min=0).expand(len(values), -1, -1)).masked_fill(tokens < 0, filler)


def faithfulness(row: dict[str, Any], empty: dict[str, Any]) -> float | None:
    """`(m(S) - m(empty)) / (m(full) - m(empty))`, with the logit difference as m.

    Without wrong answers, m is the probability difference. None if m(full) equals m(empty), or if one of the three
    is None, since an output is not finite.

    Args:
        row: Metrics of the subgraph S.
        empty: Metrics of the model without nodes, under the same ablation: see `bank_report`.
    """
    name = "prob_diff" if row["full_logit_diff"] is None else "logit_diff"
    of_row, of_full, of_empty = row[name], row[f"full_{name}"], empty[name]
    if of_row is None or of_full is None or of_empty is None or of_full == of_empty:
        return None
    return (of_row - of_empty) / (of_full - of_empty)


def areas(curve: Sequence[tuple[float, float]]) -> dict[str, float]:
    """CPR, the area under faithfulness against the fraction of nodes kept, and CMD, the area between it and 1.

    By the trapezoid rule. Source: Mueller et al. 2025 (arXiv 2504.13151).

    Args:
        curve: Fractions of the nodes, ascending, and the faithfulness at each.
    """
    trapezoids = [(x1 - x0, y0, y1) for (x0, y0), (x1, y1) in pairwise(curve)]
    return {
        "cpr": sum(width * (y0 + y1) / 2 for width, y0, y1 in trapezoids),
        "cmd": sum(width * (abs(1 - y0) + abs(1 - y1)) / 2 for width, y0, y1 in trapezoids),
    }
