"""Files of texts to rows, read line by line and believed in nothing: what is wrong is named with its place.

Standard readers, and none that guess: a row is what stands there, or the file is refused.
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

LONGEST = 2**24
"""Bytes of a line, and letters of a text: more is a whole file in one row."""
LARGEST = 2**28
"""Bytes of a .json file, which is read at once; the other kinds are read line by line."""
PROMPTS = "prompts"
"""Where auto-circuit's files have their texts."""
FOREIGN = {
    b"\x1f\x8b": "compressed (gzip)",
    b"PK\x03\x04": "compressed (zip)",
    b"BZh": "compressed (bzip2)",
    b"\xfd7zXZ": "compressed (xz)",
    b"\x28\xb5\x2f\xfd": "compressed (zstd)",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PAR1": "Parquet",
}
"""How files begin that are no text in UTF-8."""

Row = dict[str, Any]


class Line(NamedTuple):
    """A line of a file that is no blank one."""

    number: int
    """From 1, blank ones counted."""
    text: str


def read_file(given: str, columns: Collection[str], limit: int | None) -> tuple[list[str], list[Row]]:
    """The rows of a file, and the names of all its columns.

    Args:
        given: Its path, as the user gave it.
        columns: Those whose values are wanted, as far as there are such; names are told of all.
        limit: Rows at most, from the start.

    Raises:
        UserError: What is wrong, where, and what would do.
    """
    path = _found(given)
    names: dict[str, None] = {}
    rows: list[Row] = []
    try:
        for row in islice(READERS[path.suffix](path, columns, names), limit):
            names |= dict.fromkeys(row)
            rows.append({name: row[name] for name in row if name in columns})
    except _Wrong as error:
        raise UserError(f"data.path: {given}{error}") from error
    except (ValueError, OSError, pa.ArrowException, MemoryError) as error:
        raise UserError(f"data.path: cannot read {given}: {one_line(error)}. Give a sound file") from error
    return list(names), rows


class _Wrong(Exception):
    """What is wrong with a file, to be put behind its name."""


def _found(given: str) -> Path:
    try:
        path = Path(given).expanduser()
        is_file = path.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, a home that is nobody's
        raise UserError(f"data.path: there is no file {given} ({one_line(error)}). Name one that there is") from error
    if not is_file:
        raise UserError(f"data.path: there is no file {given}. Name one that there is")
    if path.suffix not in READERS:
        raise UserError(f"data.path: {given} ends in {path.suffix!r}; known are {', '.join(READERS)}")
    if not path.stat().st_size:
        raise UserError(f"data.path: {given} is empty. Give a file with texts")
    return path


def _lines(path: Path) -> Iterator[Line]:
    """The lines of a text file, the breaks at their ends included.

    Raises:
        _Wrong: If it is no text in UTF-8, or if a line is too long.
    """
    with path.open("rb") as file:
        head = file.read(8)
        for begin, what in FOREIGN.items():
            if head.startswith(begin):
                raise _Wrong(f" is {what}, not the {path.suffix} file that its name says. Give it as text in UTF-8")
        file.seek(3 if head.startswith(b"\xef\xbb\xbf") else 0)
        number = 0
        while raw := file.readline(LONGEST + 1):
            number += 1
            if len(raw) > LONGEST:
                raise _Wrong(f", line {number}: more than {LONGEST >> 20} MiB without an end. Give a text a line")
            if b"\0" in raw:
                raise _Wrong(f", line {number}: NUL bytes, which no text has. Save it as text in UTF-8")
            try:
                yield Line(number, raw.decode())
            except UnicodeDecodeError as error:
                raise _Wrong(
                    f", line {number}: byte {error.start + 1} is no UTF-8 ({error.reason}). Save it as UTF-8"
                ) from error


def _texts(path: Path, columns: Collection[str], names: dict[str, None]) -> Iterator[Row]:
    names["text"] = None
    for line in _lines(path):
        if line.text.strip():  # blank lines separate texts; they are none
            yield {"text": line.text.rstrip("\r\n")}


def _json_lines(path: Path, columns: Collection[str], names: dict[str, None]) -> Iterator[Row]:
    for line in _lines(path):
        if line.text.strip():
            yield _object(_parsed(line.text.rstrip(), f", line {line.number}"), f", line {line.number}")


def _json(path: Path, columns: Collection[str], names: dict[str, None]) -> Iterator[Row]:
    """A list of objects, or one under `prompts`, or an object a line."""
    if path.stat().st_size > LARGEST:
        raise _Wrong(f" has more than {LARGEST >> 20} MiB. Give it as .jsonl, an object a line")
    whole = "".join(line.text for line in _lines(path))
    start = whole.lstrip()[:1]
    if start == "{" and len(lines := whole.strip().splitlines()) > 1 and lines[0].rstrip().endswith("}"):
        yield from _json_lines(path, columns, names)
        return
    found = _parsed(whole, "")
    if isinstance(found, dict):
        found = found.get(PROMPTS, [found])
    if not isinstance(found, list):
        raise _Wrong(f" holds {_kind(found)}. Give a list of objects, or an object a line")
    for i, row in enumerate(found):
        yield {"text": row} if isinstance(row, str) else _object(row, f", row {i + 1}")


def _csv(path: Path, columns: Collection[str], names: dict[str, None]) -> Iterator[Row]:
    csv.field_size_limit(LONGEST)
    reader = csv.reader((line.text for line in _lines(path)), strict=True)
    try:
        header = next(filter(None, reader), [])
        _require_once(header, "")
        names |= dict.fromkeys(header)
        for values in filter(None, reader):
            if len(values) != len(header):
                raise _Wrong(
                    f", line {reader.line_num}: {len(values)} values for the {len(header)} columns "
                    f"{', '.join(header)}. Mend the row; what holds a comma stands in quotes"
                )
            yield dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise _Wrong(f", line {reader.line_num}: this is no CSV ({error}). Mend the row") from error


def _parquet(path: Path, columns: Collection[str], names: dict[str, None]) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        header = file.schema_arrow.names
        _require_once(header, "")
        names |= dict.fromkeys(header)
        for batch in file.iter_batches(1024, columns=[name for name in header if name in columns]):
            yield from batch.to_pylist()


READERS = {".jsonl": _json_lines, ".json": _json, ".txt": _texts, ".csv": _csv, ".parquet": _parquet}


def _parsed(text: str, place: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> Row:
        _require_once([name for name, _ in pairs], place)
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        where = place or f", line {error.lineno}"
        raise _Wrong(f"{where}, column {error.colno}: this is no JSON ({error.msg}). Mend it") from error
    except (ValueError, RecursionError) as error:
        raise _Wrong(f"{place}: this is no JSON to be read ({one_line(error)}). Mend it") from error


def _require_once(names: Sequence[str], place: str) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise _Wrong(f"{place}: the column {twice!r} comes twice. Give it another name")


def _object(found: Any, place: str) -> Row:
    if not isinstance(found, dict):
        raise _Wrong(f'{place}: {_kind(found)}, and no object. Write {{"text": "..."}}')
    return found


def _kind(found: Any) -> str:
    kinds = {bool: "a truth value", int: "a number", float: "a number", str: "a text", list: "a list"}
    return kinds.get(type(found), "nothing (null)" if found is None else "an object")
