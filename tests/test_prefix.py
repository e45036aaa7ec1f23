"""Shared prefixes: forwards that start in a later layer end as whole ones do, and run fewer layers."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from conftest import GROUPS, texts, tiny_llama
from counting import counted_rows
from families import FAMILIES, Family
from torch import Tensor
from torch.testing import assert_close

from masklearn.masking import MaskedLM
from masklearn.models import can_share_prefixes, prefix, prefix_of, recording
from masklearn.selection import chunks
from masklearn.selection.chunks import ForwardCost
from masklearn.selection.scorer import MaskScorer
from masklearn.selection.search import greedy

SOME = ("gpt2", "gpt_neox", "falcon", "phi", "gemma2", "olmo2", "mixtral", "llama", "opt", "cohere")


def candidates(n_nodes: int, groups: int = 3) -> Tensor:
    """Every single flip of a random mask of each group, in an order of its own."""
    generator = torch.Generator().manual_seed(5)
    base = torch.rand(groups, n_nodes, generator=generator) > 0.4
    flips = torch.stack([torch.eye(n_nodes, dtype=torch.bool)[torch.randperm(n_nodes, generator=generator)]] * groups)
    return base ^ flips.transpose(0, 1)


@contextmanager
def unshared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(MaskedLM, "prefix", lambda *_: None)
        yield


def free_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let forwards have no fixed cost."""
    monkeypatch.setattr(chunks, "LAUNCH_FLOPS", {"cpu": 0})
    monkeypatch.setattr(chunks, "READ_TOKENS", {"cpu": 0})


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name in SOME], ids=lambda family: family.name)
def test_masks_score_the_same_with_shared_prefixes(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    masked_lm = MaskedLM(family.build())
    assert can_share_prefixes(masked_lm.layout)
    free_forwards(monkeypatch)  # as many starts as there are
    scorer, masks = MaskScorer(masked_lm, texts(), GROUPS), candidates(masked_lm.graph.n_nodes)
    with counted_rows(masked_lm, lambda site: site.layer) as shared:
        found = scorer(masks)
    with unshared(monkeypatch), counted_rows(masked_lm, lambda site: site.layer) as whole:
        expected = scorer(masks)
    assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert sum(shared) < sum(whole)


def test_greedy_search_runs_fewer_layers_for_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    free_forwards(monkeypatch)
    masked_lm = MaskedLM(tiny_llama(layers=8))
    scorer, n_nodes = MaskScorer(masked_lm, texts()[:1], [3, 7]), masked_lm.graph.n_nodes
    with counted_rows(masked_lm, lambda site: site.layer) as shared:
        found = greedy(scorer, [5, 20], n_nodes)
    with unshared(monkeypatch), counted_rows(masked_lm, lambda site: site.layer) as whole:
        expected = greedy(scorer, [5, 20], n_nodes)
    assert torch.equal(found, expected)
    assert sum(whole) > 1.3 * sum(shared)


def test_soft_gates_share_nothing_and_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    masked_lm = MaskedLM(tiny_llama())
    scorer = MaskScorer(masked_lm, texts(), GROUPS)
    gates = torch.rand(6, 3, masked_lm.graph.n_nodes, generator=torch.Generator().manual_seed(0))
    with counted_rows(masked_lm, lambda site: site.layer) as shared:
        scorer(gates)
    with unshared(monkeypatch), counted_rows(masked_lm, lambda site: site.layer) as whole:
        scorer(gates)
    assert shared == whole


def test_streams_are_kept_as_far_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    masked_lm = MaskedLM(tiny_llama(layers=6))
    ids = texts()[0].input_ids
    stream_bytes = ids.numel() * 24 * 4  # width 24, float32
    for kept, streams in ((6, [1, 2, 3, 4, 5]), (3, [2, 4]), (2, [3])):
        monkeypatch.setattr(prefix, "MAX_PREFIX_BYTES", kept * stream_bytes)
        with recording(masked_lm.layout) as outputs:
            masked_lm.layout.hidden(ids)
        found = prefix_of(masked_lm.layout, outputs)
        assert found is not None and list(found.streams) == streams
        assert found.nearest_start(1) in (0, 1) and found.nearest_start(5) == streams[-1]


def test_what_is_charged_does_not_depend_on_the_streams_that_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that share texts may keep streams of other layers, and must run out of their budget at the same mask."""
    free_forwards(monkeypatch)
    masked_lm, spent, layers_run = MaskedLM(tiny_llama(layers=6)), list[float](), list[int]()
    masks = candidates(masked_lm.graph.n_nodes)
    for max_bytes in (2**30, 3 * texts()[0].input_ids.numel() * 24 * 4):
        monkeypatch.setattr(prefix, "MAX_PREFIX_BYTES", max_bytes)
        scorer = MaskScorer(masked_lm, texts(), GROUPS)
        with counted_rows(masked_lm, lambda site: site.mlp) as rows:
            scorer(masks)
        spent.append(scorer.tokens.spent)
        layers_run.append(sum(rows))
    assert layers_run[0] < layers_run[1] and spent[0] == spent[1]


def test_a_model_whose_layers_read_earlier_layers_shares_nothing() -> None:
    masked_lm = MaskedLM(tiny_llama())
    first, last = masked_lm.layout.sites[0].layer, masked_lm.layout.sites[2].layer
    seen: list[Tensor] = []
    first.register_forward_hook(lambda module, args, output: seen.append(output))
    last.register_forward_pre_hook(lambda module, args: (args[0] + seen[-1], *args[1:]))
    masked_lm.layout.hidden(texts()[0].input_ids)
    assert not can_share_prefixes(masked_lm.layout)


def test_layers_that_return_more_than_the_stream_share_nothing() -> None:
    bloom = MaskedLM(next(family for family in FAMILIES if family.name == "bloom").build())
    assert not can_share_prefixes(bloom.layout)
    masks = candidates(bloom.graph.n_nodes)
    assert MaskScorer(bloom, texts(), GROUPS)(masks).isfinite().all()


def test_neighbouring_layers_share_a_chunk_if_another_forward_costs_more() -> None:
    layers = [3, 3, 2, 0]
    assert chunks.plan_batches(layers, 4, ForwardCost(4, 1, 0, 0)) == [[slice(0, 2), slice(2, 3), slice(3, 4)]]
    assert chunks.plan_batches(layers, 4, ForwardCost(4, 1, 0, 100)) == [[slice(0, 4)]]
    # Three chunks cost (1.5 + 2) * 1 + (1.5 + 1) * 2 + (1.5 + 1) * 4 = 18.5, with the last two together 3.5 + 3.5 * 4 =
    # 17.5, the first two together 4.5 * 2 + 10 = 19, all together 5.5 * 4 = 22
    assert chunks.plan_batches(layers, 4, ForwardCost(4, 1, 0, 1.5)) == [[slice(0, 2), slice(2, 4)]]
    assert chunks.plan_batches(layers, 2, ForwardCost(4, 1, 0, 0)) == [
        [slice(0, 2)],
        [slice(2, 3), slice(3, 4)],
    ]


def test_prefixes_are_not_shared_where_forwards_cost_more_than_their_rows() -> None:
    masked_lm = MaskedLM(tiny_llama())  # a layer of a few thousand weights takes no time beside its launch
    scorer, masks = MaskScorer(masked_lm, texts(), GROUPS), candidates(masked_lm.graph.n_nodes)
    with counted_rows(masked_lm, lambda site: site.layer) as rows:
        scorer(masks)
    assert sum(rows) == len(masks) * 4 * masked_lm.graph.n_layers


def test_a_deep_model_runs_fewer_layers_for_every_single_flip() -> None:
    cost, layers = ForwardCost(30, 16, 0, 30), sorted([i // 2 % 30 for i in range(60)], reverse=True)
    batches = chunks.plan_batches(layers, 60, cost)
    assert cost.favours_sharing(batches, layers)
    passes = 30 + sum((c.stop - c.start) * (30 - layers[c.stop - 1]) for batch in batches for c in batch)
    assert 1.6 * passes < 60 * 30
