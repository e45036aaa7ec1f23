"""Weights in the format of compressed-tensors, which transformers reads if that package is installed.

It is not among the packages that tests install: `pip install compressed-tensors` runs the first test.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import refused, tiny_llama
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import PreTrainedModel

import masklearn as ml
from masklearn.masking import MaskedLM

SCHEME = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}


def save_as_compressed(lm: PreTrainedModel, state: dict[str, Tensor], folder: Path) -> None:
    groups = {"group_0": {"targets": ["Linear"], "weights": SCHEME}}
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"]}
    quantization |= {"quantization_status": "compressed", "config_groups": groups}
    config = lm.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def compress(lm: PreTrainedModel, folder: Path) -> None:
    """Write a model with linear weights in 8 bits, and round those of the model itself accordingly."""
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    state = {name: parameter.detach().clone() for name, parameter in lm.named_parameters()}
    for name, module in lm.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            weight = state.pop(f"{name}.weight")
            scale = weight.abs().amax(1, keepdim=True) / 127
            rounded = (weight / scale).round()
            state[f"{name}.weight_packed"] = helpers.pack_to_int32(rounded.to(torch.int8), 8)
            state[f"{name}.weight_scale"], state[f"{name}.weight_shape"] = scale, torch.tensor(weight.shape)
            module.weight.data = rounded * scale
    save_as_compressed(lm, state, folder)


def test_compressed_weights_have_the_logits_and_gate_gradients_of_the_rounded_model(
    tokens: Tensor, everywhere: Tensor, tmp_path: Path
) -> None:
    lm = tiny_llama()
    compress(lm, tmp_path)
    found: list[tuple[Tensor, ...]] = []
    for each in (lm, ml.load_lm(str(tmp_path))):
        gates = torch.linspace(0, 1, 15).requires_grad_()
        masked = MaskedLM(each)(tokens, everywhere, gates.expand(1, len(tokens), -1))
        (gradient,) = torch.autograd.grad(masked.square().sum(), gates)
        found.append((each(input_ids=tokens).logits, masked, gradient))
    assert_close(found[1], found[0])
    assert all(part.abs().max() > 0 for part in found[0])


@pytest.mark.skipif(find_spec("compressed_tensors") is not None, reason="the package is installed")
def test_a_missing_package_is_named(tmp_path: Path) -> None:
    save_as_compressed(tiny_llama(), {"weight": torch.zeros(1)}, tmp_path)
    assert refused(lambda: ml.load_lm(str(tmp_path))).endswith("`). It reads these weights")
