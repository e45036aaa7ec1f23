from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import kl_div
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from masklearn import objective
from masklearn.objective import chunked_kl, kl_divergence


def test_kl_of_two_coins_by_hand() -> None:
    full, masked = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    # 1/2 log(1/2 / 1/4) + 1/2 log(1/2 / 3/4) = 1/2 log(4/3)
    assert_close(kl_divergence(full, masked), torch.tensor(4 / 3).log() / 2)


def reference(full: Tensor, masked: Tensor, unembed: nn.Module) -> Tensor:
    """The KL by torch, from all logits at once."""
    target = unembed(full).log_softmax(-1).expand(len(masked), -1, -1)
    return kl_div(unembed(masked).log_softmax(-1), target, log_target=True, reduction="none").sum(-1)


@settings(deadline=None)
@given(k=st.integers(1, 4), positions=st.integers(1, 9), chunk=st.integers(1, 200), seed=st.integers(0, 100))
def test_chunks_change_neither_value_nor_gradient(k: int, positions: int, chunk: int, seed: int) -> None:
    torch.manual_seed(seed)
    unembed = nn.Linear(5, 11).requires_grad_(False)
    full = torch.randn(positions, 5)
    masked, reference_masked = (
        torch.randn(k, positions, 5, generator=torch.Generator().manual_seed(seed)) for _ in range(2)
    )
    weights = torch.rand(k, positions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "CHUNK_LOGITS", chunk)
        patch.setattr(objective, "TILE_LOGITS", chunk // 2)
        found = chunked_kl(full, masked.requires_grad_(), unembed)
        (found * weights).sum().backward()
        without_gradient = chunked_kl(full, masked.detach(), unembed)
    expected = reference(full, reference_masked.requires_grad_(), unembed)
    (expected * weights).sum().backward()
    assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert_close(without_gradient, expected, atol=1e-6, rtol=1e-5)
    assert_close(masked.grad, reference_masked.grad, atol=1e-6, rtol=1e-4)


def test_equal_hidden_states_have_a_kl_of_zero() -> None:
    full = torch.randn(6, 5)
    kl = chunked_kl(full, full.expand(2, -1, -1), nn.Linear(5, 11))
    assert ((kl >= 0) & (kl < 1e-6)).all()  # rounding may leave a little above zero, never below


def test_no_chunk_has_more_logits_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    weight = torch.randn(100, 4)

    def unembed(hidden: Tensor) -> Tensor:
        sizes.append(hidden.shape[:-1].numel() * 100)
        return hidden @ weight.T

    monkeypatch.setattr(objective, "CHUNK_LOGITS", 1000)
    full, masked = torch.randn(64, 4), torch.randn(3, 64, 4)
    chunked_kl(full, masked, unembed)
    assert max(sizes) == 4 * 2 * 100  # two positions of the full model and three others
    sizes.clear()
    chunked_kl(full, masked.requires_grad_(), unembed)
    assert max(sizes) == 3 * 3 * 100


class LargestSoftmax(TorchDispatchMode):
    """Notes how many log-probabilities are computed at once."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if func is torch.ops.aten._log_softmax.default:
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_no_more_logits_are_compared_at_once_than_a_tile_has(
    monkeypatch: pytest.MonkeyPatch, needs_gradient: bool
) -> None:
    monkeypatch.setattr(objective, "TILE_LOGITS", 1000)
    with LargestSoftmax() as softmax:
        chunked_kl(torch.randn(64, 4), torch.randn(3, 64, 4, requires_grad=needs_gradient), nn.Linear(4, 100))
    assert softmax.largest == (900 if needs_gradient else 600)  # three positions of three models, or two of four


def test_a_chunk_on_a_gpu_takes_a_sixteenth_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert objective.max_chunk_logits(torch.device("cuda")) == 80 * 2**30 // 16 // 24
    assert objective.max_chunk_logits(torch.device("cpu")) == objective.CHUNK_LOGITS


def test_hidden_states_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="do not match"):
        chunked_kl(torch.randn(6, 5), torch.randn(2, 7, 5), nn.Linear(5, 11))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.floats(-1e-6, 1e-6))
def test_the_kl_is_never_below_zero_nor_minus_zero(seed: int, scale_offset: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    full, weight = (torch.randn(shape, generator=generator) for shape in ((5, 8), (11, 8)))
    kl = chunked_kl(full, full[None] * (1 + scale_offset), lambda hidden: hidden @ weight.T)
    assert not kl.signbit().any()
