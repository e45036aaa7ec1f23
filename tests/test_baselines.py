"""Baselines, each compared with a plain implementation."""

import pytest
import torch
from conftest import GROUPS, texts
from hypothesis import given
from hypothesis import strategies as st
from reference import gated_logits
from torch import Tensor
from torch.testing import assert_close

from masklearn import NodeGraph
from masklearn.gates import top
from masklearn.mask_file import Mask, ModelId
from masklearn.masking import MaskedLM
from masklearn.selection.attribution import attribution, integrated_gradients, norm
from masklearn.selection.baselines import N_RANDOM_MASKS, Baseline, matched_masks, random_masks, subgraphs
from masklearn.selection.scorer import MaskScorer


def inputs(group: int) -> list[Tensor]:
    """The texts of a group, one by one and without padding: shapes (1, tokens)."""
    return [
        ids[real][None]
        for batch in texts()
        for ids, real, text_group in zip(batch.input_ids, batch.real, batch.group.tolist(), strict=True)
        if text_group == group
    ]


def losses(masked_lm: MaskedLM, group: int, gates: Tensor) -> Tensor:
    """The negative log-probability of the full model's most probable token, at every position of a group."""
    found = []
    for ids in inputs(group):
        argmax = gated_logits(masked_lm.lm, ids, torch.ones_like(gates)).argmax(-1)
        logp = gated_logits(masked_lm.lm, ids, gates).log_softmax(-1)
        found.append(-logp.gather(-1, argmax[..., None]).flatten())
    return torch.cat(found)


def test_attribution_is_gradient_times_difference(masked_lm: MaskedLM) -> None:
    """The reference gates what each head and each MLP adds to the residual stream."""
    found = attribution(MaskScorer(masked_lm, texts(), GROUPS))
    for i, group in enumerate(GROUPS):
        gates = torch.ones(masked_lm.graph.n_nodes, requires_grad=True)
        losses(masked_lm, group, gates).mean().backward()
        assert gates.grad is not None
        assert_close(found[i], -gates.grad, atol=1e-4, rtol=1e-3)


def test_integrated_gradients_add_up_to_the_kl_of_the_empty_subgraph(masked_lm: MaskedLM) -> None:
    """Completeness, up to the error of ten points on the path; the KL of the full model is 0."""
    scorer, n_nodes = MaskScorer(masked_lm, texts(), GROUPS), masked_lm.graph.n_nodes
    empty = scorer(torch.zeros(1, 3, n_nodes))[0]
    assert_close(integrated_gradients(scorer).sum(-1), empty, atol=0.03, rtol=0.15)


def test_the_norm_is_a_nodes_share_of_the_residual_stream_it_adds_to(masked_lm: MaskedLM) -> None:
    """The stream is rebuilt from the embeddings and from what every node adds."""
    found = norm(MaskScorer(masked_lm, texts(), GROUPS))
    lm, graph = masked_lm.lm, masked_lm.graph
    for i, group in enumerate(GROUPS):
        shares = []
        for ids in inputs(group):
            added = [contribution(masked_lm, ids, node) for node in range(graph.n_nodes)]
            stream = lm.get_input_embeddings()(ids)[0]
            if lm.config.model_type == "gpt2":
                stream = stream + lm.transformer.wpe(torch.arange(ids.shape[1]))
            text_shares = torch.zeros(ids.shape[1], graph.n_nodes)
            for layer in range(graph.n_layers):
                first = layer * (graph.n_heads + 1)
                heads = torch.stack(added[first : first + graph.n_heads], -1)  # (tokens, width, heads)
                norms = heads.abs().sum(1)
                text_shares[:, first : first + graph.n_heads] = norms / (norms.sum(-1, keepdim=True) + norm_of(stream))
                stream = stream + heads.sum(-1)
                if lm.config.model_type == "gpt2":
                    stream = stream + lm.get_submodule(f"transformer.h.{layer}.attn.c_proj").bias
                mlp = added[first + graph.n_heads]
                text_shares[:, first + graph.n_heads] = (norm_of(mlp) / (norm_of(mlp) + norm_of(stream)))[:, 0]
                stream = stream + mlp
            shares.append(text_shares)
        assert_close(found[i], torch.cat(shares).mean(0), atol=1e-5, rtol=1e-4)


