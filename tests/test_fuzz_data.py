"""Malformed text files: each is rejected with one line that names the file and the place, or is read as it is."""

import gzip
import json
import random
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st

import masklearn as ml
from masklearn import cli
from masklearn.data.opening import MAX_TEXT_LENGTH
from masklearn.data.readers import READERS, read_file

GOOD = {"text": "the dog runs ."}
ROWS = [json.dumps(GOOD)] * 20_000


def at_row(number: int, line: str) -> str:
    return "\n".join([*ROWS[: number - 1], line, *ROWS[number:]])


BAD: dict[str, tuple[str, str | bytes, str]] = {
    "nothing": ("a.jsonl", "", "is empty"),
    "blank lines": ("a.jsonl", "\n\n \n", "holds no text"),
    "blank text": ("a.txt", "\n \n\t\n", "holds no text"),
    "no object": ("a.jsonl", '{"text": "a"}\n3\n', "line 2: a number instead of an object"),
    "a list": ("a.jsonl", '{"text": "a"}\n\n["a"]\n', "line 3: a list instead of an object"),
    "null": ("a.jsonl", "null\n", "line 1: nothing (null)"),
    "truth": ("a.jsonl", "true\n", "line 1: a truth value"),
    "no JSON": ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2, column 9: this is not JSON"),
    "two objects in a line": ("a.jsonl", '{"text": "a"} {"text": "b"}\n', "line 1, column 15"),
    "no quotes": ("a.jsonl", "{text: 1}\n", "line 1, column 2"),
    "too deep": ("a.jsonl", '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 1: this JSON cannot be parsed"),
    "a number of many digits": ("a.jsonl", '{"text": ' + "9" * 10_000 + "}", "line 1: this JSON cannot be parsed"),
    "a key twice": ("a.jsonl", '{"text": "a", "text": "b"}\n', "line 1: the column 'text' occurs twice"),
    "row 10,000 without a text": ("a.jsonl", at_row(10_000, '{"label": 1}'), "row 10000: 'text' holds None"),
    "row 10,000 is no object": ("a.jsonl", at_row(10_000, "[]"), "line 10000"),
    "row 10,000 is a number": ("a.jsonl", at_row(10_000, '{"text": 7}'), "row 10000: 'text' holds 7"),
    "row 10,000 is null": ("a.jsonl", at_row(10_000, '{"text": null}'), "row 10000: 'text' holds None"),
    "a list of texts": ("a.jsonl", '{"text": ["a"]}\n', "row 1: 'text' holds ['a']"),
    "half a character": ("a.jsonl", '{"text": "a\\ud800b"}\n', "half a character"),
    "no text column": ("a.jsonl", '{"prompt": "a"}\n', "--data.text_column"),
    "Latin-1": ("a.jsonl", '{"text": "café"}\n'.encode("latin-1"), "line 1: byte 14 is not UTF-8"),
    "Latin-1 further down": ("a.txt", b"abc\n" * 3000 + "é\n".encode("latin-1"), "line 3001: byte 1 is not UTF-8"),
    "UTF-16": ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "UTF-16"),
    "half a code point": ("a.txt", "é".encode()[:1], "not UTF-8"),
    "NUL": ("a.txt", b"abc\nab\0c\n", "line 2: NUL bytes"),
    "NUL in JSON": ("a.jsonl", b'{"text": "a"}\n{"text": "\0"}\n', "line 2: NUL bytes"),
    "NUL in CSV": ("a.csv", b"text\na\n\0\n", "line 3: NUL bytes"),
    "a line of 50 MB": ("a.jsonl", b'{"text": "' + b"a" * 50_000_000 + b'"}\n', "line 1: more than 16 MiB"),
    "50 MB without a break": ("a.txt", b"a" * 50_000_000, "line 1: more than 16 MiB"),
    "50 MB in a cell": ("a.csv", b"text\n" + b"a" * 50_000_000, "line 2: more than 16 MiB"),
    "compressed": ("a.jsonl", gzip.compress(b'{"text": "a"}\n'), "gzip"),
    "Parquet by another name": ("a.jsonl", b"PAR1" + bytes(40), "Parquet"),
    "a column twice": ("a.csv", "text,text\na,b\n", "'text' occurs twice"),
    "too many values": ("a.csv", "text,label\na,b\na,b,c\n", "line 3: 3 values for the 2 columns"),
    "too few values": ("a.csv", "text,label\na\n", "line 2: 1 values for the 2 columns"),
    "a quote without an end": ("a.csv", 'text\n"abc\n', "this is not CSV"),
    "a quote and more": ("a.csv", 'text\n"abc"d\n', "this is not CSV"),
    "a header alone": ("a.csv", "text\n", "holds no text"),
    "no header": ("a.csv", "the dog runs .\n", "has no column 'text'; it has the dog runs"),
    "a pointer of Git LFS": ("a.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
    "a pointer in place of Parquet": ("a.parquet", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "a web page": ("a.txt", "\n<!DOCTYPE html>\n<html><body>not found</body></html>", "is a web page (HTML)"),
    "a web page with a mark": ("a.jsonl", b"\xef\xbb\xbf<HTML lang='en'>", "is a web page (HTML)"),
    "half a gzip file": ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:30], "cannot read"),
    "no gzip file": ("a.jsonl.gz", '{"text": "a"}\n', "cannot read"),
    "tabs and too few": ("a.tsv", "text\tlabel\na,b\n", "line 2: 1 values for the 2 columns"),
    "an invalid token id": (
        "a.csv",
        "clean,corrupted,correct_idx,incorrect_idx\nthe dog,the cat,-3,4\n",
        "is not a token id",
    ),
    "a JSON number": ("a.json", "3", "holds a number"),
    "prompts that are none": ("a.json", '{"prompts": 3}', "holds a number"),
    "a prompt that is none": ("a.json", '{"prompts": [{"clean": "a"}, 3]}', "row 2: a number"),
    "JSON without an end": ("a.json", '{"prompts": [\n{"clean": "a"},\n', "line 3, column 1"),
    "no Parquet": ("a.parquet", b"PAR1" + bytes(100), "cannot read"),
    "another ending": ("a.docx", "a", "ends in '.docx'"),
    "no ending": ("a", "a", "ends in ''"),
}


