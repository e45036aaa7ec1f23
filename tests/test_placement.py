"""Models on several devices, offloaded and quantised: the same masks, or one line that says what to do."""

import copy
import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import one_line, refused, texts, tiny_gpt2, tiny_llama
from families import build
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel
from two_devices import FIRST, SECOND, TwoDevices

import masklearn as ml
from masklearn.ablation import Ablation, AblationName
from masklearn.cli.entry_points import evaluate, train
from masklearn.masking import MaskedLM, node_contributions
from masklearn.models import describe_placement, move_model, placement
from masklearn.objective import chunked_kl
from masklearn.selection.scorer import MaskScorer
from masklearn.training import memory

pytest.importorskip("accelerate")

IDS = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))
SCORED = torch.arange(14)  # every position
GATES = torch.linspace(0, 1, 3 * 2 * 15).view(3, 2, 15)
MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "a norm after the attention": lambda: tiny_gemma()}
pytestmark = [
    pytest.mark.usefixtures("undrawn"),
    pytest.mark.filterwarnings("ignore:The following device_map keys"),
    pytest.mark.filterwarnings("ignore:.*torch.distributed.reduce_op:FutureWarning"),  # of bitsandbytes
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
]


def tiny_gemma() -> PreTrainedModel:
    torch.manual_seed(0)
    lm = build(
        "gemma2", vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.3,
    )  # fmt: skip
    return lm.eval().requires_grad_(False)


def over_two_devices(lm: PreTrainedModel) -> Any:
    """A copy whose first layer, embedding and head are on one device, and whose other layers and norm on another."""
    from accelerate import dispatch_model

    lm = copy.deepcopy(lm)
    vars(lm).pop("_masklearn_layout", None)  # so that it is found and verified on two devices
    body, layers = ("transformer", "h") if hasattr(lm, "transformer") else ("model", "layers")
    outside = {name for name, _ in lm.get_submodule(body).named_children()} - {layers}
    device_map = {f"{body}.{name}": str(SECOND if "norm" in name or name == "ln_f" else FIRST) for name in outside}
    device_map |= {f"{body}.{layers}.{i}": str(FIRST if i == 0 else SECOND) for i in range(3)}
    with TwoDevices():
        return dispatch_model(lm, {f"{body}.embed_tokens": str(FIRST)} | device_map | {"lm_head": str(FIRST)})


