"""A run's folder: whose it is, what lies in it, and how a stopped run is gone on with."""

import json
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from masklearn.cli.checkpoints import FOLDER
from masklearn.density.study_folder import FIGURES_FOLDER, TABLES_FOLDER
from masklearn.errors import UserError, one_line
from masklearn.files import TEMP_PATTERN, atomic_write

CONFIG, MASK, RESULTS, LOCK = "config.yaml", "mask.safetensors", "metrics.json", ".lock"
BLOCKS = FOLDER / "blocks"
OURS = (Path(), FOLDER, BLOCKS, Path(FIGURES_FOLDER), Path(TABLES_FOLDER))
"""Where files are written."""


class RunFlags:
    """Where everything of a run goes.

    Args:
        dir: Folder of the run; runs/<config>-<time> by default.
        resume: Go on with the run in that folder, from its last checkpoint.
    """

    def __init__(self, dir: str | None = None, resume: bool = False) -> None:
        self.dir, self.resume = dir, resume


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = FileLock(path / LOCK)

    def __truediv__(self, name: str | Path) -> Path:
        return self.path / name

    @property
    def how_to_resume(self) -> str:
        return f"python train.py --config {shlex.quote(str(self / CONFIG))} --run.resume true"

    def results(self) -> dict[str, Any] | None:
        """What a run that has come to its end has measured."""
        results = self / RESULTS
        try:
            return json.loads(results.read_text()) if results.is_file() else None
        except ValueError as error:
            raise UserError(
                f"{results} is damaged ({one_line(error)}). Remove it, and go on: {self.how_to_resume}"
            ) from error

    def hold(self, flag: str = "--run.dir") -> None:
        """Keep other runs out of the folder for as long as this process lives, and clear what a killed one left aside.

        Args:
            flag: What names another folder.

        Raises:
            UserError: If a run is at work in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"a run is at work in {self.path}. Wait for it, stop it, or choose another {flag}"
            ) from error
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {one_line(error)}. Choose another {flag}") from error
        for place in OURS:
            for part in (self.path / place).glob(TEMP_PATTERN):
                with suppress(OSError):
                    part.unlink()

    def release(self) -> None:
        """Let other runs in."""
        self.lock.release()

    def claim(self, config: str) -> None:
        """Make the folder a new run's own, by writing its config.

        Raises:
            UserError: If it holds a run, or parts of one, or cannot be written.
        """
        self._require_free()
        self.hold()
        self._require_free()  # somebody may have been quicker
        atomic_write(self / CONFIG, config.encode())

    def _require_free(self) -> None:
        held = [name for name in (CONFIG, MASK, RESULTS, FOLDER) if (self / name).exists()]
        if CONFIG in held:
            raise UserError(
                f"{self.path} already holds a run. Choose another --run.dir, or go on with it: {self.how_to_resume}"
            )
        if held:
            raise UserError(f"{self.path} already holds {held[0]}, which is kept. Choose another --run.dir")

    def require_same(self, asked: dict[str, Any]) -> None:
        """Refuse to go on with a run under other settings than it was begun with.

        Args:
            asked: The settings asked for now.

        Raises:
            UserError: If there is no run, or if a setting of model or data differs; names the first that does.
        """
        config = self / CONFIG
        if not config.is_file():
            raise UserError(f"run.resume: there is no run in {self.path}. Give its --config {CONFIG}, or its --run.dir")
        try:
            begun = yaml.safe_load(config.read_text())
        except (yaml.YAMLError, ValueError) as error:
            raise UserError(f"{config} is damaged: {one_line(error)}. Begin anew in another --run.dir") from error
        for room in ("model", "data"):
            for key, value in begun.get(room, {}).items():
                now = asked[room].get(key)
                if now != value:
                    raise UserError(
                        f"run.resume: the run in {self.path} was begun with {room}.{key} {value}, not {now}. "
                        f"Go on with: {self.how_to_resume}"
                    )
