"""Subgraphs on the same texts share the layers in which they agree, and end as they do alone."""

import pytest
import torch
from conftest import texts, tiny_llama
from counting import counted_rows
from families import FAMILIES, Family
from torch.testing import assert_close

from masklearn.ablation import Ablation
from masklearn.masking import MaskedLM, hidden_of_subgraphs, shared_forwards, subgraph_groups
from masklearn.masking import shared_layers as module
from masklearn.masking.shared_layers import segments

SOME = ("gpt2", "gpt_neox", "falcon", "phi", "gemma2", "olmo2", "mixtral", "llama", "opt", "cohere")


def flips(n_nodes: int) -> torch.Tensor:
    """A random mask, its single flips, and the mask once more."""
    base = torch.rand(n_nodes, generator=torch.Generator().manual_seed(3)) > 0.4
    return torch.cat([base[None], base ^ torch.eye(n_nodes, dtype=torch.bool), base[None]])


def test_segments_by_hand() -> None:
    masks = torch.tensor([[[1], [0], [0]], [[1], [1], [0]], [[1], [0], [1]], [[1], [0], [0]]]).bool()
    found, row = segments(masks)  # one subgraph in the first layer, two up to the second, three up to the last
    assert [(part.first, part.stop, len(part.subgraphs)) for part in found] == [(0, 1, 1), (1, 2, 2), (2, 3, 3)]
    assert row.tolist() == [0, 2, 1, 0]  # the first and the last are the same
    assert found[2].parent.tolist() == [0, 0, 1]
    alike = masks[:, [0, 0, 1]]
    assert [(part.first, part.stop) for part in segments(alike)[0]] == [(0, 2), (2, 3)]


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name in SOME], ids=lambda family: family.name)
def test_subgraphs_end_as_they_do_alone_and_run_fewer_layers(family: Family) -> None:
    masked_lm, batch = MaskedLM(family.build()), texts()[0]
    masks = flips(masked_lm.graph.n_nodes)
    gates = masks.float()[:, None].expand(-1, len(batch.input_ids), -1)
    with torch.no_grad():
        alone = masked_lm(batch.input_ids, batch.scored, gates)
    with counted_rows(masked_lm, lambda site: site.layer) as rows:
        found = hidden_of_subgraphs(masked_lm, masks, batch.input_ids, batch.scored)
    assert_close(found, alone, atol=1e-5, rtol=1e-4)
    n_inputs, n_layers = len(batch.input_ids), masked_lm.graph.n_layers
    beforehand = 2 * n_layers * n_inputs  # at most, to find out whether a forward can stop and go on
    expected = shared_forwards(masked_lm, masks)
    assert expected < 0.9 * len(masks)
    assert n_layers * n_inputs * expected <= sum(rows) <= n_layers * n_inputs * expected + beforehand


def test_groups_hold_as_many_subgraphs_as_memory_is_meant_for(monkeypatch: pytest.MonkeyPatch) -> None:
    masked_lm = MaskedLM(tiny_llama())
    masks = flips(masked_lm.graph.n_nodes)
    monkeypatch.setattr(module, "MAX_TOKENS", {"cpu": 100})
    groups = subgraph_groups(masked_lm, masks, 30)
    assert {len(group) for group in groups[:-1]} == {3}
    order = torch.cat(groups).tolist()
    assert sorted(order) == list(range(len(masks)))
    assert abs(order.index(0) - order.index(len(masks) - 1)) == 1  # equal ones side by side


def test_layers_are_not_shared_where_closed_nodes_depend_on_another_text() -> None:
    masked_lm, batch = MaskedLM(tiny_llama(), Ablation("resample")), texts()[0]
    masks, corrupted = flips(masked_lm.graph.n_nodes), batch.input_ids.flip(0)
    gates = masks.float()[:, None].expand(-1, len(batch.input_ids), -1)
    with torch.no_grad():
        alone = masked_lm(batch.input_ids, batch.scored, gates, corrupted)
    assert_close(hidden_of_subgraphs(masked_lm, masks, batch.input_ids, batch.scored, corrupted), alone)
    assert shared_forwards(masked_lm, masks) == len(masks)
