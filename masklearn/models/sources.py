"""Where a model's name leads: the embedded model, a folder, a GGUF file, a folder of the hub's cache, or the hub."""

import sys
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session

from masklearn.errors import UserError, one_line
from masklearn.tiny import MODEL_FOLDER

EMBEDDED = "embedded"
"""Name of the model that comes with the package."""
MODEL_FLAG = "model.lm"
"""Flag that names a model."""
HUB_TIMEOUT = 8.0
"""Seconds that the hub may take to answer before it counts as unreachable."""


@dataclass(frozen=True)
class ModelSource:
    """Where transformers can load a model from."""

    location: str
    """A folder or a hub id."""
    options: dict[str, Any]
    """Further arguments of `from_pretrained`."""

    @property
    def folder(self) -> Path | None:
        """The folder; None on the hub."""
        path = Path(self.location)
        return path if path.is_dir() else None


def model_source(lm: str, revision: str | None = None, flag: str = MODEL_FLAG) -> ModelSource:
    """Find what a model's name stands for.

    Args:
        lm: Folder, GGUF file, hub id, or `embedded`.
        revision: Branch, tag or commit on the hub.
        flag: The flag that names it, for messages.

    Raises:
        UserError: If the name looks like a path and there is nothing there; the hub is not asked then. Or if it is a
            hub id, the hub is unreachable, and the model has not been downloaded before.
    """
    if lm == EMBEDDED:
        return ModelSource(str(MODEL_FOLDER), {})
    path = Path(lm).expanduser()
    if path.is_dir():
        return ModelSource(str(_snapshot(path, revision, flag)), {"revision": revision})
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return ModelSource(str(path.parent), {"gguf_file": path.name})
        raise UserError(f"{flag}: {lm} is a file. Give the folder that it is in, or a .gguf file")
    if lm.startswith((".", "/", "~")) or lm.count("/") > 1 or path.suffix.lower() == ".gguf":
        raise UserError(f"{flag}: there is no folder {lm}. Give a model's folder, a hub id, or {EMBEDDED}")
    why = why_hub_unreachable()
    if why and not isinstance(try_to_load_from_cache(lm, "config.json", revision=revision), str):
        raise UserError(
            f"{flag}: {lm} is no folder here, and the hub, {constants.ENDPOINT}, cannot be reached ({why}). Give a "
            f"model's folder, or {EMBEDDED}; or download it where there is a network and copy the folder"
        )
    return ModelSource(lm, {"revision": revision, "local_files_only": bool(constants.HF_HUB_OFFLINE or why)})


def has_revisions(lm: str) -> bool:
    """Whether there may be several revisions of a model: on the hub, or in a folder of the hub's cache."""
    path = Path(lm).expanduser()
    return lm != EMBEDDED and (not path.exists() or (path / "snapshots").is_dir())


def _snapshot(folder: Path, revision: str | None, flag: str) -> Path:
    """Return the model's files in a folder of the hub's cache (`models--owner--name`); any other folder as it is."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir() or (folder / "config.json").is_file():
        return folder
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    if commit and (snapshots / commit).is_dir():
        return snapshots / commit
    found = sorted(path.name for path in snapshots.iterdir() if path.is_dir())
    if len(found) == 1 and revision is None:
        return snapshots / found[0]
    choose = "Choose one with --model.revision" if flag == MODEL_FLAG else f"Give the folder of one in {snapshots}"
    raise UserError(
        f"{flag}: {folder} holds no revision {revision or 'main'}, but {', '.join(found) or 'none'}. {choose}, or "
        "download the model again"
    )


def why_hub_unreachable() -> str:
    """Return why the hub does not answer, within ten seconds; an empty string if it does, or if it may not be asked."""
    return "" if constants.HF_HUB_OFFLINE else _why_unreachable(constants.ENDPOINT)


@cache
def _why_unreachable(endpoint: str) -> str:
    """Return why the hub does not answer; an empty string if it does. It is asked once in a process."""
    print(f"Connecting to {endpoint}", file=sys.stderr, flush=True)
    problems = [f"no answer within {HUB_TIMEOUT:.0f} s"]

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=HUB_TIMEOUT)
            problems[:] = [""]
        except Exception as error:  # the HTTP library and its errors differ between versions of the hub's client
            problems[:] = [one_line(error)]

    # in a thread: looking up the host's name may take longer than the limit, and cannot be interrupted
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT + 1)
    return problems[0]
