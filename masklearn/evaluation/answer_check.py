"""Whether the full model finds the answers of texts plausible at all: implausible ones are often read wrongly."""

import torch

from masklearn.data import MaskData
from masklearn.masking.masked_lm import MaskedLM
from masklearn.objective import log_probabilities

MAX_CHECKED_TEXTS = 64
"""Texts that are checked, of each group."""
MAX_RANK = 1000
"""An answer of a lower rank among the full model's next tokens is implausible; in small vocabularies, half of them."""


@torch.no_grad()
def implausible_answers(masked_lm: MaskedLM, data: MaskData) -> str:
    """A warning if most right answers neither occur in their text nor are plausible to the full model; else empty.

    Args:
        masked_lm: The model.
        data: The texts, set up.
    """
    if not any(text.answers for text in data.parts["all"].encoded):
        return ""
    n_checked = n_implausible = 0
    worst = 0
    for batch in data.loader("all", max_texts=MAX_CHECKED_TEXTS):
        batch = batch.to(masked_lm.device)
        if batch.answers is None:
            continue
        hidden = masked_lm.full(batch.input_ids, batch.positions[batch.before_answers])
        logp = log_probabilities(hidden, masked_lm.unembed)
        for row, answers, ids, real in zip(logp, batch.answers, batch.input_ids, batch.real, strict=True):
            answers = answers[answers >= 0]
            if not len(answers):
                continue
            rank = int((row > row[answers].max()).sum())
            n_checked += 1
            if rank >= min(MAX_RANK, len(row) // 2) and not torch.isin(answers, ids[real]).any():
                n_implausible, worst = n_implausible + 1, max(worst, rank)
    if n_implausible * 2 <= n_checked:
        return ""
    return (
        f"WARNING: in {n_implausible} of {n_checked} texts the right answer does not occur in the text, and the full "
        f"model ranks it below {min(MAX_RANK, masked_lm.unembed.vocabulary // 2)} other tokens (up to {worst}). Are "
        "these the answers meant? See the first text above; name their column with --data.answer_column"
    )
