"""One mask for all texts on real language models: learned, and by rivals at equal scored tokens, on held-out text."""

from typing import Any

import torch
from learned_bank import Rows, learn_bank, mean_kl
from llm import LlmSettings, searches
from rivals import MiniBatches, rivals
from setting import Setting
from timing import now
from torch import Tensor

from masklearn.gates import top
from masklearn.selection.polish import polish
from masklearn.selection.scorer import MaskScorer
from masklearn.training.cost import learning_tokens

SHARED_RIVALS = "mattr, uniform sizes", "integrated gradients", "single ablation", "random"
"""The rivals by default."""


def llm_shared(
    setting: Setting,
    texts: int,
    sizes: str | list[int | float],
    settings: LlmSettings,
) -> Rows:
    """KL on held-out text of masks that all texts share; every rival scores as many tokens as the learned bank.

    Rivals that descend take the same batches of training texts; scores that need no steps, and polish, take the texts
    that select masks. Each row is the scores alone, or a third of the tokens for scores and the rest for polish.
    """
    model = {"sizes": sizes} | settings.model
    data: dict[str, Any] = {"max_length": settings.tokens, "batch_size": settings.batch_size}
    data["positions"] = settings.positions
    bank = learn_bank(setting, model, limit=texts, **data)
    selection, test, learner = bank.scorer("selection"), bank.scorer("test"), bank.learner
    if settings.held_out is not None:
        further = Setting(setting.lm, str(settings.held_out)).data(**data)
        further.setup("fit")
        test = MaskScorer(learner.masked_lm, further.loader("all"))
    learning = learning_tokens(bank.data, learner.plan, learner.settings.rows_per_text, range(1))
    total = learning * (1 + (learner.settings.polish_budget or 0.0))
    counts, rows = torch.tensor(learner.sizes)[:, None], Rows()

    def add(name: str, masks: Tensor, tokens: float, seconds: float) -> None:
        row = {"masks": name, "tokens": tokens, "seconds": seconds}
        row |= {"KL": mean_kl(test, masks), "on selection": mean_kl(selection, masks)}
        rows.append(row)
        print(name, f"{tokens:.0f}", *(f"{value:.4g}" for value in row["KL"]), flush=True)

    add("learned, cut", top(bank.mask.scores[:, 0], counts), learning, bank.learning)
    add("learned, polished", bank.masks, total, bank.seconds)
    batches = MiniBatches([MaskScorer(learner.masked_lm, [batch]) for batch in bank.data.loader("train")])
    names = SHARED_RIVALS if settings.rivals is None else settings.rivals
    for name, find in rivals(selection, batches, learner.graph.n_nodes, names).items():
        start = now()
        add(name, top(find(batches.steps(total)), counts), total, now() - start)
        before, start = batches.spent + selection.tokens.spent, now()
        scores = find(batches.steps(learning))
        left = total - (batches.spent + selection.tokens.spent - before)
        masks = top(scores, counts)
        masks = polish(selection, masks, scores.expand_as(masks), learner.settings.polish, budget=left)[0]
        add(f"{name}, polished", masks, total, now() - start)
    for name, masks, tokens, seconds in searches(selection, learner.sizes, learner.graph.n_nodes, settings):
        add(name, masks, tokens, seconds)
    for row in rows:
        row["learned over it"] = [learned / kl for learned, kl in zip(rows[1]["KL"], row["KL"], strict=True)]
    return rows