def gradient(masked_lm: MaskedLM, corrupted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The KL of three gate vectors at every position, and its gradient, both in main memory."""
    device = masked_lm.device
    gates = GATES.to(device).requires_grad_()
    full = masked_lm.full(IDS.to(device), SCORED.to(device))
    masked = masked_lm(IDS.to(device), SCORED.to(device), gates, None if corrupted is None else corrupted.to(device))
    kl = chunked_kl(full, masked, masked_lm.unembed)
    (found,) = torch.autograd.grad(kl.sum(), gates)
    assert kl.device == found.device == device
    return kl.detach().to("cpu"), found.to("cpu")


# --- several devices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", ["zero", "mean", "mean-positional", "resample"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_over_two_devices_has_the_kl_and_gradient_of_one(name: str, ablation: AblationName) -> None:
    lm = MODELS[name]()
    one = MaskedLM(lm, Ablation("resample") if ablation == "resample" else Ablation())
    real = torch.ones_like(IDS, dtype=torch.bool)
    if ablation.startswith("mean"):
        one.ablation = one.mean_ablation([(IDS, real)], ablation == "mean-positional")
    expected = gradient(one, IDS.flip(0))
    with TwoDevices():
        two = MaskedLM(over_two_devices(lm), one.ablation)
        assert (two.device, two.devices) == (FIRST, (FIRST, SECOND))
        if ablation.startswith("mean"):
            two.ablation = two.mean_ablation([(IDS.to(FIRST), real.to(FIRST))], ablation == "mean-positional")
        found = gradient(two, IDS.flip(0))
    assert_close(found, expected)


def test_an_operation_across_devices_is_an_error_in_these_tests() -> None:
    with TwoDevices(), pytest.raises(RuntimeError, match="cpu:1, cpu:2"):
        torch.mul(torch.ones(2).to(FIRST), torch.ones(2).to(SECOND))


def test_a_search_over_two_devices_scores_masks_as_on_one() -> None:
    """With shared prefixes and skipped MLPs, in forwards without gradients."""
    lm, masks = tiny_llama(), (torch.rand(6, 3, 15, generator=torch.Generator().manual_seed(0)) < 0.6).float()
    one = MaskScorer(MaskedLM(lm), texts(), [7, 3, 9])(masks)
    with TwoDevices():
        two = MaskedLM(over_two_devices(lm))
        ids, gates = IDS.to(FIRST), masks[0, :2].to(FIRST)
        found = MaskScorer(two, texts(), [7, 3, 9])(masks.to(FIRST)).to("cpu")
        prefix = two.prefix(ids, gates)
        assert prefix is not None and prefix.streams[2].device == SECOND
        with torch.no_grad():
            whole = two(ids, SCORED.to(FIRST), gates[None])
            shared = two(ids, SCORED.to(FIRST), gates[None], None, prefix, 2)
        assert_close(shared.to("cpu"), whole.to("cpu"))
    assert_close(found, one)


@pytest.mark.parametrize("name", MODELS)
def test_contributions_of_nodes_on_two_devices_are_those_on_one(name: str) -> None:
    lm = MODELS[name]()
    one = node_contributions(MaskedLM(lm), IDS)
    with TwoDevices():
        two = node_contributions(MaskedLM(over_two_devices(lm)), IDS.to(FIRST))
        assert two.device == FIRST
    assert_close(two.to("cpu"), one)


def test_memory_is_that_of_the_device_that_keeps_most() -> None:
    lm = tiny_llama()
    on_one = memory.bytes_per_row(MaskedLM(lm), 20)
    with TwoDevices():
        two = MaskedLM(over_two_devices(lm))
        assert 0.4 * on_one < memory.bytes_per_row(two, 20) < 0.9 * on_one


def test_lightning_leaves_a_placed_model_where_it_is() -> None:
    with TwoDevices():
        two = MaskedLM(over_two_devices(tiny_llama()))
        torch.nn.ModuleList([two]).to("cpu")
        assert {parameter.device for parameter in two.parameters()} == {FIRST, SECOND}
        assert "takes its inputs on cpu:1" in refused(lambda: move_model(two.lm, torch.device("cuda", 0)))


# --- offloaded weights ------------------------------------------------------------------------------------------------


@pytest.fixture(params=[tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def offloaded(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[MaskedLM, MaskedLM]:
    """A model in memory, and the same with its weights on the disk."""
    lm = request.param()
    lm.save_pretrained(tmp_path)
    return MaskedLM(lm), MaskedLM(ml.load_lm(str(tmp_path), device_map={"": "disk"}))


@pytest.mark.parametrize("max_tokens", [None, 14])
def test_offloaded_weights_have_the_gradient_of_those_in_memory(
    offloaded: tuple[MaskedLM, MaskedLM], max_tokens: int | None
) -> None:
    whole, on_disk = offloaded
    assert (
        describe_placement(on_disk.lm)
        == "Placement: 1 modules on disk; offloaded weights are read in every forward, which is slow"
    )
    if max_tokens:
        on_disk.row_limit.max_tokens[True] = max_tokens
    assert_close(gradient(on_disk), gradient(whole))
    assert all(parameter.is_meta for parameter in on_disk.lm.parameters()), "weights stay in memory"


def test_between_forward_and_backward_only_the_last_layer_is_in_memory(tmp_path: Path) -> None:
    lm = tiny_llama()
    shape = lm.get_parameter("model.layers.0.mlp.down_proj.weight").shape
    lm.save_pretrained(tmp_path)
    del lm

    def in_memory() -> int:
        gc.collect()
        weights = [found for found in gc.get_objects() if type(found) is torch.nn.Parameter and found.shape == shape]
        return sum(not weight.is_meta for weight in weights)

    of_other_tests = in_memory()
    on_disk = MaskedLM(ml.load_lm(str(tmp_path), device_map={"": "disk"}))
    hidden = on_disk(IDS, SCORED, GATES.clone().requires_grad_())
    assert in_memory() - of_other_tests == 1, "earlier layers are kept for the backward pass"
    hidden.sum().backward()


def test_memory_of_offloaded_layers_is_their_inputs_and_the_last_layer(offloaded: tuple[MaskedLM, MaskedLM]) -> None:
    whole, on_disk = offloaded
    of_whole, of_disk = (memory.bytes_per_row(masked_lm, 20) for masked_lm in (whole, on_disk))
    assert of_whole / 3 < of_disk < 0.7 * of_whole


RUN = [
    *("--data.task", "names", "--data.positions", "last", "--data.limit", "12", "--model.sizes", "[9]"),
    *("--model.steps", "3", "--model.polish", "0"),
    *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
]


def test_a_run_with_a_device_map_finds_the_masks_of_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    layers = {f"model.layers.{i}": "cpu" if i < 2 else "disk" for i in range(4)}
    outside = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    Path("map.json").write_text(json.dumps(layers | outside))
    assert train([*RUN, "--run.dir", "plain"]) == 0
    capsys.readouterr()
    assert train([*RUN, "--run.dir", "mapped", "--model.device_map", "map.json"]) == 0
    assert "2 modules on disk; offloaded weights are read in every forward, which is slow" in capsys.readouterr().out
    plain, mapped = (ml.Mask.load(f"{folder}/mask.safetensors") for folder in ("plain", "mapped"))
    assert torch.equal(plain.mask, mapped.mask)
    assert plain.model.fingerprint == mapped.model.fingerprint
    assert evaluate(["--mask", "mapped", "--study", "false", "--out", "out"]) == 0
    assert "disk" in capsys.readouterr().err
    found, learned = (json.loads(Path(f"{folder}/metrics.json").read_text()) for folder in ("out", "mapped"))
    assert [size["kl"] for size in found["sizes"]] == [size["kl"] for size in learned["sizes"]]


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file. Give auto or balanced"),
        ("{", "is not JSON"),
        ("[]", "holds no map"),
        ('{"": "moon"}', "names the device 'moon'; this machine has cpu, disk"),
        ('{"": 7}', "names the device 7"),
        ('{"": "cpu", "model.layer.1": "disk"}', "'model.layer.1', which is no module"),
    ],
)
def test_a_map_that_cannot_be_followed_is_refused_in_one_line(content: str | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    if content is not None:
        file.write_text(content)
    message = refused(lambda: ml.load_lm(device_map=str(file)))
    assert words in message and "\n" not in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.device_map", "auto", "--trainer.devices", "2"], "leave --trainer.devices out"),
        (["--model.device_map", "auto", "--trainer.strategy", "ddp"], "leave --trainer.strategy out"),
        (["--model.device_map", "auto", "--model.graph", "edges", "--model.scope", "input",
          "--model.method", "s-trace"], "--model.device_map"),
    ],
)  # fmt: skip
def test_a_map_is_refused_where_it_does_not_go(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(flags) == 2
    assert words in one_line(capsys)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    assert "pip install bitsandbytes" in refused(lambda: ml.load_lm(quantization="4bit"))
    assert "pip install accelerate" in refused(lambda: ml.load_lm(device_map="auto"))


def test_offloaded_weights_are_deleted_with_their_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ml.UserError):
        ml.load_lm(device_map={"": "disk", "nonsense": "disk"})
    lm = ml.load_lm(device_map={"": "disk"})
    assert list(tmp_path.iterdir())
    del lm
    gc.collect()
    assert not list(tmp_path.iterdir())
