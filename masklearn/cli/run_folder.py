"""A run's folder: what it contains, which process may write to it, and how a stopped run is resumed."""

import json
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from masklearn.cli.checkpoints import CHECKPOINT_FOLDER
from masklearn.data import MaskData
from masklearn.data.digests import texts_digest
from masklearn.density.study_folder import FIGURES_FOLDER, REPORT_FILE, TABLES_FOLDER
from masklearn.errors import UserError, one_line
from masklearn.files import TEMP_PATTERN, atomic_write
from masklearn.mask_file import MASK_FILE
from masklearn.models import Layout, name_of

CONFIG_FILE, METRICS_FILE = "config.yaml", "metrics.json"
LOCK_FILE = ".lock"
CLAIM_SECONDS = 60
"""How long a shard waits for another one that writes the config."""
LEARNED_ON_FILE = CHECKPOINT_FOLDER / "learned-on.json"
"""Hashes of the texts and of the model that the run began with."""
BLOCKS_FOLDER = CHECKPOINT_FOLDER / "blocks"
"""Masks of finished blocks, until the mask file holds all of them."""
EVALUATED_FOLDER = Path("evaluated")
"""What studies have measured of the masks."""
WRITTEN_FOLDERS = (
    Path(), CHECKPOINT_FOLDER, BLOCKS_FOLDER, EVALUATED_FOLDER, Path(FIGURES_FOLDER), Path(TABLES_FOLDER),
)  # fmt: skip
"""Folders, relative to the run's, that a run or a study writes files to."""


