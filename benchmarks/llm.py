"""Masks of single texts on real language models: learned, by rivals for as many scored tokens, and by greedy search."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from learned_bank import LearnedBank, Rows, learn_bank
from rivals import GRADIENT_TOKENS, RivalName, rivals
from setting import Setting
from timing import now
from torch import Tensor

from masklearn.ablation import AblationName
from masklearn.data.positions import Positions
from masklearn.gates import top
from masklearn.selection.polish import PER_INPUT, polish
from masklearn.selection.scorer import MaskScorer
from masklearn.selection.search import greedy, swap

MIN_KL = 1e-9
"""KL in nats that ratios take as the least."""


@dataclass(frozen=True)
class LlmSettings:
    """How `llm` and `llm_shared` measure.

    Args:
        tokens: Tokens of a text, at most.
        positions: Where texts that share masks are scored; a text with masks of its own is scored at its last token.
        held_out: File of further texts on which shared masks are compared, instead of the test split.
        dtype: Dtype of the model, as `--model.dtype`.
        ablation: Ablation of closed nodes.
        steps: Steps of learning; by default those of a run.
        polish_budget: Most tokens of polish, as a multiple of those of learning.
        batch_size: Texts of the steps of shared masks.
        rivals: Which rivals to meet; by default all for masks of single texts, and four for shared masks.
        with_greedy: Whether greedy elimination runs, which takes longer than all rivals.
        with_swap: Whether swap search from greedy's masks follows, until no exchange of two nodes gains.
    """

    tokens: int = 64
    positions: Positions = "all"
    held_out: Path | None = None
    dtype: str = "float32"
    ablation: AblationName = "zero"
    steps: int | None = None
    polish_budget: float = 2.0
    batch_size: int = 16
    rivals: tuple[RivalName, ...] | None = None
    with_greedy: bool = True
    with_swap: bool = False

    @property
    def model(self) -> dict[str, Any]:
        """Settings of the learner."""
        budget = {"steps": self.steps, "polish_budget": self.polish_budget}
        return {"ablation": self.ablation, "dtype": self.dtype} | budget


def llm(
    setting: Setting,
    texts: int,
    sizes: str | list[int | float],
    settings: LlmSettings,
) -> Rows:
    """Masks of single texts at their last token. Ratios are geometric means over texts, learned over the row's masks.

    Every rival scores as many tokens as the learned bank: its scores alone, or its scores and then the same polish.
    """
    length = {"max_length": settings.tokens, "truncation": "left"}
    model = {"sizes": sizes, "scope": "input"} | settings.model
    bank = learn_bank(setting, model, limit=texts, positions="last", **length)
    scorer, learner = bank.scorer("all"), bank.learner
    n_nodes, n_steps = learner.graph.n_nodes, learner.schedule.steps
    tokens_per_text = sum(scored.batch.input_ids.numel() for scored in scorer.batches)
    learning = GRADIENT_TOKENS * n_steps
    budget = learner.settings.polish_budget or 0.0
    learned_kl = scorer(bank.masks)
    table = _Table(scorer, bank, learned_kl)
    table.add(
        "learned, cut", top(bank.mask.scores[:, 0], torch.tensor(learner.sizes)[:, None]), learning, bank.learning
    )
    table.add("learned, polished", bank.masks, learning * (1 + budget), bank.seconds)
    fixed_cost = {"integrated gradients": 10 * GRADIENT_TOKENS, "single ablation": n_nodes, "random": 1}
    for name, find in rivals(scorer, scorer, n_nodes, settings.rivals).items():
        for with_polish in (False, True):
            start = now()
            cost = fixed_cost.get(name) or learning * (1 if with_polish else 1 + budget)
            masks = top(find(int(cost / GRADIENT_TOKENS)), torch.tensor(learner.sizes)[:, None])
            if with_polish:
                left = (learning * (1 + budget) - cost) * tokens_per_text
                scores = find(int(cost / GRADIENT_TOKENS)).expand(len(learner.sizes), -1, -1)
                masks = polish(scorer, masks, scores, learner.settings.polish, PER_INPUT, budget=left)[0]
                cost = learning * (1 + budget)
            table.add(f"{name}{', polished' if with_polish else ''}", masks, cost, now() - start)
    for name, masks, cost, seconds in searches(scorer, learner.sizes, n_nodes, settings):
        table.add(name, masks, cost / tokens_per_text, seconds)
    return table.rows


def searches(
    scorer: MaskScorer, sizes: Sequence[int], n_nodes: int, settings: LlmSettings
) -> Iterator[tuple[str, Tensor, float, float]]:
    """Name, masks (sizes, groups, nodes), scored tokens and seconds of the searches that are asked for."""
    if settings.with_greedy or settings.with_swap:
        before, start = scorer.tokens.spent, now()
        masks = greedy(scorer, sizes, n_nodes)
        yield "greedy", masks, scorer.tokens.spent - before, now() - start
        if settings.with_swap:
            masks = swap(scorer, masks)
            yield "swap", masks, scorer.tokens.spent - before, now() - start


class _Table:
    """The rows, printed as they come."""

    def __init__(self, scorer: MaskScorer, bank: LearnedBank, learned_kl: Tensor) -> None:
        self.scorer, self.sizes, self.learned_kl = scorer, bank.learner.sizes, learned_kl
        self.rows: Rows = []

    def add(self, name: str, masks: Tensor, cost: float, seconds: float) -> None:
        """A row of masks (sizes, groups, nodes) that cost so many scored tokens for each token of a text."""
        kl = self.scorer(masks)
        ratio = (self.learned_kl.clamp_min(MIN_KL) / kl.clamp_min(MIN_KL)).log().mean(1).exp()
        row = {"masks": name, "tokens": cost, "KL": kl.mean(1).tolist(), "learned over it": ratio.tolist()}
        row |= {"no worse on": (self.learned_kl <= kl * 1.0001).sum(1).tolist(), "seconds": seconds, "s": self.sizes}
        self.rows.append(row)
        print(name, f"{cost:.0f}", *(f"{v:.3g}" for v in row["KL"]), "|", *(f"{v:.2f}" for v in ratio), flush=True)
