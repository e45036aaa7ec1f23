"""How often the tests of circuits reject null hypotheses that are true, by simulation."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor

from masklearn.evidence import circuit_tests as tests
from masklearn.evidence.circuit_tests import Circuit, Outcome, corrected, run_tests
from masklearn.evidence.hypotheses import ALPHA, QUANTILE, TOLERANCE
from masklearn.evidence.plan import EvidencePlan
from masklearn.evidence.text_scores import TextScores
from masklearn.graph import NodeGraph

GRAPH = NodeGraph(10, 15)
"""About as large as the graph of GPT-2."""
N_HEADS_KEPT, N_SIZES = 10, 5
"""Heads of a simulated circuit, and circuits that are corrected for together. 140 heads are left: nine tenths of them
are a whole number."""
LOWEST = 1 - QUANTILE
"""Where the KL of a circuit lies among those of random ones, uniform from 0 to 1, if it beats as many as it must."""


def results(kl: Tensor, score: Tensor, full_score: Tensor) -> TextScores:
    """Results of subgraphs with these mean KLs (K,) and with scores (K, texts)."""
    return TextScores(kl.double()[:, None], score, full_score, "simulated")


def simulated(rng: np.random.Generator, texts: int, draws: int) -> list[Outcome]:
    """The tests of one circuit for which every null hypothesis is true, at its least favourable."""
    is_mlp = torch.tensor([node.head is None for node in GRAPH.nodes])
    mask = torch.zeros(GRAPH.n_nodes, dtype=torch.bool)
    mask[torch.from_numpy(rng.permutation((~is_mlp).nonzero()[:, 0].numpy())[:N_HEADS_KEPT])] = True
    full, complement = (torch.from_numpy(rng.normal(size=texts)) for _ in range(2))
    wins = torch.from_numpy(rng.random(texts) < 0.5 + TOLERANCE)
    circuit_score = full + torch.where(wins, 1.0, -1.0).double()
    circuit = Circuit(mask, GRAPH, draws, int(rng.integers(2**31)))
    unknown = full[None]

    def random_kl(n: int) -> TextScores:
        return results(torch.from_numpy(rng.random(n)), unknown, full)

    # the circuit's KL beats nine tenths of all random ones, and its complement's too
    both = results(torch.tensor([LOWEST, QUANTILE]), torch.stack([circuit_score, complement]), full)
    # a random head changes the KL by 0 to 1, each head of the circuit by more than nine tenths of them
    heads = ~is_mlp[~mask]
    gains = torch.zeros(len(heads))
    gains[heads] = (torch.arange(int(heads.sum())) + 0.5) / int(heads.sum())
    less = results(torch.full((N_HEADS_KEPT,), LOWEST + QUANTILE), unknown, full)
    more = results(LOWEST - gains, unknown, full)
    return run_tests(circuit, str(rng.random()), [both, random_kl(draws), random_kl(draws), less, more], 1)


def rates(simulations: int, simulate: Callable[[], list[Outcome]]) -> dict[str, tuple[float, float]]:
    """Shares of single tests that reject, and of families of tests in which any does."""
    single, family = dict.fromkeys(tests.VERDICTS, 0), dict.fromkeys(tests.VERDICTS, 0)
    for _ in range(simulations):
        outcomes = [outcome for _ in range(N_SIZES) for outcome in simulate()]
        for outcome in outcomes:
            single[outcome.test] += outcome.p is not None and outcome.p <= ALPHA
        for test in tests.VERDICTS:
            family[test] += any(o.p_corrected <= ALPHA for o in corrected(outcomes) if o.test == test and o.p_corrected)
    return {test: (single[test] / simulations / N_SIZES, family[test] / simulations) for test in tests.VERDICTS}


def main(simulations: int = 400, out: Path | None = None) -> None:
    """Simulate circuits for which every null hypothesis is true, and print how often tests reject it.

    Args:
        simulations: Banks of five sizes.
        out: JSON file for the results.
    """
    plan, rng = EvidencePlan(), np.random.default_rng(0)
    found = rates(simulations, lambda: simulated(rng, plan.texts, plan.draws))
    n = simulations * N_SIZES
    print(f"{n} circuits, {plan.texts} texts, {plan.draws} draws; share of true null hypotheses that are rejected")
    for test, (single, family) in found.items():
        error = 1.96 * (single * (1 - single) / n) ** 0.5
        print(f"{test:>18}  single {single:.1%} +- {error:.1%}   any of {N_SIZES}, corrected {family:.1%}")
    if out:
        out.write_text(json.dumps({"simulations": simulations, "rates": found}, indent=2))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
