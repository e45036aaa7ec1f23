"""Texts that have an answer: is the right one preferred, and how much of that does a subgraph keep?"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from masklearn.sizes import MIB_FRACTIONS


class AnswerMetrics(Metric):
    """Means over texts that have answers, for K subgraphs side by side, at the last token of each.

    `compute` gives tensors of shape (K,): `logit_diff`, the mean logit of the right answers' tokens minus that of the
    wrong ones' (NaN where no text has wrong ones); `prob_diff`, the probability of all right ones minus that of all
    wrong ones; `accuracy`, the share of texts where a right one is above all wrong ones, or, where there are none,
    above all tokens. And the same of the full model, for all alike: `full_logit_diff` and so on.
    """

    full_state_update = False
    texts: Tensor
    contrasted: Tensor

    def __init__(self, n_masks: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("logit_diff", "prob_diff", "accuracy"):
            self.add_state(name, torch.zeros(1 + n_masks, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("texts", "contrasted"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logp: Tensor, answers: Tensor, wrong: Tensor | None) -> None:
        """Take in some texts.

        Args:
            logp: Log-probabilities after their last token, those of the full model first, shape (1 + K, texts,
                vocabulary).
            answers: Tokens that are right, -1 where there are no more, shape (texts, answers); texts without are left
                out.
            wrong: Tokens that are wrong, the same; None where there are none at all.
        """
        wrong = torch.full_like(answers[:, :1], -1) if wrong is None else wrong
        asked = (answers >= 0).any(-1)
        logp, answers, wrong = logp[:, asked], answers[asked], wrong[asked]
        right, of_wrong = _at(logp, answers), _at(logp, wrong)  # (1 + K, texts, answers), NaN where there are none
        contrasted = (wrong >= 0).any(-1)
        difference = right.nanmean(-1) - of_wrong.nanmean(-1)
        self.logit_diff += difference[:, contrasted].double().sum(-1)
        self.prob_diff += (right.exp().nansum(-1) - of_wrong.exp().nansum(-1)).double().sum(-1)
        rival = torch.where(contrasted, of_wrong.nan_to_num(nan=-torch.inf).amax(-1), logp.amax(-1))
        best = right.nan_to_num(nan=-torch.inf).amax(-1)
        self.accuracy += torch.where(contrasted, best > rival, best >= rival).double().sum(-1)
        self.texts += len(answers)
        self.contrasted += contrasted.sum()

    def compute(self) -> dict[str, Tensor]:
        counts = {"logit_diff": self.contrasted, "prob_diff": self.texts, "accuracy": self.texts}
        means = {name: getattr(self, name) / count for name, count in counts.items()}
        of_full = {f"full_{name}": mean[:1].expand(len(mean) - 1) for name, mean in means.items()}
        return {name: mean[1:] for name, mean in means.items()} | of_full


def _at(logp: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of some tokens (texts, tokens), NaN at -1: shape (K, texts, tokens)."""
    found = logp.gather(-1, tokens.clamp(min=0).expand(len(logp), -1, -1))
    return found.masked_fill(tokens < 0, torch.nan)


def faithfulness(row: dict[str, Any], empty: dict[str, Any]) -> float | None:
    """`(m(S) - m(empty)) / (m(full) - m(empty))`, m the logit difference, or the probability difference without wrong
    answers; None where the full model does as the empty one.

    Args:
        row: A subgraph's metrics.
        empty: Those of the subgraph without a node, under the same ablation.
    """
    name = "prob_diff" if row["logit_diff"] is None else "logit_diff"
    whole = row[f"full_{name}"] - empty[name]
    return (row[name] - empty[name]) / whole if whole else None


def areas(sizes: Sequence[int], faithful: Sequence[float], n_nodes: int) -> dict[str, Any]:
    """CPR, the area under faithfulness against the share of nodes kept, and CMD, the area between it and 1.

    By the trapezoid rule: at MIB's ten fractions, where the sizes are theirs (`--model.sizes mib`), and otherwise at
    all sizes, from no node, whose faithfulness is 0, to every node, whose faithfulness is 1.

    Args:
        sizes: Nodes kept.
        faithful: The faithfulness of each.
        n_nodes: Nodes in all.

    Returns:
        `cpr`, `cmd`, and `over`, which is mib or sizes.
    """
    known = {0: 0.0, **dict(zip(sizes, faithful, strict=True)), n_nodes: 1.0}
    of_mib = [int(fraction * n_nodes) for fraction in MIB_FRACTIONS]
    if set(of_mib) <= set(known):
        curve = [(fraction, known[size]) for fraction, size in zip(MIB_FRACTIONS, of_mib, strict=True)]
    else:
        curve = [(size / n_nodes, known[size]) for size in sorted(known)]
    pieces = [(x1 - x0, y0, y1) for (x0, y0), (x1, y1) in pairwise(curve)]
    cpr = sum(width * (y0 + y1) / 2 for width, y0, y1 in pieces)
    cmd = sum(width * (abs(1 - y0) + abs(1 - y1)) / 2 for width, y0, y1 in pieces)
    return {"cpr": cpr, "cmd": cmd, "over": "mib" if set(of_mib) <= set(known) else "sizes"}
