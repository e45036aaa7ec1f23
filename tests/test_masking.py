import pytest
import torch
from reference import gated_logits
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel

import masklearn as ml
from masklearn.masking import MaskedLM


def masks(n: int, n_nodes: int) -> Tensor:
    return torch.rand((n, n_nodes), generator=torch.Generator().manual_seed(2))


def test_open_gates_change_nothing(masked_lm: MaskedLM, tokens: Tensor, everywhere: Tensor) -> None:
    gates = torch.ones(3, len(tokens), masked_lm.graph.n_nodes)
    full = masked_lm.full(tokens, everywhere)
    assert_close(masked_lm(tokens, everywhere, gates), full.expand(3, -1, -1))
    assert_close(masked_lm.unembed(full), masked_lm.lm(tokens).logits.flatten(0, 1))


@pytest.mark.parametrize("rounded", [True, False], ids=["masks", "soft gates"])
def test_gated_logits_are_those_of_the_residual_stream_written_out(
    lm: PreTrainedModel, tokens: Tensor, rounded: bool
) -> None:
    graph = ml.NodeGraph.of(lm)
    for gates in masks(8, graph.n_nodes):
        gates = gates.round() if rounded else gates
        with ml.gated(lm, gates):
            found = lm(tokens).logits
        assert_close(found, gated_logits(lm, tokens, gates), atol=1e-5, rtol=1e-5)


def test_every_row_has_its_own_gates(masked_lm: MaskedLM, tokens: Tensor, everywhere: Tensor) -> None:
    gates = masks(6, masked_lm.graph.n_nodes).view(3, 2, -1).round()
    found = masked_lm.unembed(masked_lm(tokens, everywhere, gates)).unflatten(1, tokens.shape)
    for k in range(3):
        for row in range(2):
            expected = gated_logits(masked_lm.lm, tokens[row : row + 1], gates[k, row])
            assert_close(found[k, row], expected[0], atol=1e-5, rtol=1e-5)


def test_one_mask_may_be_boolean(lm: PreTrainedModel, tokens: Tensor) -> None:
    mask = masks(1, ml.NodeGraph.of(lm).n_nodes)[0] > 0.5
    with ml.gated(lm, mask):
        found = lm(tokens).logits
    assert_close(found, gated_logits(lm, tokens, mask.float()), atol=1e-5, rtol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.modules())


def test_gradient_of_every_gate_is_right(lm: PreTrainedModel, tokens: Tensor, everywhere: Tensor) -> None:
    masked_lm = MaskedLM(lm.double())
    gates = masks(1, masked_lm.graph.n_nodes).double().requires_grad_()

    def loss(gates: Tensor) -> Tensor:
        return masked_lm.unembed(gated_states(gates)).log_softmax(-1)[:, :, 7].mean()

    def gated_states(gates: Tensor) -> Tensor:
        return masked_lm(tokens, everywhere, gates.expand(1, len(tokens), -1))

    (found,) = torch.autograd.grad(loss(gates), gates)
    step = 1e-3  # gates are float32 inside
    for i in range(gates.shape[-1]):
        shift = torch.zeros_like(gates)
        shift[0, i] = step
        expected = (loss(gates.detach() + shift) - loss(gates.detach() - shift)) / (2 * step)
        assert_close(found[0, i], expected, atol=1e-6, rtol=1e-2)
    assert found.all()


def test_padding_on_the_right_is_never_seen(masked_lm: MaskedLM, tokens: Tensor) -> None:
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[1, 4:] = False
    padded = tokens.masked_fill(~real, 0)
    gates = masks(2, masked_lm.graph.n_nodes).view(1, 2, -1)
    found = masked_lm(padded, real, gates)[0]
    alone = [masked_lm(tokens[i : i + 1, :n], real[i : i + 1, :n], gates[:, i : i + 1])[0] for i, n in ((0, 7), (1, 4))]
    assert_close(found, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_mean_ablation_is_what_brute_force_gives(masked_lm: MaskedLM, tokens: Tensor) -> None:
    """Means of what each node adds to the stream, found by opening it alone against closing it."""
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[1, 4:] = False
    lm, graph = masked_lm.lm, masked_lm.graph
    batches = [(tokens[:1], real[:1]), (tokens[1:], real[1:])]
    ablation = masked_lm.mean_ablation(iter(batches))

    outputs = {name: [] for name in graph.names}  # by the written-out forward: what passes each node, all gates open

    def spy(row: Tensor) -> None:
        def through(name: str, output: Tensor) -> Tensor:
            outputs[name].append(output[0])
            return output

        import reference

        forward = {"llama": reference._llama, "gpt2": reference._gpt2}[lm.config.model_type]
        forward(lm, row[None], graph, through)

    for row, n in ((tokens[0], 7), (tokens[1], 4)):
        spy(row[:n])
    added = torch.stack([torch.cat(outputs[name]).mean(0) for name in graph.names])  # (nodes, hidden)
    for gates in masks(4, graph.n_nodes).round():
        with ml.gated(lm, gates, ablation):
            found = lm(tokens).logits
        assert_close(found, gated_logits(lm, tokens, gates, added), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(14,), (2, 16), (1, 2, 15), ()])
def test_gates_of_another_model_are_refused(tokens: Tensor, shape: tuple[int, ...], lm: PreTrainedModel) -> None:
    with pytest.raises(ml.UserError, match="15 nodes"), ml.gated(lm, torch.ones(shape)):
        lm(tokens)
