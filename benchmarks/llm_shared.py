"""One mask for all texts on real language models: learned, and by rivals at equal scored tokens, on held-out text."""

from collections.abc import Callable, Sequence

import torch
from learned_bank import Rows, learn_bank, mean_kl
from rivals import MiniBatches, mattr, uniform_gradient_sampling
from setting import Setting
from torch import Tensor

from masklearn.ablation import AblationName
from masklearn.gates import top
from masklearn.selection.attribution import integrated_gradients, single_ablation
from masklearn.selection.polish import polish
from masklearn.selection.scorer import MaskScorer
from masklearn.selection.search import greedy
from masklearn.training.cost import learning_tokens

SHARED_RIVALS = ("mattr, uniform sizes", "integrated gradients", "single ablation", "random")
"""Rivals that are run unless others are named."""


def llm_shared(
    setting: Setting,
    texts: int,
    sizes: str | list[int | float],
    max_length: int,
    ablation: AblationName,
    steps: int | None,
    batch_size: int,
    rivals: Sequence[str],
    with_greedy: bool,
) -> Rows:
    """KL on held-out text of masks that all texts share; every rival scores as many tokens as the learned bank.

    Rivals that descend take the same batches of training texts; scores that need no steps, and polish, take the texts
    that select masks. Each row is the scores alone, or a third of the tokens for scores and the rest for polish.
    """
    model = {"sizes": sizes, "steps": steps, "ablation": ablation}
    data = {"limit": texts, "positions": "all", "max_length": max_length, "batch_size": batch_size}
    bank = learn_bank(setting, model, **data)
    selection, test, learner = bank.scorer("selection"), bank.scorer("test"), bank.learner
    learning = learning_tokens(bank.data, learner.plan, learner.settings.rows_per_text, range(1))
    total = learning * (1 + (learner.settings.polish_budget or 0.0))
    counts, rows = torch.tensor(learner.sizes)[:, None], Rows()

    def add(name: str, masks: Tensor, tokens: float) -> None:
        row = {"masks": name, "tokens": tokens, "KL": mean_kl(test, masks), "on selection": mean_kl(selection, masks)}
        rows.append(row)
        print(name, f"{tokens:.0f}", *(f"{value:.4g}" for value in row["KL"]), flush=True)

    add("learned, cut", top(bank.mask.scores[:, 0], counts), learning)
    add("learned, polished", bank.masks, total)
    batches = MiniBatches([MaskScorer(learner.masked_lm, [batch]) for batch in bank.data.loader("train")])
    for name, find in _rivals(selection, batches, learner.graph.n_nodes).items():
        if name in rivals:
            add(name, top(find(total), counts), total)
            before = batches.spent + selection.tokens.spent
            scores = find(learning)
            left = total - (batches.spent + selection.tokens.spent - before)
            start, rounds = top(scores, counts), learner.settings.polish
            masks = polish(selection, start, scores.expand(len(counts), -1, -1), rounds, budget=left)[0]
            add(f"{name}, polished", masks, total)
    if with_greedy:
        before = selection.tokens.spent
        masks = greedy(selection, learner.sizes, learner.graph.n_nodes)
        add("greedy", masks, selection.tokens.spent - before)
    for row in rows:
        row["learned over it"] = [learned / kl for learned, kl in zip(rows[1]["KL"], row["KL"], strict=True)]
    return rows


def _rivals(selection: MaskScorer, batches: MiniBatches, n_nodes: int) -> dict[str, Callable[[float], Tensor]]:
    """Scores of all nodes, shape (1, nodes), found with so many scored tokens."""

    def steps(tokens: float) -> int:
        return max(1, int(tokens / batches.tokens_per_step))

    return {
        "mattr, uniform sizes": lambda tokens: mattr(batches, n_nodes, steps(tokens), log_sizes=False),
        "mattr, log sizes": lambda tokens: mattr(batches, n_nodes, steps(tokens), log_sizes=True),
        "ugs": lambda tokens: uniform_gradient_sampling(batches, n_nodes, steps(tokens)),
        "integrated gradients": lambda tokens: integrated_gradients(selection),
        "single ablation": lambda tokens: single_ablation(selection, n_nodes),
        "random": lambda tokens: torch.rand(1, n_nodes, generator=torch.Generator().manual_seed(0)),
    }
