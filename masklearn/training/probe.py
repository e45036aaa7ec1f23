"""Tried before it is spent: what memory a step needs, and how long polish takes for a token."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from masklearn.data import MaskData
from masklearn.masking import MaskedLM, free_everywhere
from masklearn.selection.polish import polish
from masklearn.selection.scorer import MaskScorer
from masklearn.training.block_learner import BlockLearner
from masklearn.training.memory import ACTIVATION_SHARE, bytes_per_row
from masklearn.training.settings import LearnerSettings

SOFT_MASKS = 4
"""Soft gate vectors that are scored together to time them."""


def what_fits(masked_lm: MaskedLM, data: MaskData, settings: LearnerSettings) -> str:
    """What would make a step of one text fit into the memory that is free now; empty if it fits.

    Returns:
        What is needed, what is free, and the flags that would do.
    """
    n_tokens, free = data.longest_text, ACTIVATION_SHARE * free_everywhere(masked_lm)
    per_row = bytes_per_row(masked_lm, n_tokens)
    needed = settings.rows_per_text * per_row
    if needed <= free:
        return ""
    n_draws, fitting = int(free / per_row / settings.restarts), n_tokens // 2
    while fitting > 1 and settings.rows_per_text * bytes_per_row(masked_lm, fitting) > free:
        fitting //= 2
    flags = [f"--data.max_length {fitting}"] if fitting > 1 else []
    flags += [f"--model.draws {n_draws}"] if n_draws else []
    return (
        f"a text of {n_tokens} tokens in {settings.rows_per_text} rows needs about {needed / 2**30:.1f} GiB, and "
        f"{free / 2**30:.1f} GiB may be used. What would fit: {' or '.join(flags) or 'a machine with more memory'}"
    )


def seconds_per_scored_token(learner: BlockLearner, limit: float) -> tuple[float, float]:
    """Seconds that discretisation and polish take for a token, from a short polish of the masks that gates give now.

    Args:
        learner: The learner, during a step. Nothing in it changes.
        limit: Tokens that the polish scores, about.

    Returns:
        Seconds a token where gates are soft, as in most of discretisation; and in polish.
    """
    plan, settings = learner.plan, learner.settings
    groups = plan.blocks[plan.at(learner.global_step)[0]]
    batch = next(iter(learner.finisher.selection_loader(groups)))
    present = sorted(set(batch.group.tolist()), key=groups.index)
    rows = [groups.index(group) * settings.restarts for group in present]
    mean = sum(learner.sizes) / len(learner.sizes)  # the more nodes are open, the longer a forward takes
    index = min(range(len(learner.sizes)), key=lambda i: abs(learner.sizes[i] - mean))
    masks = learner.bank.discretize(learner.size_counts)[rows, index]
    scores = learner.bank.log_odds.detach()[rows, min(index, learner.bank.log_odds.shape[1] - 1)]
    scorer = MaskScorer(learner.masked_lm, [batch], present, settings.objective, forward=learner.score_rows)
    soft = torch.full((min(len(learner.sizes), SOFT_MASKS), *masks.shape), 0.5, device=scorer.device)

    def seconds_per_token(work: Callable[[], Tensor], uncounted: int = 0) -> float:
        scorer.tokens.spent, start = 0.0, time.monotonic()
        work().sum().item()  # a GPU is done only now
        return (time.monotonic() - start) / (scorer.tokens.spent + uncounted)

    def short_polish() -> Tensor:
        return polish(scorer, masks[None], scores[None], settings.polish, settings.search_widths, budget=limit)[1]

    for first_of_its_shape in (lambda: scorer(soft), short_polish):  # takes longer: it allocates, or compiles
        first_of_its_shape()
    first_masks = batch.input_ids.numel()  # which polish scores before it counts
    return seconds_per_token(lambda: scorer(soft)), seconds_per_token(short_polish, first_masks)
