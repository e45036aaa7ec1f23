"""What evidence will cost, before it is gathered."""

import time
from dataclasses import dataclass

import torch

from masklearn.evidence.bench import Bench
from masklearn.evidence.completeness import ADVERSARY_TEXTS, n_adversary_masks
from masklearn.evidence.gather import Sources
from masklearn.evidence.rediscovery import Rediscoverer
from masklearn.evidence.text_scores import score_texts

N_PROBED = 8
"""Subgraphs by which the time is estimated."""
N_LEARNED_CONTROLS = 2
"""Controls that are learned, besides those of other tasks."""


@dataclass(frozen=True)
class EvidenceCost:
    """Expected cost by kind of work."""

    tokens: dict[str, float]
    """Tokens that are scored: a forward counts one, a backward two."""
    seconds_per_token: float

    @property
    def seconds(self) -> float:
        """All of it, in seconds."""
        return self.seconds_per_token * sum(self.tokens.values())


def expected_cost(bench: Bench, again: Rediscoverer, sources: Sources) -> EvidenceCost:
    """Estimate the cost, from a few subgraphs on one batch; rediscoveries that are kept cost nothing.

    Args:
        bench: The bank.
        again: Learns its masks again.
        sources: What is learned and evaluated.
    """
    sizes, n_nodes, plan = bench.mask.sizes.tolist(), bench.mask.graph.n_nodes, bench.plan
    of_test, n_selection = bench.held_out_tokens(), ADVERSARY_TEXTS * bench.data.longest_text * len(bench.mask.groups)
    n_pairs = sum(min(s, plan.pairs) * (min(s, plan.pairs) - 1) / 2 + s for s in sizes)
    one = again.learning_tokens * (1 + plan.polish_budget)
    kept = sum(again.is_kept(variant) for variant in sources.variants)
    n_controls = N_LEARNED_CONTROLS + len(sources.other_tasks)
    n_texts = 3 + len(sources.other_texts) + len(sources.checkpoints)
    tokens = {
        "tests": of_test * len(sizes) * (2 + 2 * plan.draws + n_nodes),
        "rediscoveries": one * (len(sources.variants) - kept),
        "controls": (n_controls + plan.polish_budget) * one + of_test * len(sizes) * 20,
        "completeness": 2 * n_selection * sum(map(n_adversary_masks, sizes)) + of_test * n_pairs,
        "transfer": of_test * len(sizes) * 11 * n_texts,
    }
    batch, masks = bench.texts(0)[0], torch.rand(N_PROBED, n_nodes) < 0.5
    score_texts(bench.masked_lm, masks, [batch])  # warms up
    start = time.monotonic()
    score_texts(bench.masked_lm, masks, [batch])
    seconds = time.monotonic() - start
    return EvidenceCost(tokens, seconds / (batch.input_ids.numel() * (N_PROBED + 1)))