def norm_of(vectors: Tensor) -> Tensor:
    return vectors.abs().sum(-1, keepdim=True)


def contribution(masked_lm: MaskedLM, ids: Tensor, node: int) -> Tensor:
    """What a node adds to the residual stream of the full model, (tokens, width): the effect of closing it."""
    graph = masked_lm.graph
    layer = graph.nodes[node].layer
    outputs = []
    site = masked_lm.layout.sites[layer]
    module = site.mlp if graph.nodes[node].head is None else site.output_projection
    handle = module.register_forward_hook(lambda _, args, output: outputs.append(output[0]))
    gates = torch.ones(2, 1, graph.n_nodes)
    gates[1, :, node] = 0
    for gate in gates:
        masked_lm(ids, torch.ones_like(ids, dtype=torch.bool), gate[None])
    handle.remove()
    return outputs[0] if module is site.mlp else outputs[0] - outputs[1]


@given(seed=st.integers(0, 1000), layers=st.integers(1, 4), heads=st.integers(1, 5))
def test_matched_subgraphs_have_as_many_heads_and_mlps_as_their_mask(seed: int, layers: int, heads: int) -> None:
    graph = NodeGraph(layers, heads)
    masks = torch.rand(3, 2, graph.n_nodes, generator=torch.Generator().manual_seed(seed)) > 0.5
    matched = matched_masks(4, masks, graph, seed)
    assert matched.shape == (4, *masks.shape)
    for found, expected in zip(graph.count(matched), graph.count(masks), strict=True):
        assert torch.equal(found, expected.expand_as(found))
    assert torch.equal(matched, matched_masks(4, masks, graph, seed))


def test_random_subgraphs_have_their_size_and_use_every_node_alike() -> None:
    masks = random_masks(400, torch.tensor([1, 5]), 9)
    assert torch.equal(masks.sum(-1), torch.tensor([1, 5]).expand(400, 2))
    assert_close(masks.float().mean(0), torch.tensor([[1 / 9], [5 / 9]]).expand(2, 9), atol=0.1, rtol=0)


BASELINES: list[Baseline] = [
    *("random", "random-matched", "norm", "attribution", "integrated-gradients", "single-ablation"),
    *("greedy", "greedy-forward", "swap", "exhaustive"),
]


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_gives_subgraphs_of_the_sizes_of_the_bank(masked_lm: MaskedLM, name: Baseline) -> None:
    sizes, n_nodes = torch.tensor([2, 6]), masked_lm.graph.n_nodes
    scores = torch.rand(3, 1, n_nodes, generator=torch.Generator().manual_seed(4))
    groups = tuple(map(str, GROUPS))
    mask = Mask(top(scores, sizes), scores, sizes, masked_lm.graph, ModelId("m", None, "f"), groups)
    scorer = MaskScorer(masked_lm, texts(), GROUPS)
    found = subgraphs(name, mask, scorer)
    assert found.shape == (N_RANDOM_MASKS if name.startswith("random") else 1, 2, 3, n_nodes)
    assert torch.equal(found.sum(-1), sizes[:, None].expand(found.shape[:-1]))
    if name == "exhaustive":
        best = scorer(found[0])
        assert all((scorer(subgraphs(other, mask, scorer)[0]) >= best - 1e-6).all() for other in BASELINES[:-1])


def test_a_baseline_that_reads_texts_needs_a_scorer() -> None:
    graph, sizes = NodeGraph(1, 2), torch.tensor([1])
    mask = Mask(top(torch.rand(1, 1, 3), sizes), torch.rand(1, 1, 3), sizes, graph, ModelId("m", None, "f"))
    with pytest.raises(ValueError, match="the baseline greedy needs a MaskScorer"):
        subgraphs("greedy", mask)
    assert subgraphs("inverse", mask).sum() == 2
