"""Atomic writes, and safetensors files whose bytes depend on their content alone."""

import json
import os
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from masklearn.errors import WriteError, one_line

TEMP_PATTERN = ".*.[0-9]*.part"
"""Temporary files of processes that are writing, or were when they were killed."""


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
    temp = path.with_name(f".{path.name}.{os.getpid()}.part")
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