class RunFolder:
    """The folder of one run or of one evaluation.

    Args:
        path: The folder; it need not exist.
        shard: The shard of the run that this process learns, such as 3/8; None for all of the run.
    """

    def __init__(self, path: Path, shard: str | None = None) -> None:
        self.path, self.shard = path, shard
        self.lock = FileLock(path / LOCK_FILE)

    def __truediv__(self, name: str | Path) -> Path:
        return self.path / name

    @property
    def resume_command(self) -> str:
        """The command line that resumes this run, or this shard of it."""
        shard = f" --run.shard {self.shard}" if self.shard else ""
        return f"python train.py --config {shlex.quote(str(self / CONFIG_FILE))} --run.resume true{shard}"

    def results(self) -> dict[str, Any] | None:
        """The content of `metrics.json`; None if the run has not finished.

        Raises:
            UserError: If the file is damaged.
        """
        file = self / METRICS_FILE
        try:
            return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        except ValueError as error:
            raise UserError(
                f"{file} is damaged ({one_line(error)}). Remove it. Go on with: {self.resume_command}"
            ) from error

    def acquire(self, flag: str = "--run.dir") -> None:
        """Keep other runs out of the folder while this process lives, and remove temporary files of killed ones.

        Args:
            flag: The flag that chooses another folder, for messages.

        Raises:
            UserError: If another run or a shard of this one is using the folder, or if it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(timeout=0)
            self._require_idle_shards()
        except Timeout as error:
            self.lock.release()
            raise UserError(
                f"another run is using {self.path}. Wait for it, stop it, or choose another {flag}"
            ) from error
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {one_line(error)}. Choose another {flag}") from error
        for folder in WRITTEN_FOLDERS:
            for file in (self.path / folder).glob(TEMP_PATTERN):
                with suppress(OSError):
                    file.unlink()

    def _require_idle_shards(self) -> None:
        """Raise Timeout if a process learns a shard; none can begin while this one has the folder's lock."""
        for file in self.path.glob(f"{LOCK_FILE}-*"):
            FileLock(file).acquire(timeout=0).lock.release()

    def release(self) -> None:
        """Allow other runs to use the folder."""
        self.lock.release()

    def claim(self, config: str) -> None:
        """Acquire the folder for a new run and write the run's config.

        Raises:
            UserError: If it holds a run, or files of one, or cannot be written.
        """
        self._require_free()
        self.acquire()
        self._require_free()  # another run may have been faster
        atomic_write(self / CONFIG_FILE, config.encode())

    def claim_shard(
        self, config: str, requested: dict[str, Any], shard: int, agree: Callable[[], object] = lambda: None
    ) -> None:
        """Acquire one shard of the folder's run; the first shard to come writes the run's config.

        Args:
            config: The settings, as `config.yaml` is to hold them.
            requested: The settings of this command.
            shard: Number of the shard.
            agree: What shards must do one after the other; it is called while no other one can be acquired.

        Raises:
            UserError: If another process learns this shard, if the folder's run has other settings, or if it cannot be
                written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self.lock.acquire(timeout=CLAIM_SECONDS):
                if not (self / CONFIG_FILE).is_file():
                    self._require_free()
                    atomic_write(self / CONFIG_FILE, config.encode())
                self.lock = FileLock(self / f"{LOCK_FILE}-{shard}")
                self.lock.acquire(timeout=0)
                self.require_same_settings(requested, "run.shard")
                agree()
        except Timeout as error:
            raise UserError(f"another process is using this shard of {self.path}. Wait for it, or stop it") from error
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {one_line(error)}. Choose another --run.dir") from error

    def _require_free(self) -> None:
        written = (CONFIG_FILE, MASK_FILE, METRICS_FILE, CHECKPOINT_FOLDER, REPORT_FILE, FIGURES_FOLDER)
        present = [name for name in written if (self / name).exists()]
        if CONFIG_FILE in present:
            raise UserError(
                f"{self.path} already holds a run. Choose another --run.dir, or resume it: {self.resume_command}"
            )
        if present:
            raise UserError(f"{self.path} already holds {present[0]}, which is kept. Choose another --run.dir")

    def require_same_settings(self, requested: dict[str, Any], flag: str = "run.resume") -> None:
        """Refuse to resume a run under settings other than those it was started with.

        Args:
            requested: The settings of this command.
            flag: The flag that asked for it, for messages.

        Raises:
            UserError: If there is no run, or if a setting of model or data differs; names the first that does.
        """
        config = self / CONFIG_FILE
        if not config.is_file():
            raise UserError(
                f"{flag}: there is no run in {self.path}. Give its --config {CONFIG_FILE}, or its --run.dir"
            )
        try:
            content = yaml.safe_load(config.read_text(encoding="utf-8"))
            started_with = [(section, *item) for section in ("model", "data") for item in content[section].items()]
        except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{config} is damaged: {one_line(error)}. Start a new run in another --run.dir") from error
        for section, key, value in started_with:
            now = requested[section].get(key)
            if now != value:
                raise UserError(
                    f"{flag}: the run in {self.path} was started with {section}.{key} {value}, not {now}. "
                    f"Go on with: {self.resume_command}"
                )

    def require_same_inputs(self, data: MaskData, layout: Layout) -> dict[str, str]:
        """Refuse to go on with other texts, or another model, than those that the run was started with.

        Returns:
            What is compared: hashes of both.

        Raises:
            UserError: Names what has changed.
        """
        now, started_with = {"texts": texts_digest(data), "model": layout.fingerprint}, dict[str, str]()
        with suppress(OSError, ValueError):
            started_with = json.loads((self / LEARNED_ON_FILE).read_text(encoding="utf-8"))
        for name, value in now.items():
            if started_with.get(name, value) != value:
                raise UserError(
                    f"the {name} of the run in {self.path} changed after it was started ({data.source}, "
                    f"{name_of(layout.lm)}). Bring back what was there, or start a new run in another --run.dir"
                )
        return now

    def settle_inputs(self, data: MaskData, layout: Layout) -> None:
        """Store what the run learns on, or refuse to go on with something else.

        Raises:
            UserError: If the texts or the model have changed since the run was started.
        """
        atomic_write(self / LEARNED_ON_FILE, json.dumps(self.require_same_inputs(data, layout)).encode())
