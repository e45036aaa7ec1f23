import json
import math
import re
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import masklearn as ml
from masklearn.files import atomic_write
from masklearn.mask_file import ModelId
from masklearn.version import masklearn_version


def bank(ablation: ml.Ablation = ml.Ablation()) -> ml.Mask:
    """Masks of one group and two sizes, of two layers of two heads."""
    mask = torch.tensor([[[1, 0, 0, 0, 0, 0], [1, 0, 1, 0, 1, 1]]]).bool()
    return ml.Mask(
        mask=mask,
        scores=torch.randn(1, 2, 6),
        sizes=torch.tensor([1, 4]),
        graph=ml.NodeGraph(2, 2),
        model=ModelId("some/model", "main", "0123456789abcdef"),
        ablation=ablation,
        config={"model": {"steps": 3}},
        metrics=[{"s": 1, "kl": 0.5}],
    )


def ablation_of(name: str, positions: int = 1) -> ml.Ablation:
    """An ablation of two layers of two heads, whose widths differ between layers."""
    heads = tuple(torch.randn(1, positions, 2, width) for width in (3, 5))
    return ml.Ablation(name, heads, tuple(torch.randn(1, positions, 1, 6) for _ in heads))  # pyright: ignore


@pytest.mark.parametrize(
    "ablation",
    [
        ml.Ablation(),
        ablation_of("mean"),
        ablation_of("mean-positional", 4),
        ml.Ablation("resample"),
        ablation_of("learned"),
    ],
    ids=lambda ablation: ablation.name,
)
def test_loading_restores_everything_that_was_saved(tmp_path: Path, ablation: ml.Ablation) -> None:
    saved = bank(ablation)
    saved.save(tmp_path / "new" / "mask.safetensors")
    loaded = ml.Mask.load(tmp_path / "new" / "mask.safetensors")
    for name, value in vars(saved).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(loaded, name), value)
        elif name != "ablation":
            assert getattr(loaded, name) == value
    assert loaded.ablation.name == ablation.name
    assert loaded.ablation.to_tensors().keys() == ablation.to_tensors().keys()
    for name, value in ablation.to_tensors().items():
        assert torch.equal(loaded.ablation.to_tensors()[name], value)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["mask.safetensors"]  # no temporary file is left


def test_other_tools_can_read_the_file(tmp_path: Path) -> None:
    bank().save(tmp_path / "mask.safetensors")
    with safe_open(tmp_path / "mask.safetensors", framework="np") as file:
        assert set(file.keys()) == {"mask", "scores", "sizes"}
        found = {key: json.loads(value) for key, value in file.metadata().items()}
    assert found["nodes"] == ["a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"]
    assert found["model"] == {"lm": "some/model", "revision": "main", "fingerprint": "0123456789abcdef"}
    assert (found["format"], found["masklearn"]) == (2, metadata.version("masklearn"))


def test_a_source_tree_without_metadata_saves_masks_of_an_unknown_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    assert masklearn_version() == metadata.version("masklearn")
    monkeypatch.setattr("masklearn.version.version", not_installed)
    assert masklearn_version() == "unknown"
    bank().save(tmp_path / "mask.safetensors")
    assert ml.Mask.load(tmp_path / "mask.safetensors").version == "unknown"


def test_mean_ablation_of_format_1_is_still_read(tmp_path: Path) -> None:
    """Its values are stacked over layers: heads (layers, heads, width), MLPs (layers, width)."""
    bank(ml.Ablation()).save(tmp_path / "mask.safetensors")
    with safe_open(tmp_path / "mask.safetensors", framework="pt") as file:
        header = file.metadata() | {"format": "1", "ablation": '"mean"'}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    heads, mlps = torch.randn(2, 2, 3), torch.randn(2, 6)
    save_file(tensors | {"ablation.heads": heads, "ablation.mlps": mlps}, tmp_path / "old.safetensors", header)
    ablation = ml.Mask.load(tmp_path / "old.safetensors").ablation
    assert ablation.name == "mean"
    for layer in range(2):
        assert torch.equal(ablation.heads[layer][0, 0], heads[layer])
        assert torch.equal(ablation.mlps[layer][0, 0, 0], mlps[layer])


