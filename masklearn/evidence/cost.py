"""What evidence will cost, before it is gathered."""

import time
from dataclasses import dataclass

import torch

from masklearn.errors import UserError
from masklearn.evidence.bench import Bench
from masklearn.evidence.completeness import ADVERSARY_TEXTS, n_adversary_masks
from masklearn.evidence.rediscovery import Rediscoverer, shuffled_variant
from masklearn.evidence.sources import Sources
from masklearn.evidence.text_scores import score_texts

N_PROBED = 8
"""Subgraphs by which the time is estimated."""
N_LEARNED_CONTROLS = 2
"""Controls that are learned, besides those of other tasks: on shuffled texts, and on an untrained model."""


@dataclass(frozen=True)
class EvidenceCost:
    """Expected cost by part of the evidence."""

    tokens: dict[str, float]
    """Tokens that are scored: a forward counts one, a backward two."""
    seconds_per_token: float

    @property
    def seconds(self) -> float:
        """All of it, in seconds."""
        return self.seconds_per_token * sum(self.tokens.values())


def expected_cost(bench: Bench, again: Rediscoverer, sources: Sources) -> EvidenceCost:
    """Estimate the cost, from a few subgraphs on one batch; what is kept costs nothing.

    Args:
        bench: The bank.
        again: Learns its masks again.
        sources: What is learned and evaluated.
    """
    n_sizes, n_nodes, plan = len(bench.mask.sizes), bench.mask.graph.n_nodes, bench.plan
    groups, n_selection = range(len(bench.mask.groups)), ADVERSARY_TEXTS * bench.data.longest_text
    of_texts = [bench.held_out_tokens(group) for group in groups]
    one = again.learning_tokens * (1 + plan.polish_budget)
    n_new = sum(not again.is_kept(variant) for variant in sources.variants)
    n_controls = sum(not again.is_kept(variant) for variant in sources.other_tasks.values())
    n_controls += N_LEARNED_CONTROLS * (not _shuffled_is_kept(bench, again))
    controls = [group for group in groups if not bench.kept.has(f"controls-{group}")]
    targets = [*sources.other_texts, *sources.checkpoints]
    transfers = [f"transfer-{g}-{target.digest}" for g in groups for target in targets]
    n_transfers = sum(not bench.kept.has(name) for name in transfers)
    n_within = sum(3 * (not bench.kept.has(f"transfer-{g}")) for g in groups)
    tokens = {
        "tests": sum(of_texts[g] * (2 + 2 * plan.draws + n_nodes) for g, _ in _left(bench, "tests")),
        "stability": one * n_new,
        "controls": one * (n_controls + plan.polish_budget * len(controls) / len(groups))
        + sum(of_texts[g] * n_sizes * 20 for g in controls),
        "completeness": sum(2 * n_selection * n_adversary_masks(s) for _, s in _left(bench, "completeness"))
        + sum(of_texts[g] * _n_pair_masks(s, plan.pairs) for g, s in _left(bench, "pairs")),
        "transfer": sum(of_texts) / len(groups) * n_sizes * 11 * (n_transfers + n_within),
    }
    batch, masks = bench.texts(0)[0], torch.rand(N_PROBED, n_nodes) < 0.5
    score_texts(bench.masked_lm, masks, [batch])  # warms up
    start = time.monotonic()
    score_texts(bench.masked_lm, masks, [batch])
    seconds = time.monotonic() - start
    tokens = {kind: n for kind, n in tokens.items() if kind in plan.parts}
    return EvidenceCost(tokens, seconds / (batch.input_ids.numel() * (N_PROBED + 1)))


def _shuffled_is_kept(bench: Bench, again: Rediscoverer) -> bool:
    """Whether the control of shuffled texts is there; that of an untrained model is learned after it."""
    try:
        return again.is_kept(shuffled_variant(bench.plan))
    except UserError:  # these texts cannot be shuffled
        return False


def _left(bench: Bench, part: str) -> list[tuple[int, int]]:
    """The cells whose part is not kept."""
    return [(group, s) for group, s in bench.cells if not bench.kept.has(f"{part}-{group}-{s}")]


def _n_pair_masks(s: int, n_strongest: int) -> float:
    """Subgraphs that are run for the pairs of a circuit of `s` nodes."""
    n = min(s, n_strongest)
    return n * (n - 1) / 2 + s
