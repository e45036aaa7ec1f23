"""Read text files to rows, line by line and without guessing: an error names the file and the line.

Every value is returned as it is in the file, or the file is rejected.
"""

import csv
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from masklearn.errors import UserError, one_line

MAX_TEXT_LENGTH = 2**24
"""Bytes of a line, and characters of a text: more is a whole file in one row."""
MAX_JSON_BYTES = 2**28
"""Bytes of a .json file, which is read at once; the other formats are read line by line."""
PROMPTS_KEY = "prompts"
"""Key under which auto-circuit's files have their list of texts."""
FOREIGN_SIGNATURES = {
    b"\x1f\x8b": "compressed (gzip)",
    b"PK\x03\x04": "compressed (zip)",
    b"BZh": "compressed (bzip2)",
    b"\xfd7zXZ": "compressed (xz)",
    b"\x28\xb5\x2f\xfd": "compressed (zstd)",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PAR1": "Parquet",
}
"""First bytes of files that are not text in UTF-8."""

Row = dict[str, Any]
"""Values by column name."""


class Line(NamedTuple):
    """A line of a text file."""

    number: int
    """From 1."""
    text: str


def read_file(given: str, columns: Collection[str], limit: int | None) -> tuple[list[str], list[Row]]:
    """Names of all columns of a file, and its rows.

    Args:
        given: Path of the file, as the user gave it.
        columns: Columns to read values of, where they exist.
        limit: Maximum number of rows, taken from the start.

    Raises:
        UserError: If the file cannot be read; names the problem, its line, and a remedy.
    """
    path = _existing_path(given)
    names: dict[str, None] = {}
    rows: list[Row] = []
    try:
        for row in islice(READERS[path.suffix](path, columns, names), limit):
            names |= dict.fromkeys(row)
            rows.append({name: row[name] for name in row if name in columns})
    except _FileError as error:
        raise UserError(f"data.path: {given}{error}") from error
    except (ValueError, OSError, pa.ArrowException, MemoryError) as error:
        raise UserError(f"data.path: cannot read {given}: {one_line(error)}. Give an undamaged file") from error
    return list(names), rows


class _FileError(Exception):
    """A problem with a file, worded to follow the file's name."""


def _existing_path(given: str) -> Path:
    try:
        path = Path(given).expanduser()
        is_file = path.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, or the home of an unknown user
        raise UserError(f"data.path: there is no file {given} ({one_line(error)}). Give an existing file") from error
    if not is_file:
        raise UserError(f"data.path: there is no file {given}. Give an existing file")
    if path.suffix not in READERS:
        raise UserError(f"data.path: {given} ends in {path.suffix!r}; supported are {', '.join(READERS)}")
    if not path.stat().st_size:
        raise UserError(f"data.path: {given} is empty. Give a file with texts")
    return path


def _lines(path: Path) -> Iterator[Line]:
    """The lines of a text file, with their line breaks.

    Raises:
        _FileError: If the file is not text in UTF-8, or if a line is too long.
    """
    with path.open("rb") as file:
        head = file.read(8)
        for signature, encoding in FOREIGN_SIGNATURES.items():
            if head.startswith(signature):
                raise _FileError(f" is {encoding}, not a {path.suffix} file as its name says. Give it as text in UTF-8")
        file.seek(3 if head.startswith(b"\xef\xbb\xbf") else 0)
        number = 0
        while raw := file.readline(MAX_TEXT_LENGTH + 1):
            number += 1
            if len(raw) > MAX_TEXT_LENGTH:
                raise _FileError(
                    f", line {number}: more than {MAX_TEXT_LENGTH >> 20} MiB without a line break. Give one text a line"
                )
            if b"\0" in raw:
                raise _FileError(f", line {number}: NUL bytes, which do not occur in text. Save it as text in UTF-8")
            try:
                yield Line(number, raw.decode())
            except UnicodeDecodeError as error:
                raise _FileError(
                    f", line {number}: byte {error.start + 1} is not UTF-8 ({error.reason}). Save it as UTF-8"
                ) from error


