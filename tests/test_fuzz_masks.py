"""Malformed mask files: each is rejected with one line that names the file, or loads as a valid bank."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mask_file import bank

import masklearn as ml

KEYS = ("format", "model", "nodes", "groups", "ablation", "positions", "config", "metrics", "masklearn")
VALUES = ["null", "3", "-1", '"x"', "[]", "{}", "[3]", '[["a"]]', "1e999", "NaN", "{", "\x00", "[" * 100_000, ""]
"""JSON texts that are valid for no key, or for few."""
VALID = {
    ("config", "{}"), ("metrics", "[]"), ("metrics", "[3]"), ("metrics", '[["a"]]'), ("masklearn", '"x"'),
    ("positions", '"x"'), ("format", "-1"),
}  # fmt: skip
HOSTILE_NAMES = [
    "../../../etc/passwd", "/etc/passwd", "; touch pwned", "$(touch pwned)", "`touch pwned`", "a\nb", "\x1b[2J", "%s%n",
    "<script>alert(1)</script>", "..", ".", "", "\u202e", "con", "a" * 10_000, "C:\\x", "--out", "~root", "\x00",
]  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], bytes]:
    """The header and the tensor bytes of a valid file."""
    path = tmp_path_factory.mktemp("good") / "mask.safetensors"
    bank().save(path)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def written(path: Path, header: dict[str, Any] | bytes, tensors: bytes, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + tensors)
    return path


def with_metadata(header: dict[str, Any], **metadata: str) -> dict[str, Any]:
    return header | {"__metadata__": header["__metadata__"] | metadata}


def test_a_header_and_tensors_written_back_are_a_valid_file(
    tmp_path: Path, parts: tuple[dict[str, Any], bytes]
) -> None:
    found = ml.Mask.load(written(tmp_path / "mask.safetensors", *parts))
    found.check()
    assert torch.equal(found.mask, bank().mask)


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
@pytest.mark.parametrize("key", KEYS)
def test_metadata_of_the_wrong_type_are_rejected(
    key: str, value: str, tmp_path: Path, parts: tuple[dict[str, Any], bytes]
) -> None:
    path = written(tmp_path / "bad.safetensors", with_metadata(parts[0], **{key: value}), parts[1])
    if (key, value) in VALID:
        ml.Mask.load(path).check()
    else:
        assert "bad.safetensors" in refused(lambda: ml.Mask.load(path))


@pytest.mark.parametrize("key", KEYS)
def test_missing_metadata_are_rejected(key: str, tmp_path: Path, parts: tuple[dict[str, Any], bytes]) -> None:
    header = parts[0] | {"__metadata__": {k: v for k, v in parts[0]["__metadata__"].items() if k != key}}
    path = written(tmp_path / "bad.safetensors", header, parts[1])
    assert f"bad.safetensors is not a mask file: it has no '{key}'" in refused(lambda: ml.Mask.load(path))


@pytest.mark.parametrize("name", ["mask", "scores", "sizes"])
@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F64"}, {"dtype": "I32"}, {"dtype": "U8"}, {"dtype": "F16"}, {"dtype": "XX"}, {"shape": []},
        {"shape": [1]}, {"shape": [2**40, 2**40]}, {"shape": [-1]}, {"shape": "x"}, {"data_offsets": [0, 0]},
        {"data_offsets": [5, 1]}, {"data_offsets": [0, 2**62]}, {"data_offsets": [-8, 8]}, {"data_offsets": None},
    ],
    ids=str,
)  # fmt: skip
def test_tensors_that_do_not_match_their_header_are_rejected(
    name: str, change: dict[str, Any], tmp_path: Path, parts: tuple[dict[str, Any], bytes]
) -> None:
    path = written(tmp_path / "bad.safetensors", parts[0] | {name: parts[0][name] | change}, parts[1])
    assert "bad.safetensors" in refused(lambda: ml.Mask.load(path))


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, 2**20, 100_000_001, 2**31, 2**63, 2**64 - 1])
def test_a_wrong_header_length_is_rejected(length: int, tmp_path: Path, parts: tuple[dict[str, Any], bytes]) -> None:
    path = written(tmp_path / "bad.safetensors", parts[0], parts[1], length)
    assert "bad.safetensors" in refused(lambda: ml.Mask.load(path))


@pytest.mark.parametrize("share", range(0, 40))
def test_truncated_files_are_rejected(share: int, tmp_path: Path, parts: tuple[dict[str, Any], bytes]) -> None:
    content = written(tmp_path / "bad.safetensors", *parts).read_bytes()
    (tmp_path / "bad.safetensors").write_bytes(content[: share if share < 12 else len(content) * share // 40])
    assert "bad.safetensors" in refused(lambda: ml.Mask.load(tmp_path / "bad.safetensors"))


@pytest.mark.parametrize("sizes", [[4, 1], [1, 1], [0, 4], [-1, 4], [1, 7], [1, 2**62]], ids=str)
def test_invalid_sizes_are_rejected(sizes: list[int], tmp_path: Path, parts: tuple[dict[str, Any], bytes]) -> None:
    begin, end = parts[0]["sizes"]["data_offsets"]
    raw = torch.tensor(sizes).numpy().tobytes()
    path = written(tmp_path / "bad.safetensors", parts[0], parts[1][:begin] + raw + parts[1][end:])
    assert "bad.safetensors" in refused(lambda: ml.Mask.load(path))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_rejected(
    bad: float, tmp_path: Path, parts: tuple[dict[str, Any], bytes]
) -> None:
    begin, _ = parts[0]["scores"]["data_offsets"]
    raw = torch.tensor([bad]).numpy().tobytes()
    path = written(tmp_path / "bad.safetensors", parts[0], parts[1][:begin] + raw + parts[1][begin + 4 :])
    assert "not all finite" in refused(ml.Mask.load(path).check)


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_names_in_the_file_have_no_side_effects(
    name: str, tmp_path: Path, parts: tuple[dict[str, Any], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of models, groups and versions are never used as paths or commands."""
    monkeypatch.chdir(tmp_path)
    model = json.dumps({"lm": name, "revision": name, "fingerprint": name})
    header = with_metadata(parts[0], model=model, groups=json.dumps([name]), masklearn=json.dumps(name))
    mask = ml.Mask.load(written(tmp_path / "bad.safetensors", header, parts[1]))
    assert mask[name].select(s=4).sum() == 4
    assert mask.model.lm == name
    mask.save(tmp_path / "again.safetensors")
    assert {file.name for file in tmp_path.iterdir()} == {"bad.safetensors", "again.safetensors"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(key=st.sampled_from(KEYS), value=json_values)
def test_any_metadata_give_a_valid_bank_or_a_user_error(
    key: str, value: Any, tmp_path_factory: pytest.TempPathFactory, parts: tuple[dict[str, Any], bytes]
) -> None:
    path = written(
        tmp_path_factory.getbasetemp() / "any.safetensors",
        with_metadata(parts[0], **{key: json.dumps(value)}),
        parts[1],
    )
    mask = None
    with suppress(ml.UserError):
        mask = ml.Mask.load(path)
    if mask:
        mask.check()
        assert mask[0].select(s=4).sum() == 4


@settings(max_examples=30, deadline=None)
@given(header=st.binary(max_size=200), tensors=st.binary(max_size=50))
def test_any_bytes_give_a_user_error(header: bytes, tensors: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = written(tmp_path_factory.getbasetemp() / "any.safetensors", header, tensors)
    assert "any.safetensors" in refused(lambda: ml.Mask.load(path))
