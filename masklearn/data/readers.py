"""Read text files to rows, line by line and without guessing: an error names the file and the line.

Every value is returned as it is in the file, or the file is rejected.
"""

import csv
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from masklearn.data.opening import MAX_TEXT_LENGTH, DataFile, FileError
from masklearn.errors import UserError, one_line

MAX_JSON_BYTES = 2**28
"""Characters of a .json file, which is read at once; the other formats are read line by line."""
PROMPTS_KEY = "prompts"
"""Key under which auto-circuit's files have their list of texts."""

Row = dict[str, Any]
"""Values by column name."""


def read_file(given: str, columns: Collection[str], limit: int | None) -> tuple[list[str], list[Row]]:
    """Names of all columns of a file, and its rows.

    Args:
        given: Path of the file, as the user gave it.
        columns: Columns to read values of, where they exist.
        limit: Maximum number of rows, taken from the start.

    Raises:
        UserError: If the file cannot be read; names the problem, its line, and a remedy.
    """
    file = DataFile.of(given, tuple(READERS))
    names: dict[str, None] = {}
    rows: list[Row] = []
    try:
        for row in islice(READERS[file.suffix](file, columns, names), limit):
            names |= dict.fromkeys(row)
            rows.append({name: row[name] for name in row if name in columns})
    except FileError as error:
        raise UserError(f"data.path: {given}{error}") from error
    except (ValueError, OSError, pa.ArrowException, MemoryError) as error:
        raise UserError(f"data.path: cannot read {given}: {one_line(error)}. Give an undamaged file") from error
    return list(names), rows


def _read_txt(file: DataFile, columns: Collection[str], names: dict[str, None]) -> Iterator[Row]:
    names["text"] = None
    for line in file.lines():
        if line.text.strip():  # blank lines only separate texts
            yield {"text": line.text.rstrip("\r\n")}


def _read_jsonl(file: DataFile, columns: Collection[str], names: dict[str, None]) -> Iterator[Row]:
    for line in file.lines():
        if line.text.strip():
            location = f", line {line.number}"
            yield _require_object(_parse_json(line.text.rstrip(), location), location)


def _read_json(file: DataFile, columns: Collection[str], names: dict[str, None]) -> Iterator[Row]:
    """A list of objects, such a list under `prompts`, or one object a line."""
    parts, length = list[str](), 0
    for line in file.lines():
        parts.append(line.text)
        length += len(line.text)
        if length > MAX_JSON_BYTES:
            raise FileError(f" has more than {MAX_JSON_BYTES >> 20} MiB. Give it as .jsonl, one object a line")
    content = "".join(parts)
    first = content.lstrip()[:1]
    if first == "{" and len(lines := content.strip().splitlines()) > 1 and lines[0].rstrip().endswith("}"):
        yield from _read_jsonl(file, columns, names)
        return
    found = _parse_json(content, "")
    if isinstance(found, dict):
        found = found.get(PROMPTS_KEY, [found])
    if not isinstance(found, list):
        raise FileError(f" holds {_json_type(found)}. Give a list of objects, or one object a line")
    for index, row in enumerate(found):
        yield {"text": row} if isinstance(row, str) else _require_object(row, f", row {index + 1}")


def _read_csv(file: DataFile, columns: Collection[str], names: dict[str, None]) -> Iterator[Row]:
    csv.field_size_limit(MAX_TEXT_LENGTH)
    lines = (line.text for line in file.lines())
    first = next(lines, "")
    tabs = file.suffix == ".tsv" or ("\t" in first and "," not in first)
    reader = csv.reader(chain([first], lines), strict=True, delimiter="\t" if tabs else ",")
    try:
        header = next(filter(None, reader), [])
        _require_unique(header, "")
        names |= dict.fromkeys(header)
        for values in filter(None, reader):
            if len(values) != len(header):
                separator = "tab" if tabs else "comma"
                raise FileError(
                    f", line {reader.line_num}: {len(values)} values for the {len(header)} columns "
                    f"{', '.join(header)}. Fix the row; put values that contain a {separator} in quotes"
                )
            yield dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise FileError(f", line {reader.line_num}: this is not CSV ({error}). Fix the row") from error


def _read_parquet(file: DataFile, columns: Collection[str], names: dict[str, None]) -> Iterator[Row]:
    with (
        file.open_binary() as opened,
        pq.ParquetFile(pa.BufferReader(opened.read()) if file.codec else file.path) as table,
    ):
        header = table.schema_arrow.names
        _require_unique(header, "")
        names |= dict.fromkeys(header)
        for batch in table.iter_batches(1024, columns=[name for name in header if name in columns]):
            yield from batch.to_pylist()


READERS = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".tsv": _read_csv,
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
        raise FileError(f"{line}, column {error.colno}: this is not JSON ({error.msg}). Fix it") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{location}: this JSON cannot be parsed ({one_line(error)}). Fix it") from error


def _require_unique(names: Sequence[str], location: str) -> None:
    duplicate = next((name for name, count in Counter(names).items() if count > 1), None)
    if duplicate is not None:
        raise FileError(f"{location}: the column {duplicate!r} occurs twice. Give it another name")


def _require_object(found: Any, location: str) -> Row:
    if not isinstance(found, dict):
        raise FileError(f'{location}: {_json_type(found)} instead of an object. Write {{"text": "..."}}')
    return found


def _json_type(found: Any) -> str:
    types = {bool: "a truth value", int: "a number", float: "a number", str: "a text", list: "a list"}
    return types.get(type(found), "nothing (null)" if found is None else "an object")
