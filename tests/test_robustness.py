"""How a run survives kills, signals, full disks and harmful configs, part by part; `tests/faults` tests whole runs."""

import multiprocessing
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refused
from lightning import Trainer

import masklearn as ml
from masklearn.cli.checkpoints import (
    CHECKPOINT_FOLDER,
    LAST_CHECKPOINT,
    PREVIOUS_CHECKPOINT,
    AtomicCheckpointIO,
    checkpoint_step,
    newest_intact,
)
from masklearn.cli.run_folder import CONFIG_FILE, RunFolder
from masklearn.cli.stopping import Requeue, StopBetweenSteps, Stopped, interruptible
from masklearn.cli.train_cli import TrainCLI
from masklearn.files import atomic_write, pack

# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_run_is_resumed_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for folder in ("mine", "run"):
        Path(folder).mkdir()
        Path(folder, CONFIG_FILE).write_text("model: {steps: 60}\n")
    command = ["--config", f"mine/{CONFIG_FILE}", "--run.dir", "run"]
    assert TrainCLI([*command, "--run.resume", "true"]).folder.path == Path("run")
    assert "run.resume needs the run to resume" in refused(lambda: TrainCLI([*command[:2], "--run.resume", "true"]))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert TrainCLI(command).resume and TrainCLI(command).folder.path == Path("run")
    (tmp_path / "mine" / CHECKPOINT_FOLDER).mkdir()
    assert TrainCLI([*command, "--run.resume", "true"]).folder.path == Path("run")  # what the command says
    # A copy of a run, or one that was moved:
    Path("mine", CONFIG_FILE).write_text("model: {steps: 60}\nrun: {dir: run}\n")
    assert TrainCLI([*command[:2], "--run.resume", "true"]).folder.path == Path("mine")
    assert TrainCLI([*command[:2], "--run.dir", "other", "--run.resume", "true"]).folder.path == Path("other")


