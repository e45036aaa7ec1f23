"""Where texts come from: files, saved datasets, the hub, and parts of them."""

import gzip
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
import torch
from conftest import refused
from test_mask_file import bank
from text_files import TEXTS, write

import masklearn as ml
from masklearn.cli.evaluate_flags import EvaluateFlags
from masklearn.data.columns import RequestedColumns
from masklearn.data.sources import Source


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".txt"])
def test_every_format_gives_the_same_tokens(tmp_path: Path, suffix: str) -> None:
    data = ml.MaskData(path=str(write(tmp_path / f"texts{suffix}", TEXTS)))
    data.setup()
    tokenizer = ml.load_tokenizer()
    assert data.parts["all"].ids == tokenizer(TEXTS)["input_ids"]
    assert [len(data.parts[part]) for part in ("train", "validation", "test")] == [10, 1, 1]


def test_a_hub_dataset_is_read_like_a_file(tmp_path: Path) -> None:
    """The datasets library loads a folder of data files as it loads a hub id."""
    write(tmp_path / "train.parquet", TEXTS)
    for limit in (None, 5):
        data = ml.MaskData(dataset=str(tmp_path), limit=limit)
        data.prepare_data()
        data.setup()
        assert len(data.parts["all"]) == (limit or len(TEXTS))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.jsonl", None, "there is no file"),
        ("empty.jsonl", "", "is empty"),
        ("blank.txt", "\n \n\n", "holds no text"),
        ("bad.jsonl", '{"text": "dog"}\n{"text": \n', "bad.jsonl, line 2, column 9: this is not JSON"),
        ("columns.jsonl", '{"prompt": "dog", "id": 1}\n', "no column 'text'; it has prompt, id.*text_column"),
        ("columns.csv", "prompt,id\ndog,1\n", "no column 'text'; it has prompt, id"),
        ("number.jsonl", '{"text": "dog runs"}\n{"text": null}\n', "row 2: 'text' holds None, which is not text"),
        ("two.txt", "the dog\nthe cat\nthe dog\n", "holds 2 different texts.*at least 3"),
        ("texts.pdf", "%PDF", r"ends in '\.pdf'; supported are \.jsonl"),
        ("foreign.txt", "the dog\nein Hund\nthe cat\n", "tokenizer of embedded cannot read these texts.*--model.lm"),
        ("bad.parquet", "no parquet", "cannot read"),
    ],
)
def test_an_unusable_file_gives_one_clear_line(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ml.UserError, match=message) as caught:
        ml.MaskData(path=str(path)).setup("fit")
    assert "\n" not in str(caught.value)


def test_a_hub_dataset_with_a_script_gives_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / f"{tmp_path.name}.py").touch()
    with pytest.raises(ml.UserError, match=r"data\.dataset: cannot load .*scripts"):
        ml.MaskData(dataset=str(tmp_path)).setup()


def test_an_unreachable_hub_dataset_gives_one_clear_line() -> None:
    with pytest.raises(ml.UserError, match=r"data\.dataset: cannot load 'nobody/nothing'"):
        ml.MaskData(dataset="nobody/nothing").setup()


def test_a_path_is_not_a_glob_pattern(tmp_path: Path) -> None:
    write(tmp_path / "a1.jsonl", ["the dog"] * 3)
    path = write(tmp_path / "a[1].jsonl", TEXTS)
    data = ml.MaskData(path=str(path))
    data.setup()
    assert len(data.parts["all"]) == len(TEXTS)


def test_blank_lines_are_not_counted(tmp_path: Path) -> None:
    data = ml.MaskData(path=str(write(tmp_path / "texts.txt", TEXTS)), limit=7)
    data.setup()
    assert len(data.parts["all"]) == 7


def test_one_text_is_enough_where_no_split_is_needed(tmp_path: Path) -> None:
    data = ml.MaskData(path=str(write(tmp_path / "texts.txt", TEXTS[:1])))
    data.setup()
    assert len(list(data.loader("all"))) == 1
    with pytest.raises(ml.UserError, match="too few texts for a validation split"):
        data.loader("validation")


def texts_of(path: Path | str, split: str = "train", limit: int | None = None, **columns: str) -> list[str]:
    """The texts of a file or a saved folder."""
    source = Source(str(path), None, None, split, None, RequestedColumns(**columns), limit, 0)
    return [str(text.text) for text in source.read()[0]]


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_compressed_parquet_is_read(codec: str, tmp_path: Path) -> None:
    content = write(tmp_path / "texts.parquet", TEXTS).read_bytes()
    path = tmp_path / f"texts.parquet.{'gz' if codec == 'gzip' else 'zst'}"
    path.write_bytes(gzip.compress(content) if codec == "gzip" else pa.compress(content, codec, asbytes=True))
    assert texts_of(path) == TEXTS


