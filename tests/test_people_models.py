"""Models as people have them: wrapped, with adapters, and with tokens beyond their embedding."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refused, tiny_gpt2, tiny_llama
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, PreTrainedModel

import masklearn as ml
from masklearn.masking import MaskedLM
from masklearn.models import unwrapped

HALF = torch.linspace(0, 1, 15)
pytestmark = [  # of peft and of torch.compile
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def gated_logits(lm: Any, ids: Tensor, gates: Any = HALF) -> Tensor:
    with torch.no_grad(), ml.gated(lm, gates):
        return lm(input_ids=ids).logits


def full_logits(lm: Any, ids: Tensor) -> Tensor:
    """Without gradients, as gated ones: compiled code is compiled again where gradients are on."""
    with torch.no_grad():
        return lm(input_ids=ids).logits


# --- gates ------------------------------------------------------------------------------------------------------------


def test_arrays_lists_and_names_are_gates(tokens: Tensor) -> None:
    lm = tiny_llama()
    expected = gated_logits(lm, tokens)
    assert_close(gated_logits(lm, tokens, HALF.numpy()), expected)
    assert_close(gated_logits(lm, tokens, HALF.tolist()), expected)
    assert "gates by name are not read" in refused(lambda: gated_logits(lm, tokens, {"a0.h1": 0.0}))
    kept = torch.zeros(15)
    kept[[1, 14]] = 1  # a0.h1 and m2, of three layers of four heads
    assert_close(gated_logits(lm, tokens, ["a0.h1", "m2"]), gated_logits(lm, tokens, kept))
    assert_close(gated_logits(lm, tokens, map(str, ["a0.h1", "m2"])), gated_logits(lm, tokens, kept))
    with ml.gated(lm, without=["a0.h1", "m2"]):
        without = lm(input_ids=tokens).logits
    assert_close(without, gated_logits(lm, tokens, 1 - kept))
    with ml.gated(lm, HALF, without="m2"):
        half_without = lm(input_ids=tokens).logits
    assert_close(half_without, gated_logits(lm, tokens, HALF * (1 - torch.eye(15)[14])))


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        (["a0.h9"], "a0.h"),
        ([1.0, 0.0], "15 nodes"),
        (object(), "names of nodes"),
        (None, "without"),
        ([["m0"]], "not numbers"),
    ],
)
def test_other_gates_are_refused_in_one_line(gates: object, words: str) -> None:
    lm = tiny_llama()
    assert words in refused(lambda: gated_logits(lm, torch.tensor([[3]]), gates))


# --- wrappers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_gated(tokens: Tensor, in_place: bool) -> None:
    """Compiled code does not see hooks that come later: the model would silently run without gates."""
    lm = tiny_llama()
    expected, full = gated_logits(lm, tokens), full_logits(lm, tokens)
    lm.compile(backend="eager")
    compiled = lm if in_place else torch.compile(tiny_llama(), backend="eager")
    assert_close(full_logits(compiled, tokens), full)  # compiles
    assert_close(gated_logits(compiled, tokens), expected)
    assert_close(full_logits(compiled, tokens), full)


@pytest.mark.parametrize("part", ["forward", "layers", "body"])
def test_compiled_parts_of_a_model_do_not_hide_its_nodes(tokens: Tensor, part: str) -> None:
    lm: Any = tiny_llama()
    expected, full = gated_logits(lm, tokens), full_logits(lm, tokens)
    if part == "forward":
        lm.forward = torch.compile(lm.forward, backend="eager")
    for module in lm.model.layers if part == "layers" else [lm.model] if part == "body" else []:
        module.compile(backend="eager")
    assert_close(full_logits(lm, tokens), full)  # compiles
    assert_close(gated_logits(lm, tokens), expected)
    assert_close(full_logits(lm, tokens), full)


def test_compiled_code_is_gated_from_outside_and_not_inside(tokens: Tensor) -> None:
    """Inside, the model's own code may have been compiled before, without gates."""
    lm = tiny_llama()
    expected, compiled = gated_logits(lm, tokens), torch.compile(full_logits, backend="eager")
    assert_close(compiled(lm, tokens), full_logits(lm, tokens))
    with ml.gated(lm, HALF):
        assert_close(compiled(lm, tokens), expected)
    assert "inside of compiled code" in refused(lambda: torch.compile(gated_logits, backend="eager")(lm, tokens))


def test_a_parallel_model_is_unwrapped_and_other_objects_are_refused() -> None:
    lm = tiny_llama()
    assert unwrapped(nn.DataParallel(torch.compile(lm))) is lm
    assert "Linear" in refused(lambda: unwrapped(nn.Linear(1, 1)))


def test_the_first_check_may_happen_in_inference_mode() -> None:
    lm = ml.load_lm()
    with torch.inference_mode(), ml.gated(lm, without="m0"):
        assert lm(input_ids=torch.arange(3, 9)[None]).logits.isfinite().all()


