"""Masks on weights in 8 and 4 bits."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refused

import masklearn as ml
from masklearn.cli.entry_points import evaluate, train
from masklearn.export.hf_folder import to_hf
from masklearn.masking import MaskedLM
from masklearn.models import placement

pytest.importorskip("accelerate")

IDS = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))
SCORED = torch.arange(14)  # every position
pytestmark = [
    pytest.mark.filterwarnings("ignore:The following device_map keys"),
    pytest.mark.filterwarnings("ignore:.*torch.distributed.reduce_op:FutureWarning"),  # of bitsandbytes
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
]
RUN = "--data.limit 12 --model.sizes [9] --model.steps 3 --model.polish 0 --trainer.logger false".split()


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantised_weights_give_the_gradient_of_the_same_weights_in_float32(
    bits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(placement, "has_gpu", lambda: True)
    lm = ml.load_lm(quantization=bits)
    for module in lm.modules():
        module.support_avx512bf16_for_cpu = False  # its products have no gradient
    assert placement.is_placed(lm)
    rounded = MaskedLM(copy.deepcopy(lm).dequantize().float())
    gates = torch.linspace(0.1, 0.9, 3 * 2 * rounded.graph.n_nodes).view(3, 2, -1).requires_grad_()
    outcomes = []
    for masked_lm in (MaskedLM(lm), rounded):
        hidden = masked_lm(IDS, SCORED, gates)
        (gradients,) = torch.autograd.grad((hidden * torch.linspace(-1, 1, hidden.shape[-1])).sum(), gates)
        outcomes += [hidden.detach(), gradients]
    tolerance = 0.05 if bits == "8bit" else 1e-4  # in 8 bits activations are rounded, too
    for found, expected in zip(outcomes[:2], outcomes[2:], strict=True):
        assert found.dtype == torch.float32 and (found - expected).norm() < tolerance * expected.norm()


def test_masks_are_learned_on_quantised_weights_and_evaluated_on_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    assert train([*RUN, "--model.quantization", "8bit", "--run.dir", "run"]) == 0
    assert evaluate(["--mask", "run", "--study", "false", "--out", "out"]) == 0
    found, learned = (json.loads(Path(f"{folder}/metrics.json").read_text()) for folder in ("out", "run"))
    assert [size["kl"] for size in found["sizes"]] == [size["kl"] for size in learned["sizes"]]
    lm, bank = ml.load_lm(quantization="8bit"), ml.Mask.load("run")
    assert "--model.quantization out" in refused(lambda: to_hf(lm, None, bank, 9, "smaller"))


def test_4_bit_weights_are_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: True)
    monkeypatch.setattr(placement, "has_gpu", lambda: False)
    assert "4bit needs a GPU" in refused(lambda: ml.load_lm(quantization="4bit"))