def test_temporary_files_of_a_killed_run_are_removed_and_no_others(tmp_path: Path) -> None:
    temporary = [tmp_path / ".config.yaml.12.part", tmp_path / CHECKPOINT_FOLDER / ".last.ckpt.12.part"]
    others = [tmp_path / ".film.mkv.part", tmp_path / "another run" / ".config.yaml.12.part"]
    for file in temporary + others:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    folder = RunFolder(tmp_path)
    folder.acquire()
    folder.release()
    assert [file.exists() for file in temporary + others] == [False, False, True, True]


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints, of steps 50 and 100."""
    for step in (50, 100):
        state = {"global_step": step, "state_dict": {"bank.log_odds": torch.arange(100.0)}}
        AtomicCheckpointIO().save_checkpoint(state, tmp_path / LAST_CHECKPOINT)
    return tmp_path


def test_the_previous_checkpoint_is_kept(folder: Path) -> None:
    assert (checkpoint_step(folder / LAST_CHECKPOINT), checkpoint_step(folder / PREVIOUS_CHECKPOINT)) == (100, 50)
    assert newest_intact(folder) == (folder / LAST_CHECKPOINT, "")
    assert {path.name for path in (folder / LAST_CHECKPOINT.parent).iterdir()} == {
        LAST_CHECKPOINT.name,
        PREVIOUS_CHECKPOINT.name,
    }


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.7, 0.99])
def test_a_run_resumes_from_the_previous_checkpoint_if_the_last_is_truncated(folder: Path, share: float) -> None:
    content = (folder / LAST_CHECKPOINT).read_bytes()
    (folder / LAST_CHECKPOINT).write_bytes(content[: int(share * len(content))])
    chosen, notice = newest_intact(folder)
    assert chosen == folder / PREVIOUS_CHECKPOINT
    assert notice == f"{folder / LAST_CHECKPOINT} is damaged; resuming from {folder / PREVIOUS_CHECKPOINT}, at step 50"


def test_a_changed_value_is_detected(folder: Path) -> None:
    content = (folder / LAST_CHECKPOINT).read_bytes()
    (folder / LAST_CHECKPOINT).write_bytes(
        content.replace(torch.tensor(7.0).numpy().tobytes(), torch.tensor(8.0).numpy().tobytes())
    )
    assert newest_intact(folder)[0] == folder / PREVIOUS_CHECKPOINT
    shutil.copy(folder / LAST_CHECKPOINT, folder / PREVIOUS_CHECKPOINT)
    chosen, notice = newest_intact(folder)
    assert chosen is None
    assert "are damaged; starting from step 0, as there is no other checkpoint" in notice


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "pwned",)

    torch.save({"global_step": 3, "evil": Evil()}, tmp_path / "evil.ckpt")
    assert checkpoint_step(tmp_path / "evil.ckpt") is None
    assert not (tmp_path / "pwned").exists()


def test_a_kill_between_two_renames_leaves_the_previous_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed, replace = [], Path.replace

    def replace_once(self: Path, target: Path) -> Path:
        if renamed:
            raise KeyboardInterrupt
        renamed.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_once)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"global_step": 150}, folder / LAST_CHECKPOINT)
    monkeypatch.undo()
    assert newest_intact(folder) == (folder / PREVIOUS_CHECKPOINT, "")
    assert checkpoint_step(folder / PREVIOUS_CHECKPOINT) == 100


# --- a run's folder ---------------------------------------------------------------------------------------------------


def _claim_and_wait(path: Path, claimed: Any, never: Any) -> None:
    folder = RunFolder(path)
    folder.claim("model: {}")
    claimed.set()
    never.wait()


def test_a_folder_is_locked_until_the_run_that_uses_it_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    claimed, never = context.Event(), context.Event()
    first = context.Process(target=_claim_and_wait, args=(tmp_path / "run", claimed, never), daemon=True)
    first.start()
    assert claimed.wait(60)
    (tmp_path / "run" / ".mask.safetensors.1.part").touch()
    second = RunFolder(tmp_path / "run")
    assert "another run is using" in refused(second.acquire)
    assert "already holds a run" in refused(lambda: second.claim("model: {}"))
    first.kill()
    first.join()
    second.acquire()
    assert not list((tmp_path / "run").glob("*.part"))  # temporary files of the killed run
    second.release()


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    message = refused(lambda: AtomicCheckpointIO().save_checkpoint({"global_step": 150}, folder / LAST_CHECKPOINT))
    assert "No space left on device" in message and "make room" in message
    assert newest_intact(folder) == (folder / LAST_CHECKPOINT, "")


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_once_and_the_next_ends_the_process(signum: signal.Signals) -> None:
    previous = signal.getsignal(signum)
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signum)
        assert signal.getsignal(signum) is signal.SIG_DFL
    assert signal.getsignal(signum) is previous


def test_a_run_stops_after_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    previous = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    requeue = Requeue()
    signal.signal(signal.SIGUSR1, requeue)
    try:
        stop, trainer = StopBetweenSteps(), Trainer.__new__(Trainer)
        stop.on_train_start(trainer, ml.MaskLearner())
        stop.on_train_batch_start(trainer, ml.MaskLearner(), None, 0)
        assert not requeue.is_requested
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(Stopped):
            stop.on_train_batch_start(trainer, ml.MaskLearner(), None, 1)
        assert requeue.is_requested
        other = StopBetweenSteps()
        other.on_train_start(trainer, ml.MaskLearner())
        signal.raise_signal(signal.SIGINT)
        assert "Ctrl-C again quits at once" in capsys.readouterr().out
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


# --- the same bytes ---------------------------------------------------------------------------------------------------


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    tensors, metadata = {"x": torch.arange(5)}, {name: name * 3 for name in "abcdefghij"}
    first = pack(tensors, metadata)
    for _ in range(20):
        assert pack(tensors, dict(reversed(metadata.items()))) == first
    atomic_write(tmp_path / "file", first)
    assert (tmp_path / "file").read_bytes() == first


def test_the_number_of_workers_does_not_change_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    for workers in (0, 2):
        data = ml.MaskData(task="names", limit=30, positions="last", batch_size=4, workers=workers)
        learner = ml.MaskLearner(sizes=[4, 18], steps=6, polish=0)
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        Trainer(max_epochs=1, accelerator="cpu", limit_val_batches=0, enable_model_summary=False, **quiet).fit(
            learner, datamodule=data
        )
        masks.append(learner.discretize())
    assert masks[0].scores.numpy().tobytes() == masks[1].scores.numpy().tobytes()
