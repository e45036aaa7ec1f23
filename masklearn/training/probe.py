"""Tried before it is spent: what memory a step needs, and how long polish takes for a token."""

import time

from masklearn.data import MaskData
from masklearn.masking import MaskedLM
from masklearn.selection.polish import polish
from masklearn.selection.scorer import MaskScorer
from masklearn.training.block_learner import BlockLearner
from masklearn.training.memory import ACTIVATION_SHARE, bytes_per_row, free_bytes
from masklearn.training.settings import LearnerSettings


def what_fits(masked_lm: MaskedLM, data: MaskData, settings: LearnerSettings) -> str:
    """What would make a step of one text fit into the memory that is free now; empty if it fits.

    Returns:
        What is needed, what is free, and the flags that would do.
    """
    n_tokens, free = data.longest_text, ACTIVATION_SHARE * free_bytes(masked_lm.device)
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


def seconds_per_polish_token(learner: BlockLearner, limit: float) -> float:
    """Seconds that polish takes for a token, from a short polish of the masks that the gates give now.

    Args:
        learner: The learner, during a step. Nothing in it changes.
        limit: Tokens to score, about.
    """
    plan, settings = learner.plan, learner.settings
    groups = plan.blocks[plan.at(learner.global_step)[0]]
    batch = next(iter(learner.finisher.selection_loader(groups)))
    present = sorted(set(batch.group.tolist()), key=groups.index)
    rows = [groups.index(group) * settings.restarts for group in present]
    middle = len(learner.sizes) // 2
    masks = learner.bank.discretize(learner.size_counts)[rows, middle]
    scores = learner.bank.log_odds.detach()[rows, min(middle, learner.bank.log_odds.shape[1] - 1)]
    scorer = MaskScorer(learner.masked_lm, [batch], present)
    start = time.monotonic()
    kl = polish(scorer, masks[None], scores[None], settings.polish, not settings.per_input, budget=limit)[1]
    kl.sum().item()  # a GPU is done only now
    return (time.monotonic() - start) / (scorer.tokens.spent + batch.input_ids.numel())
