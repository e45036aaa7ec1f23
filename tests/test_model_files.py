"""Where models come from: files of other tools, and the hub."""

import json
from pathlib import Path

import pytest
import torch
from conftest import refused, tiny_llama
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel

import masklearn as ml
from masklearn.models import sources

# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_weights_saved_from_a_wrapper_are_read(prefix: str, tokens: Tensor, tmp_path: Path) -> None:
    lm = tiny_llama()
    lm.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({prefix + name: value for name, value in load_file(file).items()}, file, {"format": "pt"})
    assert_close(ml.load_lm(str(tmp_path))(input_ids=tokens).logits, lm(input_ids=tokens).logits)


def test_a_folder_of_the_hub_cache_is_a_model(tokens: Tensor, tmp_path: Path) -> None:
    folder = tmp_path / "models--some--model"
    lm = tiny_llama()
    lm.save_pretrained(folder / "snapshots" / "abc")
    tiny_llama(seed=1).save_pretrained(folder / "snapshots" / "def")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    assert_close(ml.load_lm(str(folder))(input_ids=tokens).logits, lm(input_ids=tokens).logits)
    assert_close(ml.load_lm(str(folder), "def")(input_ids=tokens).logits, tiny_llama(seed=1)(input_ids=tokens).logits)
    assert "abc, def" in refused(lambda: ml.load_lm(str(folder), "xyz"))


def test_files_that_are_no_models_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    assert "is a file" in refused(lambda: ml.load_lm(str(tmp_path / "model.bin")))
    assert "there is no" in refused(lambda: ml.load_lm("missing.gguf"))


def write_gguf(lm: PreTrainedModel, path: Path) -> None:
    """Write a Llama as llama.cpp does: rows of queries and keys in its order of rotary pairs."""
    gguf, config = pytest.importorskip("gguf"), lm.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in lm.state_dict().items():
        values, kind = weight.numpy(), name.split(".")[-2]
        if kind in heads:
            pairs = values.reshape(heads[kind], 2, -1, values.shape[-1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_has_the_logits_of_the_model_that_it_was_made_from(tokens: Tensor, tmp_path: Path) -> None:
    lm = tiny_llama()
    write_gguf(lm, tmp_path / "model.gguf")
    loaded = ml.load_lm(str(tmp_path / "model.gguf"))
    assert_close(loaded(input_ids=tokens).logits, lm(input_ids=tokens).logits)
    half = torch.linspace(0, 1, 15)
    with torch.no_grad(), ml.gated(loaded, half), ml.gated(lm, half):
        assert_close(loaded(input_ids=tokens).logits, lm(input_ids=tokens).logits)


def test_gguf_files_go_to_transformers(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    source = sources.model_source(str(tmp_path / "model.gguf"))
    assert (source.location, source.options) == (str(tmp_path), {"gguf_file": "model.gguf"})
    assert "cannot load" in refused(lambda: ml.load_lm(str(tmp_path / "model.gguf")))


# --- the hub ----------------------------------------------------------------------------------------------------------


class NoSession:
    def head(self, *_: object, **__: object) -> None:
        raise OSError("[Errno 111] Connection refused")


def test_an_unreachable_hub_is_asked_once_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sources, "get_session", NoSession)
    sources._why_unreachable.cache_clear()
    for _ in range(2):
        assert "Connection refused" in refused(lambda: ml.load_lm("some/model"))
    message = refused(ml.MaskData(dataset="some/texts", lm="embedded").setup)
    assert "data.dataset: some/texts is no folder here" in message and "Connection refused" in message
    sources._why_unreachable.cache_clear()
    assert capsys.readouterr().err.count("Connecting to https://huggingface.co") == 1


def test_a_hub_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    class Thread:
        def __init__(self, **_: object) -> None: ...
        def start(self) -> None: ...
        def join(self, seconds: float) -> None:
            waited.append(seconds)

    monkeypatch.setattr(sources.threading, "Thread", Thread)
    monkeypatch.setattr(sources.constants, "HF_HUB_OFFLINE", False)
    sources._why_unreachable.cache_clear()
    assert "no answer within" in refused(lambda: ml.load_lm("some/model"))
    assert "no answer within" in refused(ml.MaskData(dataset="some/texts", lm="embedded").setup)
    sources._why_unreachable.cache_clear()
    assert sum(waited) <= 10


def test_a_gated_repository_names_the_licence_page() -> None:
    from masklearn.models.loading import _load_error

    message = str(_load_error("google/gemma", OSError("You are trying to access a gated repo.\nMake sure ...")))
    assert "huggingface.co/google/gemma" in message and "hf auth login" in message


def test_the_version_of_the_hub_client_has_what_is_used() -> None:
    assert callable(sources.get_session().head)
    assert json.loads(json.dumps(sources.constants.ENDPOINT)).startswith("http")
