"""Closed MLPs are left out of forwards in which nobody needs them."""

import pytest
import torch
from conftest import texts, tiny_llama
from counting import counted_rows
from families import FAMILIES, Family
from torch.testing import assert_close

from masklearn.ablation import Ablation
from masklearn.masking import MaskedLM, masked_lm, skipping

FAMILY_NAMES = ("gpt2", "falcon", "phi", "gemma2", "olmo2", "mixtral", "bloom", "opt", "mpt")


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name in FAMILY_NAMES], ids=lambda family: family.name)
def test_masks_give_the_same_whether_closed_mlps_run_or_not(family: Family) -> None:
    lm = MaskedLM(family.build())
    generator = torch.Generator().manual_seed(1)
    masks = (torch.rand(5, 2, lm.graph.n_nodes, generator=generator) > 0.5).float()
    masks[0] = 0  # no MLP of this row is open
    ids = torch.randint(3, 50, (2, 7), generator=generator)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    for ablation in (Ablation(), lm.mean_ablation([(ids, everywhere)])):
        lm.ablation = ablation
        whole = lm(ids, everywhere, masks)  # with gradients every MLP runs
        with torch.no_grad():
            assert_close(lm(ids, everywhere, masks), whole, atol=1e-5, rtol=1e-4)


def test_an_mlp_runs_in_the_rows_in_which_it_is_open() -> None:
    lm = MaskedLM(tiny_llama())
    masks = torch.zeros(4, 1, lm.graph.n_nodes)
    masks[:3, 0, lm.graph.names.index("m0")] = 1
    masks[0, 0, lm.graph.names.index("m1")] = 0.5
    ids = texts()[0].input_ids[:1]
    with counted_rows(lm, lambda site: site.mlp_branch) as rows, torch.no_grad():
        lm(ids, torch.ones_like(ids, dtype=torch.bool), masks)
    assert rows == [3, 1, 1]  # a forward of one row tells what an MLP puts out that is closed everywhere
    with counted_rows(lm, lambda site: site.mlp_branch) as rows:
        lm(ids, torch.ones_like(ids, dtype=torch.bool), masks)
    assert rows == [4, 4, 4]


def test_the_wrong_rows_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = MaskedLM(tiny_llama())
    masks = (torch.rand(6, 1, lm.graph.n_nodes, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    ids = texts()[0].input_ids[:1]
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    right = lm(ids, everywhere, masks)
    monkeypatch.setattr(
        masked_lm, "closed_mlps_skipped", lambda layout, gates: skipping.closed_mlps_skipped(layout, gates.flip(0))
    )
    with torch.no_grad():
        assert (lm(ids, everywhere, masks) - right).abs().max() > 1e-2
