import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from masklearn.gates import GateBank, open_probability, sample, top


def test_open_probability_and_sample_of_one_gate_by_hand() -> None:
    # log_alpha = 0 at temperature 2/3: P(open) = sigmoid(0 - 2/3 * log(0.1 / 1.1)) = 1 / (1 + 11 ** (-2/3)) = 0.832
    log_odds = torch.tensor([2 / 3 * math.log(11)])
    assert_close(open_probability(log_odds), torch.tensor([1 / (1 + 11 ** (-2 / 3))]))
    # noise of 1/2 leaves log_alpha as it is; sigmoid(0 / beta) = 1/2; stretched to 1/2 * 1.2 - 0.1 = 1/2
    assert_close(sample(log_odds, 2 / 3, noise=torch.tensor([0.5])), torch.tensor([0.5]))


@given(log_odds=st.floats(-6, 6), temperature=st.floats(0.2, 1.5))
def test_open_probability_agrees_with_sampling(log_odds: float, temperature: float) -> None:
    torch.manual_seed(0)
    copies = torch.full((20_000,), log_odds)
    share_open = (sample(copies, temperature) > 0).float().mean()
    assert_close(share_open, open_probability(copies).mean(), atol=0.015, rtol=0)


@given(log_odds=st.floats(-20, 20), noise=st.floats(0, 1))
def test_gates_lie_between_zero_and_one(log_odds: float, noise: float) -> None:
    gate = sample(torch.tensor([log_odds]), 0.5, torch.tensor([noise])).item()
    assert 0 <= gate <= 1


@given(
    scores=st.lists(st.integers(-3, 3), min_size=1, max_size=12),  # few values, so that there are ties
    data=st.data(),
)
def test_top_keeps_exactly_the_s_highest_scores(scores: list[int], data: st.DataObject) -> None:
    s = data.draw(st.integers(0, len(scores)))
    mask = top(torch.tensor(scores, dtype=torch.float32), torch.tensor(s))
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:s]  # ties by node order
    assert mask.nonzero().flatten().tolist() == sorted(expected)


def test_a_bank_discretizes_to_the_sizes_given() -> None:
    bank = GateBank(n_groups=2, n_sizes=3, n_nodes=8)
    torch.nn.init.normal_(bank.log_odds, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([1, 4, 8])
    masks = bank.discretize(sizes)
    assert masks.shape == (2, 3, 8)
    assert_close(masks.sum(-1), sizes.expand(2, 3))