def test_ablation_values_that_do_not_fit_the_graph_are_rejected() -> None:
    four_layers = ml.Ablation("mean", ablation_of("mean").heads * 2, ablation_of("mean").mlps * 2)
    with pytest.raises(ValueError, match=r"values for 4 layers of \{2\} heads, expected 2 of 2"):
        bank(four_layers)


def test_select_by_count_and_by_fraction() -> None:
    assert bank().select(s=4).tolist() == [True, False, True, False, True, True]
    assert torch.equal(bank().select(s=0.66), bank().select(s=4))
    with pytest.raises(ml.UserError, match="no mask of 2 nodes; it has 1, 4"):
        bank().select(s=2)
    for size in (4.9, math.inf, math.nan):
        with pytest.raises(ml.UserError, match=f"no mask of {size} nodes"):
            bank().select(s=size)
    with pytest.raises(ml.UserError, match="no group 'x'"):
        bank().select(s=4, group="x")


def test_a_mask_of_another_model_is_rejected_and_both_are_named() -> None:
    bank().require(ModelId("renamed", None, "0123456789abcdef"))
    with pytest.raises(ml.UserError, match=r"some/model@main .*0123.*, not on other/model \(fingerprint ffff"):
        bank().require(ModelId("other/model", None, "ffff"))


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("valid") / "mask.safetensors"
    bank().save(path)
    return path


@given(keep=st.floats(0, 0.999))
def test_a_truncated_file_gives_one_clear_line(valid: Path, keep: float) -> None:
    content = valid.read_bytes()
    truncated = valid.with_name("truncated.safetensors")
    truncated.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ml.UserError, match="truncated.safetensors") as caught:
        ml.Mask.load(truncated)
    assert "\n" not in str(caught.value)


@given(position=st.floats(0, 0.999), byte=st.integers(0, 255))
def test_an_altered_file_gives_a_valid_bank_or_a_user_error(valid: Path, position: float, byte: int) -> None:
    content = bytearray(valid.read_bytes())
    content[int(position * len(content))] = byte
    altered = valid.with_name("altered.safetensors")
    altered.write_bytes(content)
    message, mask = "", bank()
    try:
        mask = ml.Mask.load(altered)
        mask.check()  # masks are read when they are selected
    except ml.UserError as error:
        message = str(error)
    assert re.search(r"altered.safetensors|bank is damaged", message) or torch.equal(
        mask.mask.sum(-1), mask.sizes[None]
    )


def test_a_file_that_is_not_a_mask_file_gives_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "mask.safetensors"
    with pytest.raises(ml.UserError, match="cannot read the mask file"):
        ml.Mask.load(path)
    path.write_text("hello")
    with pytest.raises(ml.UserError, match="cannot read the mask file"):
        ml.Mask.load(path)
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(ml.UserError, match="is not a mask file: it has no 'format'"):
        ml.Mask.load(path)


@pytest.mark.parametrize(
    ("ablation", "message"),
    [("mean", "mean ablation comes with values for 0 layers"), ("magic", "no ablation 'magic'")],
)
def test_an_inconsistent_ablation_is_rejected(
    tmp_path: Path, ablation: str, message: str, valid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = ml.Mask.load(valid)
    monkeypatch.setattr(ml.Ablation, "__post_init__", lambda _: None)
    inconsistent = replace(saved, ablation=ml.Ablation(ablation))  # pyright: ignore[reportArgumentType]
    inconsistent.save(tmp_path / "mask.safetensors")
    monkeypatch.undo()
    with pytest.raises(ml.UserError, match=message):
        ml.Mask.load(tmp_path / "mask.safetensors")


def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masklearn.mask_file.FORMAT", 3)
    bank().save(tmp_path / "mask.safetensors")
    monkeypatch.undo()
    with pytest.raises(ml.UserError, match="mask.safetensors: it has format 3; this masklearn reads up to 2"):
        ml.Mask.load(tmp_path / "mask.safetensors")


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(ml.UserError, match="cannot write .*No space left on device.*make room"):
        atomic_write(path, b"after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
