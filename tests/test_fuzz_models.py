"""Folders of models as nobody should keep them: each is refused in one line that names the model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import refused
from safetensors.torch import load_file, save_file

import masklearn as ml
from masklearn.tiny import MODEL

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded model in two shards and more."""
    ml.load_lm().save_pretrained(tmp_path / "lm", max_shard_size="1MB")
    assert len(shards(tmp_path / "lm")) > 1
    for path in MODEL.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "lm")
    return tmp_path / "lm"


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(shards(folder)[0])
    tensors.pop(next(name for name in tensors if "mlp" in name or "norm" in name))
    save_file(tensors, shards(folder)[0], {"format": "pt"})


def in_another_shape(folder: Path) -> None:
    tensors = load_file(shards(folder)[0])
    name = next(name for name in tensors if tensors[name].ndim == 2)
    save_file(tensors | {name: torch.zeros(3, 3)}, shards(folder)[0], {"format": "pt"})


def pointing_out(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../../../../etc/passwd")
    (folder / INDEX).write_text(json.dumps(index))


def edited(**changes: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return edit


HARM: dict[str, Callable[[Path], object]] = {
    "a missing shard": lambda folder: shards(folder)[0].unlink(),
    "no shard": lambda folder: [path.unlink() for path in shards(folder)],
    "a shard cut short": lambda folder: shards(folder)[0].write_bytes(shards(folder)[0].read_bytes()[:5000]),
    "an empty shard": lambda folder: shards(folder)[0].write_bytes(b""),
    "a header that is all there is": lambda folder: shards(folder)[0].write_bytes((2**62).to_bytes(8, "little")),
    "a weight that is not there": without_a_tensor,
    "a weight in another shape": in_another_shape,
    "an index to elsewhere": pointing_out,
    "an index that is none": lambda folder: (folder / INDEX).write_text("{"),
    "an index of nothing": lambda folder: (folder / INDEX).write_text("{}"),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "a config that is none": lambda folder: (folder / "config.json").write_text("{"),
    "an unknown architecture": edited(model_type="nobody-knows"),
    "no architecture": edited(model_type=None, architectures=None),
    "layers that are not there": edited(num_hidden_layers=9),
    "another width": edited(hidden_size=64),
    "heads that do not divide it": edited(num_attention_heads=7, head_dim=None),
    "a width that is a text": edited(hidden_size="wide"),
}


@pytest.mark.parametrize("name", HARM)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_model_is_one_line(name: str, folder: Path) -> None:
    HARM[name](folder)
    said = refused(lambda: ml.load_lm(str(folder)))
    assert said.startswith("model.lm: ")
    assert str(folder) in said
    assert "\n" not in said


def test_shards_that_are_all_there_are_the_model(folder: Path) -> None:
    whole, parts = ml.load_lm(), ml.load_lm(str(folder))
    for (name, tensor), other in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


@pytest.mark.parametrize("harm", ["{", "", "[]", '{"model": 3}', "\0"])
def test_a_damaged_tokenizer_is_one_line(harm: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(harm)
    assert "\n" not in refused(lambda: ml.load_tokenizer(str(folder)))
