from pathlib import Path

import pytest
from conftest import tiny_llama
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import masklearn as ml
from masklearn.models import fingerprint


def test_a_fingerprint_tells_models_apart_but_not_precisions() -> None:
    one, other = tiny_llama(), tiny_llama()
    other.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(1.1)
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(tiny_llama().bfloat16())


def test_a_loaded_model_is_frozen() -> None:
    lm = ml.load_lm()
    assert not lm.training
    assert not any(parameter.requires_grad for parameter in lm.parameters())


@pytest.mark.parametrize("lm", ["./nowhere", "nobody/nothing-at-all", "/no/such/folder"])
def test_an_unknown_model_is_a_clear_line(lm: str) -> None:
    with pytest.raises(ml.UserError, match="model.lm: .*nothing-at-all|model.lm: there is no folder"):
        ml.load_lm(lm)


def test_a_folder_that_is_no_model_is_a_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ml.UserError, match=r"model\.lm: cannot load"):
        ml.load_lm(str(tmp_path))


def test_a_truncated_model_is_a_clear_line(tmp_path: Path) -> None:
    ml.load_lm().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ml.UserError, match=r"model\.lm: cannot load"):
        ml.load_lm(str(tmp_path))


@pytest.mark.parametrize(
    ("lacks", "padding"), [({"pad_token": None}, "<end>"), ({"pad_token": None, "eos_token": None}, "a")]
)
def test_a_tokenizer_without_padding_token_has_one_to_pad_with(
    tmp_path: Path, lacks: dict[str, None], padding: str
) -> None:
    """Any will do: padding stands on the right, where no real token sees it."""
    words = Tokenizer(WordLevel({"a": 0, "b": 1, "<end>": 2, "<pad>": 3}))
    words.pre_tokenizer = Whitespace()
    special = {"eos_token": "<end>", "pad_token": "<pad>"} | lacks
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(tmp_path)
    tokenizer = ml.load_tokenizer(str(tmp_path))
    assert tokenizer.pad_token == padding
    both = tokenizer(["a b", "b"], padding=True, return_tensors="pt")
    assert both["attention_mask"].tolist() == [[1, 1], [1, 0]]