def _read_txt(path: Path, columns: Collection[str], names: dict[str, None]) -> Iterator[Row]:
    names["text"] = None
    for line in _lines(path):
        if line.text.strip():  # blank lines only separate texts
            yield {"text": line.text.rstrip("\r\n")}


def _read_jsonl(path: Path, columns: Collection[str], names: dict[str, None]) -> Iterator[Row]:
    for line in _lines(path):
        if line.text.strip():
            location = f", line {line.number}"
            yield _require_object(_parse_json(line.text.rstrip(), location), location)


def _read_json(path: Path, columns: Collection[str], names: dict[str, None]) -> Iterator[Row]:
    """A list of objects, such a list under `prompts`, or one object a line."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise _FileError(f" has more than {MAX_JSON_BYTES >> 20} MiB. Give it as .jsonl, one object a line")
    content = "".join(line.text for line in _lines(path))
    first = content.lstrip()[:1]
    if first == "{" and len(lines := content.strip().splitlines()) > 1 and lines[0].rstrip().endswith("}"):
        yield from _read_jsonl(path, columns, names)
        return
    found = _parse_json(content, "")
    if isinstance(found, dict):
        found = found.get(PROMPTS_KEY, [found])
    if not isinstance(found, list):
        raise _FileError(f" holds {_json_type(found)}. Give a list of objects, or one object a line")
    for index, row in enumerate(found):
        yield {"text": row} if isinstance(row, str) else _require_object(row, f", row {index + 1}")


def _read_csv(path: Path, columns: Collection[str], names: dict[str, None]) -> Iterator[Row]:
    csv.field_size_limit(MAX_TEXT_LENGTH)
    reader = csv.reader((line.text for line in _lines(path)), strict=True)
    try:
        header = next(filter(None, reader), [])
        _require_unique(header, "")
        names |= dict.fromkeys(header)
        for values in filter(None, reader):
            if len(values) != len(header):
                raise _FileError(
                    f", line {reader.line_num}: {len(values)} values for the {len(header)} columns "
                    f"{', '.join(header)}. Fix the row; put values that contain a comma in quotes"
                )
            yield dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise _FileError(f", line {reader.line_num}: this is not CSV ({error}). Fix the row") from error


def _read_parquet(path: Path, columns: Collection[str], names: dict[str, None]) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        header = file.schema_arrow.names
        _require_unique(header, "")
        names |= dict.fromkeys(header)
        for batch in file.iter_batches(1024, columns=[name for name in header if name in columns]):
            yield from batch.to_pylist()


READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""The reader of each file format. It yields rows, and adds columns without values to `names`."""


def _parse_json(text: str, location: str) -> Any:
    def unique_keys(pairs: list[tuple[str, Any]]) -> Row:
        _require_unique([name for name, _ in pairs], location)
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        line = location or f", line {error.lineno}"
        raise _FileError(f"{line}, column {error.colno}: this is not JSON ({error.msg}). Fix it") from error
    except (ValueError, RecursionError) as error:
        raise _FileError(f"{location}: this JSON cannot be parsed ({one_line(error)}). Fix it") from error


def _require_unique(names: Sequence[str], location: str) -> None:
    duplicate = next((name for name, count in Counter(names).items() if count > 1), None)
    if duplicate is not None:
        raise _FileError(f"{location}: the column {duplicate!r} occurs twice. Give it another name")


def _require_object(found: Any, location: str) -> Row:
    if not isinstance(found, dict):
        raise _FileError(f'{location}: {_json_type(found)} instead of an object. Write {{"text": "..."}}')
    return found


def _json_type(found: Any) -> str:
    types = {bool: "a truth value", int: "a number", float: "a number", str: "a text", list: "a list"}
    return types.get(type(found), "nothing (null)" if found is None else "an object")
