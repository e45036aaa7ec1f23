import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from masklearn.training.rows import assign_masks, draw_rows, mean_by_mask


def test_rows_by_hand() -> None:
    """Two texts, of groups 1 and 0, with three sizes: masks 3 to 5 belong to group 1, masks 0 to 2 to group 0."""
    bank_indices = torch.tensor([1, 0])
    assert assign_masks(bank_indices, 3, 3, torch.tensor([0.0, 0.9])).tolist() == [
        [3, 0],
        [4, 1],
        [5, 2],
    ]
    assert assign_masks(bank_indices, 3, 1, torch.tensor([0.1, 0.9])).tolist() == [[3, 2]]
    assert assign_masks(bank_indices, 3, 6, torch.tensor([0.1, 0.9]))[:, 0].tolist() == [3, 3, 4, 4, 5, 5]


@given(n_sizes=st.integers(1, 12), draws=st.integers(1, 30), offset=st.floats(0, 0.999999))
def test_draws_are_spread_evenly_over_the_sizes(n_sizes: int, draws: int, offset: float) -> None:
    size = assign_masks(torch.zeros(1, dtype=torch.long), n_sizes, draws, torch.tensor([offset], dtype=torch.float64))
    counts = torch.bincount(size.flatten(), minlength=n_sizes)
    assert len(counts) == n_sizes and counts.sum() == draws
    assert counts.min() >= draws // n_sizes and counts.max() <= -(-draws // n_sizes)


def test_every_size_is_drawn_equally_often() -> None:
    offsets = torch.linspace(0, 0.99999, 10_001, dtype=torch.float64)
    for n_sizes, draws in ((5, 2), (12, 4), (3, 4)):
        size = assign_masks(torch.zeros(10_001, dtype=torch.long), n_sizes, draws, offsets)
        share = torch.bincount(size.flatten()) / size.numel()
        assert_close(share, torch.full((n_sizes,), 1 / n_sizes), atol=1e-3, rtol=0)


def test_every_restart_of_a_text_is_run_and_the_seed_fixes_the_draws() -> None:
    """Two texts of groups 0 and 2, two restarts, three sizes each: group 2 has masks 12 to 14 and 15 to 17."""
    mask_ids, noise = draw_rows(torch.tensor([0, 2]), n_restarts=2, n_sizes=3, n_draws=3, n_nodes=5, seed=1)
    assert mask_ids.T.sort().values.tolist() == [[0, 1, 2, 3, 4, 5], [12, 13, 14, 15, 16, 17]]
    assert noise.shape == (6, 2, 5)
    again, same_noise = draw_rows(torch.tensor([0, 2]), n_restarts=2, n_sizes=3, n_draws=3, n_nodes=5, seed=1)
    assert torch.equal(again, mask_ids) and torch.equal(same_noise, noise)


def test_means_by_hand() -> None:
    values = torch.tensor([[1.0, 3.0], [10.0, 20.0]])
    means, count = mean_by_mask(values, torch.tensor([[0, 0], [2, 0]]), 4)
    assert means.tolist() == [8.0, 0.0, 10.0, 0.0]
    assert count.tolist() == [3, 0, 1, 0]
