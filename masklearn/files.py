"""Atomic writes, and safetensors files: with bytes that depend on their content alone, or with a checksum."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from masklearn.errors import WriteError, one_line

TEMP_PATTERN = ".*.[0-9]*.part"
"""Temporary files of processes that are writing, or were when they were killed."""
CHECKSUM_KEY = "sha256"
"""Metadata key of the checksum of a file's tensors."""
READ_ERRORS = (OSError, KeyError, ValueError, SafetensorError)
"""Errors of reading a file that is missing or damaged."""


def pack(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """The bytes of a safetensors file with a sorted header: the library's own order of metadata differs every time."""
    content = save(tensors, metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def atomic_write(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Write a temporary file, flush it to the disk, and rename it to `path`: a reader sees the old file or the new one.

    Args:
        path: The file.
        content: Its content.
        keep: Where to move an earlier file, if it is to be kept.

    Raises:
        WriteError: If writing fails; an earlier file is then untouched.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}{token_hex(4)}.part")  # processes of two containers may share ids
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temp.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            path.replace(keep)
        temp.replace(path)
    except OSError as error:
        with suppress(OSError):
            temp.unlink()
        raise WriteError(
            f"cannot write {path}: {one_line(error)}. Choose another folder, or make room on this disk"
        ) from error


def require_writable(path: Path) -> None:
    """Check that a file can be written later, by writing an empty temporary one beside it.

    Raises:
        WriteError: If it cannot be written.
    """
    probe = path.with_name(f".{path.name}.{os.getpid()}{token_hex(4)}.part")
    atomic_write(probe, b"")
    probe.unlink()


def write_checked(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and their checksum; a kill leaves the old file or the new one.

    Raises:
        WriteError: If writing fails.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write(file, save(tensors, {CHECKSUM_KEY: _checksum(tensors)}))


def read_checked(file: Path) -> dict[str, Tensor]:
    """The tensors of a file that `write_checked` has written; raises one of the `READ_ERRORS` if that is impossible."""
    with safe_open(file, "pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  (not a mapping)
        expected = (content.metadata() or {}).get(CHECKSUM_KEY)
    if expected != _checksum(tensors):
        raise ValueError("its checksum does not match its content")
    return tensors


def _checksum(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(save(tensors)).hexdigest()
