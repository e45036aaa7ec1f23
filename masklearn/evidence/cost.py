"""What evidence will cost, before it is gathered."""

import time
from dataclasses import dataclass
from itertools import combinations

import torch

from masklearn import ranks
from masklearn.errors import UserError
from masklearn.evidence.bench import MAX_SELECTION_TEXTS, Bench
from masklearn.evidence.circuit_tests import Circuit
from masklearn.evidence.completeness import ADVERSARY_TEXTS, n_adversary_masks
from masklearn.evidence.rediscovery import Rediscoverer, shuffled_variant
from masklearn.evidence.sources import Sources
from masklearn.evidence.text_scores import score_texts
from masklearn.masking import shared_forwards
from masklearn.selection.chunks import ForwardCost, plan_batches

PROBED_TOKENS = 4096
"""Tokens of the subgraphs by which the time is estimated, if two have no more."""
N_LEARNED_CONTROLS = 2
"""Controls that are learned, besides those of other tasks: on shuffled texts, and on an untrained model."""


@dataclass(frozen=True)
class EvidenceCost:
    """Expected cost by part of the evidence."""

    tokens: dict[str, float]
    """Tokens that are scored: a forward counts one, a backward two."""
    seconds_per_token: float
    """The time of a token, of which every rank scores its share."""

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
    n_sizes, plan, groups = len(bench.mask.sizes), bench.plan, range(len(bench.mask.groups))
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
        "tests": sum(of_texts[g] * _test_forwards(bench, g, s) for g, s in _left(bench, "tests")),
        "stability": one * n_new,
        "controls": one * (n_controls + plan.polish_budget * len(controls) / len(groups))
        + sum(of_texts[g] * n_sizes * 20 + _ablation_tokens(bench, g) for g in controls),
        "completeness": sum(_adversary_tokens(bench, g, s) for g, s in _left(bench, "completeness"))
        + sum(of_texts[g] * _pair_forwards(bench, g, s) for g, s in _left(bench, "pairs")),
        "transfer": sum(of_texts) / len(groups) * n_sizes * 11 * (n_transfers + n_within),
    }
    tokens = {kind: n for kind, n in tokens.items() if kind in plan.parts}
    return EvidenceCost(tokens, _seconds_per_token(bench))


def _seconds_per_token(bench: Bench) -> float:
    """The time of a token in subgraphs on some texts of middling length, if the ranks share the tokens."""
    batches, generator = bench.texts(0), torch.Generator().manual_seed(0)
    batch = batches[len(batches) // 2]
    n_masks = max(2, PROBED_TOKENS // batch.input_ids.numel())
    masks = torch.rand(n_masks, bench.mask.graph.n_nodes, generator=generator) < 0.5
    score_texts(bench.masked_lm, masks[:2], [batch])  # warms up
    start = time.monotonic()
    score_texts(bench.masked_lm, masks, [batch])
    seconds = time.monotonic() - start
    return seconds / (batch.input_ids.numel() * (shared_forwards(bench.masked_lm, masks) + 1)) / ranks.count()


def _shuffled_is_kept(bench: Bench, again: Rediscoverer) -> bool:
    """Whether the control of shuffled texts is there; that of an untrained model is learned after it."""
    try:
        return again.is_kept(shuffled_variant(bench.plan))
    except UserError:  # these texts cannot be shuffled
        return False


def _ablation_tokens(bench: Bench, group: int) -> float:
    """Tokens that are scored to close every node by itself; layers in front of the node are shared if that pays."""
    graph, total = bench.mask.graph, 0.0
    layers = [layer for layer in reversed(range(graph.n_layers)) for _ in range(graph.n_heads + 1)]
    for batch in bench.selection_texts(group, MAX_SELECTION_TEXTS):
        n_tokens = batch.input_ids.numel()
        cost = ForwardCost.of(bench.masked_lm, n_tokens)
        shares = cost.favours_sharing(plan_batches(layers, len(layers), cost), layers)
        total += n_tokens * (1 + graph.n_nodes * (1 + 1 / graph.n_layers) / 2 if shares else graph.n_nodes)
    return total


def _left(bench: Bench, part: str) -> list[tuple[int, int]]:
    """The cells whose part is not kept."""
    return [(group, s) for group, s in bench.cells if not bench.kept.has(f"{part}-{group}-{s}")]


def _test_forwards(bench: Bench, group: int, s: int) -> float:
    """Forwards of every text for the tests of a mask."""
    circuit = Circuit(bench.mask_of(group, s), bench.mask.graph, bench.plan.draws, bench.plan.seed)
    return shared_forwards(bench.masked_lm, torch.cat(circuit.subgraphs()))


def _adversary_tokens(bench: Bench, group: int, s: int) -> float:
    """Tokens that are scored for the adversary of a mask, as if its every round took as long as the first."""
    mask, n_tokens = bench.mask_of(group, s), bench.selection_tokens(group, ADVERSARY_TEXTS)
    tried = torch.eye(len(mask), dtype=torch.bool)[mask]
    return n_tokens * shared_forwards(bench.masked_lm, torch.cat([~tried, mask & ~tried])) * n_adversary_masks(s) / s


def _pair_forwards(bench: Bench, group: int, s: int) -> float:
    """Forwards of every text for the pairs of a mask, as if nodes were equally strong."""
    mask, eye = bench.mask_of(group, s), torch.eye(bench.mask.graph.n_nodes, dtype=torch.bool)
    nodes = mask.nonzero()[:, 0]
    chosen = nodes[torch.linspace(0, s - 1, min(s, bench.plan.pairs)).long()].tolist()
    pairs = [mask & ~eye[i] & ~eye[j] for i, j in combinations(chosen, 2)]
    singles = shared_forwards(bench.masked_lm, torch.cat([mask[None], mask & ~eye[nodes]]))
    return singles + (shared_forwards(bench.masked_lm, torch.stack(pairs)) if pairs else 0)
