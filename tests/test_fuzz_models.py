"""Damaged model folders: each is refused with a one-line error that names the model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import refused
from safetensors.torch import load_file, save_file

import masklearn as ml
from masklearn.tiny import MODEL_FOLDER

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded model in several shards, with its tokenizer."""
    ml.load_lm().save_pretrained(tmp_path / "lm", max_shard_size="1MB")
    assert len(shards(tmp_path / "lm")) > 1
    for path in MODEL_FOLDER.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "lm")
    return tmp_path / "lm"


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def remove_a_tensor(folder: Path) -> None:
    tensors = load_file(shards(folder)[0])
    tensors.pop(next(name for name in tensors if "mlp" in name or "norm" in name))
    save_file(tensors, shards(folder)[0], {"format": "pt"})


def change_a_shape(folder: Path) -> None:
    tensors = load_file(shards(folder)[0])
    name = next(name for name in tensors if tensors[name].ndim == 2)
    save_file(tensors | {name: torch.zeros(3, 3)}, shards(folder)[0], {"format": "pt"})


def point_outside(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../../../../etc/passwd")
    (folder / INDEX).write_text(json.dumps(index))


def edit_config(**changes: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return edit


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a missing shard": lambda folder: shards(folder)[0].unlink(),
    "no shards": lambda folder: [path.unlink() for path in shards(folder)],
    "a truncated shard": lambda folder: shards(folder)[0].write_bytes(shards(folder)[0].read_bytes()[:5000]),
    "an empty shard": lambda folder: shards(folder)[0].write_bytes(b""),
    "a header without data": lambda folder: shards(folder)[0].write_bytes((2**62).to_bytes(8, "little")),
    "a missing weight": remove_a_tensor,
    "a weight in another shape": change_a_shape,
    "an index that points outside the folder": point_outside,
    "an index that is not JSON": lambda folder: (folder / INDEX).write_text("{"),
    "an empty index": lambda folder: (folder / INDEX).write_text("{}"),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "a config that is not JSON": lambda folder: (folder / "config.json").write_text("{"),
    "an unknown architecture": edit_config(model_type="nobody-knows"),
    "no architecture": edit_config(model_type=None, architectures=None),
    "layers without weights": edit_config(num_hidden_layers=9),
    "another width": edit_config(hidden_size=64),
    "a number of heads that does not divide the width": edit_config(num_attention_heads=7, head_dim=None),
    "a width that is a string": edit_config(hidden_size="wide"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_model_is_refused_in_one_line(name: str, folder: Path) -> None:
    DAMAGE[name](folder)
    message = refused(lambda: ml.load_lm(str(folder)))
    assert message.startswith("model.lm: ")
    assert str(folder) in message
    assert "\n" not in message


def test_complete_shards_load_as_the_model(folder: Path) -> None:
    one_file, sharded = ml.load_lm(), ml.load_lm(str(folder))
    for (name, tensor), other in zip(one_file.state_dict().items(), sharded.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


@pytest.mark.parametrize("content", ["{", "", "[]", '{"model": 3}', "\0"])
def test_a_damaged_tokenizer_is_refused_in_one_line(content: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(content)
    assert "\n" not in refused(lambda: ml.load_tokenizer(str(folder)))