def test_a_saved_dataset_is_read_with_the_splits_it_has(tmp_path: Path) -> None:
    one = datasets.Dataset.from_dict({"text": TEXTS})
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one.select(range(8)), "test": one.select(range(8, 12))}).save_to_disk(
        tmp_path / "two"
    )
    assert texts_of(tmp_path / "one") == TEXTS
    assert texts_of(tmp_path / "one", "train[:50%]", limit=5) == TEXTS[:5]
    assert texts_of(tmp_path / "two") == TEXTS[:8]
    assert texts_of(tmp_path / "two", "test[1:]+train[:1]") == [*TEXTS[9:], TEXTS[0]]
    message = refused(lambda: texts_of(tmp_path / "two", "validation"))
    assert "data.split is 'validation'" in message
    assert "has train, test" in message
    (tmp_path / "two" / "test" / "state.json").write_text("{")
    assert "cannot read" in refused(lambda: texts_of(tmp_path / "two"))


def test_a_folder_that_is_no_saved_dataset_is_named(tmp_path: Path) -> None:
    write(tmp_path / "texts.txt", TEXTS)
    message = refused(lambda: texts_of(tmp_path))
    assert f"{tmp_path} is a folder" in message
    assert f"--data.dataset {tmp_path}" in message


@pytest.mark.parametrize(("split", "limit", "expected"), [
    ("train[:50%]", None, TEXTS[:6]), ("train[:50%]", 2, TEXTS[:2]), ("train[-3:]", 2, TEXTS[9:11]),
    ("train[:1%]+train[:2]", None, TEXTS[:2]),
])  # fmt: skip
def test_a_part_of_a_split_is_read(split: str, limit: int | None, expected: list[str], tmp_path: Path) -> None:
    """Of the hub, whose datasets do not stream slices, and of a file, which is its train split."""
    path = write(tmp_path / "train.parquet", TEXTS)
    assert texts_of(path, split, limit) == expected
    hub = Source(None, str(tmp_path), None, split, None, RequestedColumns(), limit, 0)
    assert [text.text for text in hub.read()[0]] == expected


def test_a_split_that_a_file_does_not_have_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", TEXTS)
    assert "data.split is 'test'" in refused(lambda: texts_of(path, "test"))


def test_a_hub_dataset_without_texts_names_its_columns(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"question": ["a"], "id": [1]}).to_parquet(tmp_path / "train.parquet")
    for limit in (None, 1):
        source = Source(None, str(tmp_path), None, "train", None, RequestedColumns(), limit, 0)
        assert "has no column 'text'; it has question, id" in refused(source.read)


def test_paths_lead_into_nested_columns_in_every_format(tmp_path: Path) -> None:
    rows = [{"pair": {"prompt": text, "tags": [{"name": "x"}, {"name": text[4:7]}]}} for text in TEXTS]
    nested = datasets.Dataset.from_list(rows)
    nested.to_parquet(tmp_path / "train.parquet")
    nested.to_json(tmp_path / "texts.jsonl")
    for settings in (
        {"path": tmp_path / "train.parquet"},
        {"path": tmp_path / "texts.jsonl"},
        {"dataset": str(tmp_path)},
    ):
        data = ml.MaskData(**settings, text_column="pair.prompt", scope="column:pair.tags.1.name")
        data.setup()
        assert data.groups.names == ("dog", "cat", "bir", "kin")
    assert "'pair.text' holds None" in refused(lambda: texts_of(tmp_path / "texts.jsonl", text="pair.text"))
    assert "no column 'par.prompt'; it has pair" in refused(
        lambda: texts_of(tmp_path / "texts.jsonl", text="par.prompt")
    )


def test_paths_may_be_path_objects_and_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path / "texts.txt", TEXTS)
    for given in (path, "~/texts.txt", Path("~/texts.txt")):
        data = ml.MaskData(path=given)
        data.setup()
        assert len(data.parts["all"]) == len(TEXTS)
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train.parquet", TEXTS)
    assert len(Source(None, "~/folder", None, "train", None, RequestedColumns(), None, 0).read()[0]) == len(TEXTS)
    flags = EvaluateFlags(["~/mask.safetensors"], out="~/results")
    assert (flags.mask, flags.out) == ([str(tmp_path / "mask.safetensors")], str(tmp_path / "results"))
    bank().save("~/mask.safetensors")
    assert torch.equal(ml.Mask.load(Path("~/mask.safetensors")).mask, bank().mask)


def test_texts_that_are_cut_are_counted() -> None:
    data = ml.MaskData(texts=[TEXTS[0], " ".join(TEXTS), *TEXTS[1:3]], max_length=8)
    data.setup()
    (notice,) = [line for line in data.notices if "--data.max_length" in line]
    assert notice.startswith("1 of 4 texts end after 8 of up to ")
    data = ml.MaskData(texts=TEXTS, truncation="left", max_length=3)
    data.setup()
    assert not data.notices
