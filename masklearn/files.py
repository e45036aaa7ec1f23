"""Files that appear whole or not at all, and the same bytes for the same content."""

import json
import os
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from masklearn.errors import UserError, one_line

TEMP_PATTERN = ".*.[0-9]*.part"
"""Files that a process is writing, or was when it was killed."""


def pack(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file with its header in order: the library writes metadata in another order every time."""
    content = save(tensors, metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def atomic_write(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Write a file aside, flush it to the disk, and put it in place in one step.

    Args:
        path: The file.
        content: What shall be in it.
        keep: Where to move the file that was there, if it is to be kept.

    Raises:
        UserError: If that fails; what was there before is untouched.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            path.replace(keep)
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise UserError(f"cannot write {path}: {one_line(error)}. Choose another folder, or make room") from error
