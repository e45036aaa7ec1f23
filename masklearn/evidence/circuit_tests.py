"""Five hypothesis tests of a circuit: equivalence, independence, minimality, sufficiency and partial necessity.

Source: Shi et al. 2024 (arXiv 2410.13032). Random subgraphs have as many heads and as many MLPs as the circuit, and are
drawn from the whole model. Equivalence and independence compare scores of texts; with the KL as a score the full model
would always win. The other three compare KLs. The first three hold unless they reject: equivalence and independence are
passed by whoever has few texts, and minimality is over draws of nodes and takes the texts as given.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from masklearn.evaluation.holm import holm
from masklearn.evidence.hypotheses import (
    ALPHA,
    at_least_p,
    at_most_p,
    equivalence_p,
    fewest_draws,
    fewest_paired_texts,
    fewest_texts,
    independence_p,
    share_interval,
)
from masklearn.evidence.text_scores import TextScores
from masklearn.graph import NodeGraph
from masklearn.selection.baselines import matched_masks

EQUIVALENCE, INDEPENDENCE, MINIMALITY = "equivalence", "independence", "minimality"
SUFFICIENCY, NECESSITY = "sufficiency", "partial necessity"
N_RIVALS = 1000
"""Random nodes that every node is compared with; all nodes there are run once, so that many draws cost nothing."""
MIN_SUBGRAPHS = 20
"""Different subgraphs with as many heads and MLPs as the circuit that there must be to compare it with."""
SUPERFLUOUS = "matter less than a tenth of the other nodes of their kind would: "
"""What the note of minimality says of the nodes that it names last."""


@dataclass(frozen=True)
class Outcome:
    """One test of one circuit."""

    test: str
    group: str
    s: int
    n: int = 0
    """Texts, or random draws, that were compared."""
    share: float | None = None
    """Share of them that the circuit wins; of minimality the smallest share of any of its nodes."""
    low: float | None = None
    """Lower end of the 95 % interval of the share."""
    high: float | None = None
    """Upper end."""
    p: float | None = None
    """None if the test could not be made."""
    p_corrected: float | None = None
    """The same, corrected for the number of sizes and groups."""
    verdict: str = "not tested"
    note: str = ""


@dataclass(frozen=True)
class Circuit:
    """A circuit, and everything that is run to test it: all of shape (..., nodes)."""

    mask: Tensor
    graph: NodeGraph
    n_draws: int
    seed: int

    def subgraphs(self) -> list[Tensor]:
        """The subgraphs to run: circuit and complement, random ones, their complements, a node less, a node more."""
        draws = matched_masks(self.n_draws, self.mask[None, None], self.graph, self.seed)[:, 0, 0]
        flipped = self.mask ^ torch.eye(len(self.mask), dtype=torch.bool)
        both = torch.stack([self.mask, ~self.mask])
        return [both, draws, ~draws, flipped[self.mask], flipped[~self.mask]]

    @property
    def n_matched(self) -> int:
        """Subgraphs with as many heads and as many MLPs."""
        heads, mlps = (int(count) for count in self.graph.count(self.mask))
        return math.comb(self.graph.n_layers * self.graph.n_heads, heads) * math.comb(self.graph.n_layers, mlps)


def run_tests(circuit: Circuit, group: str, scores: Sequence[TextScores], n_tests: int) -> list[Outcome]:
    """Make the five tests of one circuit.

    Args:
        circuit: The circuit.
        group: Name of its group.
        scores: Results of its `subgraphs`, in their order.
        n_tests: Circuits that are tested, for the correction.
    """
    s = int(circuit.mask.sum())
    both, draws, complements, less, more = scores
    return [
        _equivalence(group, s, both.score[0], both.full_score, n_tests),
        _independence(group, s, both.score[1], both.full_score, circuit.seed, n_tests),
        _minimality(circuit, group, both.mean_kl[0], less.mean_kl, more.mean_kl),
        _against_random(SUFFICIENCY, circuit, group, both.mean_kl[0] < draws.mean_kl, n_tests),
        _against_random(NECESSITY, circuit, group, both.mean_kl[1] > complements.mean_kl, n_tests),
    ]


def _equivalence(group: str, s: int, score: Tensor, full_score: Tensor, n_tests: int) -> Outcome:
    known = ~(score.isnan() | full_score.isnan())
    result, difference = Outcome(EQUIVALENCE, group, s, int(known.sum())), (score - full_score)[known]
    if too_few := _too_few_texts(result.n, fewest_texts(n_tests)):
        return replace(result, note=too_few)
    wins = float((difference > 0).sum() + 0.5 * (difference == 0).sum())
    low, high = share_interval(wins, result.n)
    return replace(result, share=wins / result.n, low=low, high=high, p=equivalence_p(wins, result.n))


def _independence(group: str, s: int, score: Tensor, full_score: Tensor, seed: int, n_tests: int) -> Outcome:
    known = ~(score.isnan() | full_score.isnan())
    result = Outcome(INDEPENDENCE, group, s, int(known.sum()))
    if too_few := _too_few_texts(result.n, fewest_paired_texts(n_tests)):
        return replace(result, note=too_few)
    score, full_score = score[known], full_score[known]
    if score.std() < 1e-9 or full_score.std() < 1e-9:
        return replace(result, note="a score is the same for all texts, so that nothing can depend on it")
    return replace(result, p=independence_p(score.numpy(), full_score.numpy(), seed, n_tests))


def _too_few_texts(n: int, fewest: int) -> str:
    """Why there are too few texts, if there are."""
    if n >= fewest:
        return ""
    if not n:
        return "no token is known to follow the scored positions, and the texts have no answers"
    return f"{n} texts can reject nothing; at least {fewest} are needed"


def _minimality(circuit: Circuit, group: str, kl: Tensor, less: Tensor, more: Tensor) -> Outcome:
    """Whether every node matters more than a random node of its kind that is added to the circuit.

    A node is not tested if the circuit has all nodes of its kind.
    """
    result = Outcome(MINIMALITY, group, int(circuit.mask.sum()), N_RIVALS)
    if not len(more):
        return replace(result, note="the circuit has all nodes, so that none can be added")
    is_mlp = torch.tensor([node.head is None for node in circuit.graph.nodes])
    inside, outside = is_mlp[circuit.mask], is_mlp[~circuit.mask]
    losses, gains = less - kl, kl - more
    rng, wins, untested = np.random.default_rng(circuit.seed), dict[str, int](), list[str]()
    names = [name for name, inside in zip(circuit.graph.names, circuit.mask.tolist(), strict=True) if inside]
    for name, loss, kind in zip(names, losses.tolist(), inside.tolist(), strict=True):
        rivals = gains[outside == kind].numpy()
        if len(rivals):
            wins[name] = int((loss > rng.choice(rivals, N_RIVALS)).sum())
        else:
            untested.append(name)
    note = f"not tested, as the circuit has all nodes of their kind: {', '.join(untested)}" if untested else ""
    if not wins:
        return replace(result, note=note)
    p_values, fewest = [at_most_p(n, N_RIVALS) for n in wins.values()], min(wins.values())
    superfluous = [name for name, p in zip(wins, holm(p_values), strict=True) if p <= ALPHA]
    low, high = share_interval(fewest, N_RIVALS)
    note = "; ".join(filter(None, [note, f"{SUPERFLUOUS}{', '.join(superfluous)}" if superfluous else ""]))
    p = min(1.0, len(p_values) * min(p_values))
    return replace(result, share=fewest / N_RIVALS, low=low, high=high, p=p, note=note)


def _against_random(test: str, circuit: Circuit, group: str, won: Tensor, n_tests: int) -> Outcome:
    """Whether the circuit beats more than `QUANTILE` of the matched random subgraphs; a tie is lost."""
    result = Outcome(test, group, int(circuit.mask.sum()), len(won))
    if circuit.n_matched < MIN_SUBGRAPHS:
        number = f"only {circuit.n_matched} subgraphs have" if circuit.n_matched > 1 else "no other subgraph has"
        return replace(result, note=f"{number} as many heads and MLPs")
    if len(won) < fewest_draws(n_tests):
        return replace(result, note=f"{len(won)} draws can show nothing; at least {fewest_draws(n_tests)} are needed")
    wins = int(won.sum())
    low, high = share_interval(wins, len(won))
    return replace(result, share=wins / len(won), low=low, high=high, p=at_least_p(wins, len(won)))


VERDICTS = {
    EQUIVALENCE: ("differs from the model", "no difference found"),
    INDEPENDENCE: ("the rest still tells", "no dependence found"),
    MINIMALITY: ("has superfluous nodes", "no superfluous node found"),
    SUFFICIENCY: ("beats random subgraphs", "not shown"),
    NECESSITY: ("needed more than random ones", "not shown"),
}
"""What is said of a test that rejects its null hypothesis, and of one that does not."""


def corrected(results: Sequence[Outcome]) -> list[Outcome]:
    """The results with verdicts; the p-values of every test are corrected for the number of its circuits."""
    corrected_of = dict[tuple[str, str, int], float]()
    for test in VERDICTS:
        tested = [result for result in results if result.test == test and result.p is not None]
        p_values = holm([result.p for result in tested if result.p is not None])
        corrected_of |= {(test, r.group, r.s): p for r, p in zip(tested, p_values, strict=True)}
    found = list[Outcome]()
    for result in results:
        p = corrected_of.get((result.test, result.group, result.s))
        rejected, kept = VERDICTS[result.test]
        verdict = result.verdict if p is None else rejected if p <= ALPHA else kept
        is_kept = result.test == MINIMALITY and p is not None and p > ALPHA  # no node is superfluous
        note = result.note.partition(SUPERFLUOUS)[0].removesuffix("; ") if is_kept else result.note
        found.append(replace(result, p_corrected=p, verdict=verdict, note=note))
    return found