def test_offloaded_weights_are_gated_and_fingerprinted(tokens: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    lm = tiny_llama()
    lm.save_pretrained(tmp_path)
    device_map: Any = dict.fromkeys(("model.embed_tokens", "model.layers", "model.norm", "lm_head"), "disk")
    device_map["model.rotary_emb"] = "cpu"
    offloaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert_close(gated_logits(offloaded, tokens), gated_logits(lm, tokens))
    assert MaskedLM(offloaded).layout.fingerprint == MaskedLM(lm).layout.fingerprint


# --- adapters ---------------------------------------------------------------------------------------------------------


def adapted(lm: PreTrainedModel, **changes: Any) -> Any:
    peft = pytest.importorskip("peft")
    targets = ["o_proj", "down_proj"] if hasattr(lm, "model") else ["c_proj"]
    config = peft.LoraConfig(target_modules=targets, init_lora_weights=False, **changes)
    return peft.get_peft_model(lm, config).eval()


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_are_in_effect_under_gates(make: Any, dora: bool, tokens: Tensor) -> None:
    """The independent reference is the model with the adapter merged into its weights."""
    torch.manual_seed(0)
    model = adapted(make(), use_dora=dora)
    merged = copy.deepcopy(model).merge_and_unload().eval()
    assert_close(gated_logits(model, tokens), gated_logits(merged, tokens), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(gated_logits(model, tokens), gated_logits(make(), tokens), atol=0.1)


@pytest.mark.parametrize("gates", [HALF, torch.tensor([0.0, 0, 0, 0, 1] * 3)])
def test_an_adapter_that_comes_after_the_first_gates_is_gated(tokens: Tensor, gates: Tensor) -> None:
    """It wraps the modules whose outputs were gated; its own branch must not read heads without gates."""
    lm = tiny_llama()
    gated_logits(lm, tokens)
    model = adapted(lm)
    merged = copy.deepcopy(model).merge_and_unload().eval()
    expected = gated_logits(merged, tokens, gates)
    assert_close(gated_logits(model, tokens, gates), expected, atol=1e-4, rtol=1e-4)
    unused = adapted(tiny_llama())
    with unused.disable_adapter():
        gated_logits(unused, tokens)
    expected = gated_logits(copy.deepcopy(unused).merge_and_unload().eval(), tokens, gates)
    assert_close(gated_logits(unused, tokens, gates), expected, atol=1e-4, rtol=1e-4)


def test_adapters_that_are_no_part_of_the_weights_are_refused_by_name(tokens: Tensor) -> None:
    peft = pytest.importorskip("peft")
    prompt = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    assert "PROMPT_TUNING" in refused(lambda: gated_logits(peft.get_peft_model(tiny_llama(), prompt), tokens))
    wrapper = peft.AdaptionPromptConfig(adapter_len=2, adapter_layers=1, task_type="CAUSAL_LM")
    assert "ADAPTION_PROMPT" in refused(lambda: gated_logits(peft.get_peft_model(tiny_llama(), wrapper), tokens))


def test_the_folder_of_an_adapter_is_a_model(tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    model = adapted(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    model.save_pretrained(tmp_path / "adapter")
    loaded = ml.load_lm(str(tmp_path / "adapter"))
    assert_close(loaded(input_ids=tokens).logits, model(input_ids=tokens).logits, atol=1e-4, rtol=1e-4)
    assert loaded.name_or_path == str(tmp_path / "adapter")
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    monkeypatch.setattr("masklearn.models.adapters.find_spec", lambda name: None)
    assert "pip install peft" in refused(lambda: ml.load_lm(str(tmp_path / "adapter")))


@pytest.mark.filterwarnings("ignore:Could not find a config file")  # the hub's cache has it elsewhere
def test_an_adapter_is_merged_into_the_revision_that_it_was_trained_on(tokens: Tensor, tmp_path: Path) -> None:
    base = tmp_path / "models--me--base"
    for name, lm in {"main": tiny_llama(), "early": tiny_llama(seed=1)}.items():
        lm.save_pretrained(base / "snapshots" / name)
        (base / "refs").mkdir(exist_ok=True)
        (base / "refs" / name).write_text(name)
    model = adapted(AutoModelForCausalLM.from_pretrained(base / "snapshots" / "early"))
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.peft_config["default"].revision = "early"
    model.save_pretrained(tmp_path / "adapter")
    loaded = ml.load_lm(str(tmp_path / "adapter"))
    assert_close(loaded(input_ids=tokens).logits, model(input_ids=tokens).logits, atol=1e-4, rtol=1e-4)


# --- tokens beyond the embedding --------------------------------------------------------------------------------------


def test_texts_with_tokens_beyond_the_embedding_are_named() -> None:
    tokenizer = ml.load_tokenizer()
    tokenizer.add_tokens(["<tool>"])
    tokenizer.add_special_tokens({"pad_token": "<pad-new>"})
    lm = ml.load_lm()
    data = ml.MaskData(texts=["mary and john went to the", "mary <tool> went to the"], tokenizer=tokenizer)
    data.setup()
    message = refused(lambda: ml.data.require_readable(data, MaskedLM(lm).layout))
    assert "text 2" in message and "<tool>" in message
    fine = ml.MaskData(texts=["mary and john went to the", "mary and john"], tokenizer=tokenizer, scope="input")
    bank = ml.learn(lm, fine, sizes=[4], steps=1, polish=0, progress=False)
    assert fine.pad_id == 0 and len(bank.metrics["kl"].dropna()) == 1
