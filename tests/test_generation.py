"""Generating under gates: right with a cache where it can be, refused where it would silently go wrong."""

from inspect import signature

import pytest
import torch
from conftest import refused
from torch import Tensor
from transformers import PreTrainedModel

import masklearn as ml
from masklearn.masking import MaskedLM

NEW_TOKENS = 4


def half(lm: PreTrainedModel) -> Tensor:
    n_nodes = ml.NodeGraph.of(lm).n_nodes
    return torch.rand(n_nodes, generator=torch.Generator().manual_seed(3)).round()


def positional(lm: PreTrainedModel, tokens: Tensor) -> ml.Ablation:
    """The outputs on one text, which depend on the position."""
    return MaskedLM(lm, ml.Ablation("resample")).resampled(tokens[:1])


def greedy(lm: PreTrainedModel, tokens: Tensor) -> list[int]:
    """The most probable continuation, by a forward on the whole text for every token."""
    ids = tokens
    for _ in range(NEW_TOKENS):
        ids = torch.cat([ids, lm(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids[0, tokens.shape[1] :].tolist()


def generate(lm: PreTrainedModel, tokens: Tensor, use_cache: bool) -> list[int]:
    found = lm.generate(
        tokens, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, use_cache=use_cache,
        attention_mask=torch.ones_like(tokens), eos_token_id=None,
    )  # fmt: skip
    assert isinstance(found, Tensor)
    return found[0, tokens.shape[1] :].tolist()


@pytest.mark.parametrize("use_cache", [True, False])
def test_zero_ablation_generates_the_same_with_and_without_a_cache(
    lm: PreTrainedModel, tokens: Tensor, use_cache: bool
) -> None:
    with ml.gated(lm, half(lm)):
        assert generate(lm, tokens[1:], use_cache) == greedy(lm, tokens[1:])


def test_values_that_depend_on_the_position_are_refused_with_a_cache(lm: PreTrainedModel, tokens: Tensor) -> None:
    ablation, text = positional(lm, tokens), tokens[1:]
    with ml.gated(lm, half(lm), ablation):
        assert generate(lm, text, use_cache=False) == greedy(lm, text)
        assert "use_cache=False" in refused(lambda: generate(lm, text, use_cache=True))
    cache = lm(text).past_key_values
    with ml.gated(lm, half(lm), ablation):
        assert "a cache" in refused(lambda: lm(text[:, :1], past_key_values=cache))
    generate(lm, text, use_cache=True)  # the check ends with the gates


def test_padding_on_the_left_is_refused_where_the_position_counts(lm: PreTrainedModel, tokens: Tensor) -> None:
    mask = torch.ones_like(tokens)
    mask[0, 0] = 0
    with ml.gated(lm, half(lm), positional(lm, tokens)):
        for call in (lm, MaskedLM(lm).layout.body):
            gap = [None] * ([*signature(call.forward).parameters].index("attention_mask") - 1)
            assert "padding on the left" in refused(lambda call=call, gap=gap: call(tokens, *gap, mask))
            assert "padding on the left" in refused(lambda call=call: call(tokens, attention_mask=mask))
        lm(tokens, attention_mask=mask.flip(1))


@pytest.mark.parametrize("whole", [True, False], ids=["the model", "one layer"])
def test_a_model_in_training_mode_is_refused(lm: PreTrainedModel, tokens: Tensor, whole: bool) -> None:
    """In training mode dropout changes the logits at random."""
    gates = half(lm)
    with ml.gated(lm, gates):
        expected = lm(tokens).logits
    module = lm if whole else next(module for module in lm.modules() if isinstance(module, torch.nn.ModuleList))[0]
    module.train()
    assert "lm.eval()" in refused(lambda: ml.gated(lm, gates).__enter__())
    lm.eval()
    with ml.gated(lm, gates):
        torch.testing.assert_close(lm(tokens).logits, expected)


# --- constants in place of closed nodes -------------------------------------------------------------------------------


def constants(lm: PreTrainedModel, tokens: Tensor) -> dict[str, ml.Ablation]:
    """The ablations that a cache allows: their closed nodes emit the same at every position."""
    mean = MaskedLM(lm).mean_ablation([(tokens, torch.ones_like(tokens, dtype=torch.bool))])
    noisy = [
        tuple(value + torch.linspace(0, 1, value.shape[-1]) for value in values) for values in (mean.heads, mean.mlps)
    ]
    return {"zero": ml.Ablation(), "mean": mean, "learned": ml.Ablation("learned", *noisy)}


@pytest.mark.parametrize("options", [{"do_sample": False}, {"num_beams": 3, "do_sample": False}, {"do_sample": True}],
                         ids=["greedy", "beams", "sampling"])  # fmt: skip
def test_a_batch_padded_on_the_left_generates_with_a_cache_what_each_text_does_without(
    lm: PreTrainedModel, tokens: Tensor, options: dict[str, object]
) -> None:
    real = torch.ones_like(tokens)
    real[0, :2] = 0
    for ablation in constants(lm, tokens).values():
        found = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            with ml.gated(lm, half(lm), ablation):
                output = lm.generate(tokens, attention_mask=real, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS,
                                     eos_token_id=None, use_cache=use_cache, **options)  # fmt: skip
            found.append(output.tolist())
        assert found[0] == found[1]
        if options == {"do_sample": False}:
            with ml.gated(lm, half(lm), ablation):
                alone = lm.generate(tokens[:1, 2:], attention_mask=real[:1, 2:], max_new_tokens=NEW_TOKENS,
                                    min_new_tokens=NEW_TOKENS, eos_token_id=None, do_sample=False)  # fmt: skip
            assert alone[0, -NEW_TOKENS:].tolist() == found[0][0][-NEW_TOKENS:]


def test_tokens_stream_as_they_are_generated(lm: PreTrainedModel, tokens: Tensor) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.ids: list[int] = []

        def put(self, value: Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ids.append(-1)

    for ablation in constants(lm, tokens).values():
        streamer = Streamer()
        with ml.gated(lm, half(lm), ablation):
            output = lm.generate(tokens[1:], max_new_tokens=NEW_TOKENS, do_sample=False, streamer=streamer,
                                 attention_mask=torch.ones_like(tokens[1:]), eos_token_id=None)  # fmt: skip
            assert streamer.ids == [*output[0].tolist(), -1]
            assert output[0, -NEW_TOKENS:].tolist() == greedy(lm, tokens[1:])
