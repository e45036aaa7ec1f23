"""Gates on two small models, compared with a residual stream computed step by step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import gated_logits, run_with
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel

import masklearn as ml
from masklearn.masking import MaskedLM
from masklearn.masking.gating import product


def random_gates(n: int, n_nodes: int) -> Tensor:
    return torch.rand((n, n_nodes), generator=torch.Generator().manual_seed(2))


def test_open_gates_change_nothing(masked_lm: MaskedLM, tokens: Tensor, everywhere: Tensor) -> None:
    gates = torch.ones(3, len(tokens), masked_lm.graph.n_nodes)
    full = masked_lm.full(tokens, everywhere)
    assert_close(masked_lm(tokens, everywhere, gates), full.expand(3, -1, -1))
    assert_close(masked_lm.unembed(full), masked_lm.lm(tokens).logits.flatten(0, 1))


@pytest.mark.parametrize("discrete", [True, False], ids=["masks", "soft gates"])
def test_gated_logits_equal_those_of_the_reference(lm: PreTrainedModel, tokens: Tensor, discrete: bool) -> None:
    graph = ml.NodeGraph.of(lm)
    for gates in random_gates(8, graph.n_nodes):
        gates = gates.round() if discrete else gates
        with ml.gated(lm, gates):
            found = lm(tokens).logits
        assert_close(found, gated_logits(lm, tokens, gates), atol=1e-5, rtol=1e-5)


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.3, 0.9, 1.0, 2.0]), min_size=1, max_size=9))
def test_the_product_of_the_last_dimension_and_its_gradient(factors: list[float]) -> None:
    values = torch.tensor([factors, factors[::-1]], dtype=torch.float64, requires_grad=True)
    found, expected = product(values), values.prod(-1, keepdim=True)
    assert_close(found, expected)
    assert_close(*(torch.autograd.grad(each.square().sum(), values)[0] for each in (found, expected)))


def test_every_row_has_its_own_gates(masked_lm: MaskedLM, tokens: Tensor, everywhere: Tensor) -> None:
    gates = random_gates(6, masked_lm.graph.n_nodes).view(3, 2, -1).round()
    found = masked_lm.unembed(masked_lm(tokens, everywhere, gates)).unflatten(1, tokens.shape)
    for k in range(3):
        for row in range(2):
            expected = gated_logits(masked_lm.lm, tokens[row : row + 1], gates[k, row])
            assert_close(found[k, row], expected[0], atol=1e-5, rtol=1e-5)


def test_a_boolean_mask_is_accepted(lm: PreTrainedModel, tokens: Tensor) -> None:
    mask = random_gates(1, ml.NodeGraph.of(lm).n_nodes)[0] > 0.5
    with ml.gated(lm, mask):
        found = lm(tokens).logits
    assert_close(found, gated_logits(lm, tokens, mask.float()), atol=1e-5, rtol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.modules())


def test_gate_gradients_equal_central_differences(lm: PreTrainedModel, tokens: Tensor, everywhere: Tensor) -> None:
    masked_lm = MaskedLM(lm.double())
    gates = random_gates(1, masked_lm.graph.n_nodes).double().requires_grad_()

    def loss(gates: Tensor) -> Tensor:
        hidden = masked_lm(tokens, everywhere, gates.expand(1, len(tokens), -1))
        return masked_lm.unembed(hidden).log_softmax(-1)[:, :, 7].mean()

    (found,) = torch.autograd.grad(loss(gates), gates)
    step = 1e-3  # large, since the model computes in part in float32
    for i in range(gates.shape[-1]):
        shift = torch.zeros_like(gates)
        shift[0, i] = step
        expected = (loss(gates.detach() + shift) - loss(gates.detach() - shift)) / (2 * step)
        assert_close(found[0, i], expected, atol=1e-6, rtol=1e-2)
    assert found.all()


def test_padding_on_the_right_changes_nothing(masked_lm: MaskedLM, tokens: Tensor) -> None:
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[1, 4:] = False
    padded = tokens.masked_fill(~real, 0)
    gates = random_gates(2, masked_lm.graph.n_nodes).view(1, 2, -1)
    found = masked_lm(padded, real, gates)[0]
    alone = [masked_lm(tokens[i : i + 1, :n], real[i : i + 1, :n], gates[:, i : i + 1])[0] for i, n in ((0, 7), (1, 4))]
    assert_close(found, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_mean_ablation_equals_the_means_of_the_reference(masked_lm: MaskedLM, tokens: Tensor) -> None:
    """The reference takes the means of what each node adds to the residual stream, with all gates open."""
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[1, 4:] = False
    lm, graph = masked_lm.lm, masked_lm.graph
    ablation = masked_lm.mean_ablation(iter([(tokens[:1], real[:1]), (tokens[1:], real[1:])]))

    outputs: dict[str, list[Tensor]] = {name: [] for name in graph.names}

    def record(name: str, output: Tensor) -> Tensor:
        outputs[name].append(output[0])
        return output

    for row, n_tokens in ((tokens[0], 7), (tokens[1], 4)):
        run_with(lm, row[None, :n_tokens], record)
    means = torch.stack([torch.cat(outputs[name]).mean(0) for name in graph.names])  # (nodes, width)
    for gates in random_gates(4, graph.n_nodes).round():
        with ml.gated(lm, gates, ablation):
            found = lm(tokens).logits
        assert_close(found, gated_logits(lm, tokens, gates, means), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(14,), (2, 16), (1, 2, 16), (1, 1, 2, 15), ()])
def test_gates_of_another_model_are_refused(tokens: Tensor, shape: tuple[int, ...], lm: PreTrainedModel) -> None:
    with pytest.raises(ml.UserError, match="15 nodes"), ml.gated(lm, torch.ones(shape)):
        lm(tokens)