def write_bad(folder: Path, name: str) -> tuple[Path, str]:
    file, content, message = BAD[name]
    path = folder / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path, message


def read(path: Path | str) -> None:
    """Read a file as a training run does."""
    ml.MaskData(path=str(path)).setup("fit")


@pytest.mark.parametrize("name", BAD)
def test_the_message_is_one_line_with_the_file_and_the_place(name: str, tmp_path: Path) -> None:
    path, message = write_bad(tmp_path, name)
    line = refused(lambda: read(path))
    assert str(path) in line
    assert message in line
    assert "\n" not in line
    assert len(line) < 500 + len(str(path))


@pytest.mark.parametrize("name", ["Latin-1", "too few values", "row 10,000 without a text", "JSON without an end"])
def test_a_run_exits_with_code_2_and_writes_no_masks(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    path, message = write_bad(tmp_path, name)
    run = tmp_path / "run"
    assert cli.train(["--data.path", str(path), "--run.dir", str(run), "--trainer.logger", "false"]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not run.exists() or not [*run.rglob("*.safetensors"), *run.rglob("*.ckpt")]


def assert_rejected_or_read(path: Path) -> None:
    """Reading gives rows of the requested columns, or a UserError of one line; any other error fails the test."""
    line, names, rows = f"{path}", list[str](), list[dict[str, object]]()
    try:
        names, rows = read_file(str(path), {"text"}, None)
    except ml.UserError as error:
        line = str(error)
    assert str(path) in line
    assert "\n" not in line
    assert all(set(row) <= {"text"} & set(names) for row in rows)


def parquet(path: Path) -> bytes:
    pq.write_table(pa.table({"text": [f"the dog {i} runs ." for i in range(50)]}), path)
    return path.read_bytes()


@pytest.mark.parametrize("share", [i / 20 for i in range(20)])
def test_truncated_parquet_is_rejected(share: float, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    content = parquet(path)
    path.write_bytes(content[: int(share * len(content))])
    assert str(path) in refused(lambda: read(path))


@pytest.mark.parametrize("seed", range(30))
def test_parquet_with_changed_bytes_is_rejected_or_read(seed: int, tmp_path: Path) -> None:
    path, rng = tmp_path / "a.parquet", random.Random(seed)
    content = bytearray(parquet(path))
    for _ in range(8):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)
    assert_rejected_or_read(path)


@pytest.mark.parametrize("column", [[1, 2, 3], [None, "a", "b"], [b"a", b"b", b"c"], [["a"], ["b"], ["c"]]])
def test_parquet_without_strings_is_rejected(column: list[object], tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert "row 1" in refused(lambda: read(tmp_path / "a.parquet"))


@pytest.mark.parametrize("path", ["nowhere.jsonl", "", ".", "a" * 5000 + ".jsonl", "~nobody/a.jsonl", "/", "\0"])
def test_paths_without_a_file_are_rejected(path: str) -> None:
    assert refused(lambda: read_file(path, {"text"}, None)).startswith("data.path: ")


def test_a_line_that_is_too_long_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(2**33)  # a hole of 8 GiB
        file.seek(0)
        file.write(b"a")
    tracemalloc.start()
    try:
        refused(lambda: read_file(str(path), {"text"}, None))
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_TEXT_LENGTH
    finally:
        tracemalloc.stop()


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


VALID: dict[str, tuple[str, bytes, list[str]]] = {
    "a byte order mark": ("a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n', ["a"]),
    "line ends of old Macs": ("a.txt", b"a\r\rb\rc", ["a", "b", "c"]),
    "a table with line ends of old Macs": ("a.csv", b"text\ra\rb\r", ["a", "b"]),
    "Windows line ends": ("a.txt", b"a\r\n\r\nb\r\n", ["a", "b"]),
    "no line end": ("a.csv", b"text\na", ["a"]),
    "a comma and a break in quotes": ("a.csv", b'text\n"a, b"\n"c\nd"\n', ["a, b", "c\nd"]),
    "a separator that is no line end": ("a.jsonl", '{"text": "a\u2028b"}'.encode(), ["a\u2028b"]),
    "an object a line": ("a.json", b'{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
    "an object over lines": ("a.json", b'{\n"text": "a"\n}\n', ["a"]),
    "a list of texts": ("a.json", b'["a", "b"]', ["a", "b"]),
    "tabs": ("a.tsv", b"id\ttext\n1\ta, b\n", ["a, b"]),
    "tabs by another name": ("a.csv", b"id\ttext\n1\ta, b\n", ["a, b"]),
    "newline-delimited JSON": ("a.ndjson", b'{"text": "a"}\n', ["a"]),
    "capitals": ("A.JSONL", b'{"text": "a"}\n', ["a"]),
    "gzip": ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n'), ["a"]),
    "gzip in capitals": ("a.TXT.GZ", gzip.compress(b"a\r\nb"), ["a", "b"]),
    "zstd": ("a.csv.zst", zstd(b"text\na\n"), ["a"]),
    "gzip around a list": ("a.json.gz", gzip.compress(b'["a", "b"]'), ["a", "b"]),
    "a name with dots": ("a.v1.txt", b"a", ["a"]),
}


@pytest.mark.parametrize("name", VALID)
def test_unusual_valid_files_are_read_as_they_are(name: str, tmp_path: Path) -> None:
    file, content, texts = VALID[name]
    (tmp_path / file).write_bytes(content)
    _, rows = read_file(str(tmp_path / file), {"text"}, None)
    assert [row["text"] for row in rows] == texts


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode), suffix=st.sampled_from([*READERS]))
def test_any_bytes_are_rejected_or_read(content: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / f"a{suffix}"
    path.write_bytes(content)
    assert_rejected_or_read(path)


@settings(max_examples=60, deadline=None)
@given(
    row=st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_json_value_is_read_unchanged(row: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    path.write_text(json.dumps({"text": row}) + "\n", encoding="utf-8", errors="surrogatepass")
    columns, rows = read_file(str(path), {"text"}, None)
    assert columns == ["text"]
    assert json.dumps(rows[0]["text"]) == json.dumps(row)
