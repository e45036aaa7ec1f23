from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st

import masklearn as ml
from masklearn.gates import GateBank, open_probability, sample
from masklearn.sizes import resolve_sizes
from masklearn.training.budget import Lagrangian, Projected
from masklearn.training.schedule import Schedule


def test_penalty_by_hand() -> None:
    budget = Lagrangian(1, 2, n_nodes=40)  # rho = 1
    budget.multiplier[:] = torch.tensor([[0.5, 0.0]])
    # 0.5 * 2 + 2^2 / 2 = 3, and 0 * -1 + 1 / 2
    assert budget(torch.tensor([[2.0, -1.0]])).tolist() == [[3.0, 0.5]]
    log_odds = torch.tensor([9.0, -1.0])
    budget.after_step(log_odds, torch.tensor([[2.0, -1.0]]), penalty_scale=1.0, logit_clip=4.0)
    assert log_odds.tolist() == [4.0, -1.0]
    torch.testing.assert_close(budget.multiplier, torch.tensor([[0.54, -0.02]]))


def test_sizes_are_counts_or_fractions() -> None:
    assert resolve_sizes([30, 0.25, 8, 1.0], 36) == [1, 8, 9, 30]
    assert resolve_sizes([np.float32(0.25), np.int64(8)], 36) == [8, 9]
    assert "asks for 4.5" in refused(lambda: resolve_sizes([np.float32(4.5)], 36))
    assert resolve_sizes([0.001], 36) == [1]  # a fraction keeps at least one node


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], "is empty"),
        ([0], "asks for 0 nodes, but the model has 36. Choose from 1 to 36"),
        ([37], "asks for 37 nodes"),
        ([-3], "asks for -3 nodes"),
        ([-0.5], "Give a whole number, or a fraction below 1"),
        ([8, 8], "names 8 of 36 nodes twice"),
        ([9, 0.25], "names 9 of 36 nodes twice, as 9 and as 0.25"),
        ([8.5], "asks for 8.5 nodes"),
        (4, "is 4; give numbers, for example .*, log:12 for 12 log-spaced sizes"),
        (0.5, "is 0.5; give numbers"),
        (None, "is None; give numbers"),
        ([None], "give numbers"),
        (["a"], "give numbers"),
    ],
)
def test_invalid_sizes_are_refused(sizes: Any, message: str) -> None:
    with pytest.raises(ml.UserError, match=message):
        resolve_sizes(sizes, 36)


@given(steps=st.integers(1, 500), n_nodes=st.integers(1, 1000), data=st.data())
def test_the_target_shrinks_from_all_nodes_to_the_size(steps: int, n_nodes: int, data: st.DataObject) -> None:
    size = torch.tensor([data.draw(st.integers(1, n_nodes))])
    schedule = Schedule(steps, (1.0, 0.5))
    targets = [schedule.target_at(step, size, n_nodes).item() for step in range(steps)]
    assert targets[0] == pytest.approx(n_nodes) or steps == 1
    assert targets[-1] == pytest.approx(size.item()) or steps == 1
    assert all(a >= b - 1e-3 for a, b in pairwise(targets))
    assert schedule.temperature_at(steps - 1) == pytest.approx(0.5 if steps > 1 else 1.0)


@settings(max_examples=15, deadline=None)
@given(
    n_nodes=st.integers(12, 400),
    share=st.floats(0.02, 0.98),
    lr=st.floats(0.3, 1.0),
    seed=st.integers(0, 100),
)
def test_a_lagrangian_budget_reaches_every_size(n_nodes: int, share: float, lr: float, seed: int) -> None:
    """Within half a node, on a synthetic KL: the summed importance of the closed nodes."""
    torch.manual_seed(seed)
    sizes = torch.tensor([max(1, round(share * n_nodes))])
    importance = torch.rand(n_nodes).pow(4)
    bank, budget, schedule = GateBank(1, 1, n_nodes), Lagrangian(1, 1, n_nodes), Schedule(200, (1.0, 0.5))
    optimizer = torch.optim.Adam(bank.parameters(), lr=lr, betas=(0.8, 0.95))
    for step in range(schedule.steps):
        optimizer.param_groups[0]["lr"] = lr * schedule.lr_factor_at(step)
        closed = 1 - sample(bank.log_odds.expand(8, 1, -1), schedule.temperature_at(step))
        kl = (closed * importance).sum(-1).mean() * 10 / importance.sum()
        error = open_probability(bank.log_odds).sum(-1) - schedule.target_at(step, sizes, n_nodes)
        penalty_scale = schedule.penalty_scale_at(step)
        loss = (kl + 0.003).log() + budget(error, penalty_scale).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        budget.after_step(bank.log_odds.data, error.detach(), penalty_scale, schedule.logit_clip_at(step, n_nodes))
    assert open_probability(bank.log_odds).sum().item() == pytest.approx(sizes.item(), abs=0.5)


def test_a_projected_budget_by_hand() -> None:
    # two equal gates that expect one open gate are each open with probability 1/2: log-odds 0
    adjusted = Projected().adjust_log_odds(torch.tensor([[[3.0, 3.0]]]), torch.tensor([1]))
    torch.testing.assert_close(adjusted, torch.zeros(1, 1, 2), atol=1e-5, rtol=0)


@given(
    scores=st.lists(st.floats(-30, 30), min_size=2, max_size=60),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 100),
)
def test_shifted_gates_expect_the_target_and_keep_their_order(scores: list[float], share: float, seed: int) -> None:
    log_odds = torch.tensor(scores)
    target = torch.tensor([max(1.0, share * len(scores) - 0.5)])
    adjusted = Projected().adjust_log_odds(log_odds[None], target)
    assert open_probability(adjusted).sum(-1).item() == pytest.approx(target.item(), abs=1e-3)
    assert (adjusted[0][log_odds.argsort()].diff() >= 0).all()


def test_the_gradient_of_the_shift_is_right() -> None:
    torch.manual_seed(0)
    log_odds, weight = torch.randn(2, 9, dtype=torch.float64), torch.randn(2, 9, dtype=torch.float64)
    target = torch.tensor([2.5, 6.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: (Projected().adjust_log_odds(x, target).sigmoid() * weight).sum(-1),
        log_odds.requires_grad_(),
        atol=1e-6,
    )


@given(n_nodes=st.integers(2, 1100), number=st.integers(1, 40))
def test_log_spaced_sizes_are_distinct_and_reach_from_one_to_all_but_one(n_nodes: int, number: int) -> None:
    if number >= n_nodes:
        with pytest.raises(ml.UserError, match=f"the model has {n_nodes} nodes. Choose up to {n_nodes - 1}"):
            resolve_sizes(f"log:{number}", n_nodes)
        return
    sizes = resolve_sizes(f"log:{number}", n_nodes)
    assert len(set(sizes)) == number and sizes == sorted(sizes)
    assert sizes[0] == 1 and sizes[-1] <= n_nodes - 1
    if number > 1:
        assert sizes[-1] == n_nodes - 1


def test_log_spaced_sizes_by_hand() -> None:
    assert resolve_sizes("log:4", 28) == [1, 3, 9, 27]
    assert resolve_sizes("log:12", 45) == [1, 2, 3, 4, 5, 6, 8, 11, 16, 22, 31, 44]


@pytest.mark.parametrize("sizes", ["log:", "log:0", "log:-3", "log:1.5", "lin:12", "12"])
def test_invalid_words_for_sizes_are_refused(sizes: str) -> None:
    with pytest.raises(ml.UserError, match="give numbers, for example .*, log:12 for 12 log-spaced sizes, or mib"):
        resolve_sizes(sizes, 45)
