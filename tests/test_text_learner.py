"""The learner of single texts on subgraphs whose best units are known, and on gates that are certain."""

from collections.abc import Sequence

import pytest
import torch
from edge_reference import text
from torch import Tensor

from masklearn.edges import EdgeLM, importance, with_streams
from masklearn.errors import NonFiniteLoss
from masklearn.training.edge_learner import EdgeSearch
from masklearn.training.text_learner import SubgraphSearch, TextLearnerConfig, learn

N_UNITS = 12


class KnownOptima(SubgraphSearch):
    """Twelve units. Every size has its own best subgraph, and its KL is the squared distance of the gates from it.

    The best subgraphs of one and of three units have nothing in common: no single order of the units gives both.
    """

    best_units = ([7], [2, 4, 9])
    shared = 0.5

    def __init__(self) -> None:
        units = torch.arange(N_UNITS)
        self.target = torch.zeros(2, N_UNITS)
        for row, best in zip(self.target, self.best_units, strict=True):
            row[best] = 1
        self.rows_considered = list[Tensor]()
        super().__init__(units, [1 / N_UNITS, 3 / N_UNITS], units, [0, 1])

    def kl(self, gates: Tensor) -> Tensor:
        return (gates - self.target).square().sum(1)

    def kl_of(self, kept: list[Tensor]) -> Tensor:
        gates = torch.stack([torch.zeros(N_UNITS).index_fill(0, ids, 1.0) for ids in kept])
        return self.kl(gates)

    def subgraph(self, best_first: Tensor, n_units: int) -> tuple[Tensor, int]:
        return best_first[:n_units].sort().values, n_units

    def consider(self, scores: Tensor) -> None:
        self.rows_considered.append(scores.clone())
        super().consider(scores)


def units(kept: Sequence[Tensor]) -> list[list[int]]:
    return [ids.tolist() for ids in kept]


def test_every_size_takes_its_subgraph_from_its_own_scores() -> None:
    search = KnownOptima()
    search.consider(search.target)
    assert units(search.kept) == [[7], [2, 4, 9]] and search.best.tolist() == [0, 0]
    assert search.n_open.tolist() == [1, 3]
    search.consider(search.target.flip(0))  # worse subgraphs change nothing
    assert units(search.kept) == [[7], [2, 4, 9]]


class NotFinite(KnownOptima):
    """The KL's gradient is NaN, as of a model whose numbers overflow on the way back."""

    def kl(self, gates: Tensor) -> Tensor:
        kl = super().kl(gates)
        return kl * torch.nan if gates.requires_grad else kl


def test_a_gradient_that_is_not_finite_is_named() -> None:
    search = NotFinite()
    with pytest.raises(NonFiniteLoss, match="not finite at step 10 or shortly before"):
        learn(search, TextLearnerConfig(steps=20))


class WithCompanions(KnownOptima):
    """Units 0 and 1 are equally good for a size of one unit, but the first brings two others with it."""

    shared = 0.0

    def kl_with_others(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        return 3 - gates[:, :2].sum(1), 2 * gates[:, 0]

    def kl_of(self, kept: list[Tensor]) -> Tensor:
        return torch.stack([3.0 - torch.isin(ids, torch.tensor([0, 1])).sum() for ids in kept])

    def subgraph(self, best_first: Tensor, n_units: int) -> tuple[Tensor, int]:
        self.first = best_first[0].item()
        return super().subgraph(best_first, n_units)


def test_units_that_bring_others_with_them_cost_more() -> None:
    search = WithCompanions()
    search.learned = [0]
    assert search.order[0] == 0  # what it starts from
    learn(search, TextLearnerConfig(steps=40))
    assert search.first == 1


def test_nested_best_subgraphs_are_found() -> None:
    search = KnownOptima()
    search.target = torch.zeros(2, N_UNITS)
    search.target[0, 7] = search.target[1, [7, 9, 11]] = 1  # far from the first of the order
    assert units(learn(search, TextLearnerConfig(steps=60))) == [[7], [7, 9, 11]]


@pytest.mark.parametrize(("shared", "n_equal"), [(0.5, 4), (1.0, 7)])
def test_sizes_have_the_same_scores_as_long_as_they_share_them(shared: float, n_equal: int) -> None:
    search = KnownOptima()
    search.shared = shared
    learn(search, TextLearnerConfig(steps=60))
    is_shared = [bool((rows[0] == rows[1]).all()) for rows in search.rows_considered]  # at steps 0, 10, ..., 60
    assert is_shared == [True] * n_equal + [False] * (7 - n_equal)


def test_a_text_without_a_size_to_learn_keeps_its_first_subgraphs() -> None:
    search = KnownOptima()
    search.learned = []
    assert units(learn(search, TextLearnerConfig(steps=3))) == [[0], [0, 1, 2]]


def test_gates_that_are_certain_give_the_kl_and_the_streams_of_their_subgraph(llama: EdgeLM) -> None:
    found = importance(llama, text(6))
    search = EdgeSearch(llama, text(6), found, [0.3, 0.6])
    gates = (torch.rand(2, len(search.scored), generator=torch.Generator().manual_seed(0)) < 0.15).float()
    subgraphs = []
    for row in gates:
        chosen = torch.zeros(found.graph.n_places, dtype=torch.bool)
        chosen[search.scored[row > 0]] = True
        subgraphs.append(with_streams(found.graph, chosen).nonzero()[:, 0])
    kl, n_streams = search.kl_with_others(gates)
    torch.testing.assert_close(kl, search.kl_of(subgraphs), atol=1e-4, rtol=1e-4)
    residual = [int(found.graph.is_residual[ids].sum()) for ids in subgraphs]
    torch.testing.assert_close(n_streams, torch.tensor(residual).float(), atol=1e-2, rtol=0)
    assert min(residual) < found.graph.is_residual.sum()  # some streams are closed
    assert not torch.allclose(search.kl(gates), kl, rtol=1e-3)  # which all open streams are not
