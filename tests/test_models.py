"""Loading models and tokenizers."""

from pathlib import Path

import pytest
import torch
from conftest import refused, tiny_llama
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import masklearn as ml
from masklearn.models import fingerprint


def test_fingerprints_differ_between_models_but_not_between_precisions() -> None:
    one, other = tiny_llama(), tiny_llama()
    other.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(1.1)
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(tiny_llama().bfloat16())


def test_a_loaded_model_is_frozen() -> None:
    lm = ml.load_lm()
    assert not lm.training
    assert not any(parameter.requires_grad for parameter in lm.parameters())


def test_a_loaded_model_follows_no_settings_of_loading() -> None:
    lm = ml.load_lm()
    assert ml.load_lm(lm, dtype=torch.float32) is lm
    for settings in ({"revision": "main"}, {"quantization": "8bit"}, {"device_map": "auto"}, {"dtype": "bfloat16"}):
        (name,) = settings
        assert f"Leave {name} out" in refused(lambda settings=settings: ml.load_lm(lm, **settings))
    assert "Leave revision out" in refused(lambda: ml.learn(lm, ["mary and john went"], scope="input", revision="main"))


def test_a_precision_or_a_device_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert ml.load_lm(dtype=torch.bfloat16).dtype == torch.bfloat16
    assert "dtype is 'bf16'; choose one of float32" in refused(lambda: ml.load_lm(dtype="bf16"))
    assert "there is no device 'gpu'" in refused(lambda: ml.load_lm(device="gpu"))
    assert torch.cuda.is_available() or "0" in refused(lambda: ml.load_lm(device=0))
    tiny_llama().save_pretrained(tmp_path)
    assert ml.load_lm(tmp_path).name_or_path == str(tmp_path)


@pytest.mark.parametrize("lm", ["./nowhere", "nobody/nothing-at-all", "/no/such/folder"])
def test_an_unknown_model_is_a_user_error(lm: str) -> None:
    with pytest.raises(ml.UserError, match="model.lm: .*nothing-at-all|model.lm: there is no folder"):
        ml.load_lm(lm)


def test_a_folder_without_a_model_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(ml.UserError, match=r"model\.lm: cannot load"):
        ml.load_lm(str(tmp_path))


def test_truncated_weights_are_a_user_error(tmp_path: Path) -> None:
    ml.load_lm().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ml.UserError, match=r"model\.lm: cannot load"):
        ml.load_lm(str(tmp_path))


def test_a_tokenizer_that_is_missing_is_named_by_its_flag(tmp_path: Path) -> None:
    ml.load_lm().save_pretrained(tmp_path)
    texts = ["the dog runs", "the cat runs", "the bird runs"]
    message = refused(lambda: ml.MaskData(texts=texts, lm=str(tmp_path)).setup())
    assert message.startswith("model.lm: cannot load the tokenizer of")
    assert message.endswith("if the model comes without a tokenizer, name another's with --data.tokenizer")
    for name in ("./nowhere", "nobody/nothing-at-all", str(tmp_path)):
        message = refused(lambda name=name: ml.MaskData(texts=texts, tokenizer=name).setup())
        assert message.startswith("data.tokenizer: ") and name in message and "model.lm" not in message
    (tmp_path / "cached" / "snapshots").mkdir(parents=True)
    message = refused(lambda: ml.load_tokenizer(str(tmp_path / "cached"), flag="data.tokenizer"))
    assert message.startswith("data.tokenizer: ") and "--model.revision" not in message


@pytest.mark.parametrize(
    ("missing", "padding"), [({"pad_token": None}, "<end>"), ({"pad_token": None, "eos_token": None}, "a")]
)
def test_a_tokenizer_without_a_padding_token_gets_one(tmp_path: Path, missing: dict[str, None], padding: str) -> None:
    """Any token will do: padding is on the right, where no real token attends to it."""
    word_level = Tokenizer(WordLevel({"a": 0, "b": 1, "<end>": 2, "<pad>": 3}))
    word_level.pre_tokenizer = Whitespace()
    special = {"eos_token": "<end>", "pad_token": "<pad>"} | missing
    PreTrainedTokenizerFast(tokenizer_object=word_level, **special).save_pretrained(tmp_path)
    tokenizer = ml.load_tokenizer(str(tmp_path))
    assert tokenizer.pad_token == padding
    encoded = tokenizer(["a b", "b"], padding=True, return_tensors="pt")
    assert encoded["attention_mask"].tolist() == [[1, 1], [1, 0]]
