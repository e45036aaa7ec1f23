"""Open the files that texts come from: their endings, compression, encoding and line ends."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from masklearn.errors import UserError, one_line

MAX_TEXT_LENGTH = 2**24
"""Bytes of a line, and characters of a text: more is a whole file in one row."""
BLOCK_BYTES = 2**16
"""Bytes that are read at once."""
CODECS = {".gz": "gzip", ".zst": "zstd"}
"""Compression of files by the last of their endings."""
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
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""First bytes of the stub that Git leaves in place of a file that it has not fetched."""
WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype\s+html|html)\b", re.IGNORECASE)


class FileError(Exception):
    """A problem with a file, worded to follow the file's name."""


class Line(NamedTuple):
    """A line of a text file."""

    number: int
    """From 1."""
    text: str


@dataclass(frozen=True)
class DataFile:
    """A file with texts."""

    path: Path
    suffix: str
    """Its ending in lower case, without that of the compression."""
    codec: str | None
    """Its compression; None if it has none."""

    @classmethod
    def of(cls, given: str, suffixes: tuple[str, ...]) -> "DataFile":
        """The file of a path.

        Args:
            given: The path, as the user gave it.
            suffixes: Endings of the formats that can be read.

        Raises:
            UserError: If there is no such file, if it is empty, or if its format is not known.
        """
        path = existing_path(given)
        if path.is_dir():
            raise UserError(
                f"data.path: {given} is a folder, but not one that datasets' save_to_disk has written. Give a file, "
                f"or read all data files of the folder: --data.dataset {given}"
            )
        endings = [ending.lower() for ending in path.suffixes]
        codec = CODECS.get(endings[-1]) if endings else None
        endings = endings[:-1] if codec else endings
        suffix = endings[-1] if endings else ""
        if suffix not in suffixes:
            raise UserError(
                f"data.path: {given} ends in {''.join([suffix, path.suffix if codec else ''])!r}; supported are "
                f"{', '.join(suffixes)}, also with {' or '.join(CODECS)}"
            )
        if not path.stat().st_size:
            raise UserError(f"data.path: {given} is empty. Give a file with texts")
        return cls(path, suffix, codec)

    def open_binary(self) -> io.BufferedReader:
        """Open the file, decompressed.

        Raises:
            FileError: If it holds something else in the file's place.
        """
        raw: Any = pa.input_stream(self.path, compression=self.codec) if self.codec else self.path.open("rb")
        file = io.BufferedReader(raw, BLOCK_BYTES)
        try:
            _require_no_stand_in(file.peek())
        except (OSError, FileError):
            file.close()
            raise
        return file

    def lines(self) -> Iterator[Line]:
        """The lines of a text file, with their line breaks.

        Raises:
            FileError: If the file is not text in UTF-8, or if a line is too long.
        """
        with self.open_binary() as file:
            head = file.peek()
            for signature, encoding in FOREIGN_SIGNATURES.items():
                if head.startswith(signature):
                    raise FileError(
                        f" is {encoding}, not a {self.suffix} file as its name says. Give it as text in UTF-8"
                    )
            file.read(3 if head.startswith(b"\xef\xbb\xbf") else 0)
            for number, raw in enumerate(_raw_lines(file), start=1):
                yield Line(number, _decode(number, raw))


def existing_path(given: str) -> Path:
    """The file or folder of a path that may begin with ~.

    Raises:
        UserError: If there is none.
    """
    try:
        path = Path(given).expanduser()
        exists = path.is_file() or (bool(given) and path.is_dir())
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, or the home of an unknown user
        raise UserError(f"data.path: there is no file {given} ({one_line(error)}). Give an existing file") from error
    if not exists:
        raise UserError(f"data.path: there is no file {given}. Give an existing file")
    return path


def _require_no_stand_in(head: bytes) -> None:
    """Refuse a file that holds something else in place of the file of its name; `head` are its first bytes."""
    if head.startswith(LFS_POINTER):
        raise FileError(" is a pointer of Git LFS, not the file itself. Fetch the file: git lfs pull")
    if WEB_PAGE.match(head):
        raise FileError(" is a web page (HTML), not the file. Download the file itself, by its raw or resolve link")


def _raw_lines(file: io.BufferedReader) -> Iterator[bytes]:
    """The lines of a file, none much longer than the maximum. They may end in CR alone, as on old Macs."""
    head = file.peek()
    if b"\n" in head or b"\r" not in head[:-1]:
        while raw := file.readline(MAX_TEXT_LENGTH + 1):
            yield raw
        return
    rest = b""
    while len(rest) <= MAX_TEXT_LENGTH and (block := file.read(BLOCK_BYTES)):
        *whole, rest = (rest + block).split(b"\r")
        for raw in whole:
            yield raw + b"\n"
    if rest:
        yield rest


def _decode(number: int, raw: bytes) -> str:
    if len(raw) > MAX_TEXT_LENGTH:
        raise FileError(
            f", line {number}: more than {MAX_TEXT_LENGTH >> 20} MiB without a line break. Give one text a line"
        )
    if b"\0" in raw:
        raise FileError(f", line {number}: NUL bytes, which do not occur in text. Save it as text in UTF-8")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise FileError(
            f", line {number}: byte {error.start + 1} is not UTF-8 ({error.reason}). Save it as UTF-8"
        ) from error
