"""What a run does when something happens to it: the parts; `tests/faults` does it to whole runs."""

import multiprocessing
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import refused
from lightning import Trainer

import masklearn as ml
from masklearn.cli import _printable
from masklearn.cli.checkpoints import BEFORE, LAST, WholeCheckpoints, newest_sound, step_of
from masklearn.cli.parsing import require_complete, require_harmless_configs
from masklearn.cli.run_folder import CONFIG, RunFolder
from masklearn.cli.stopping import StopBetweenSteps, Stopped, interruptible
from masklearn.cli.train_command import TrainCLI
from masklearn.files import atomic_write, pack

# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_run_is_gone_on_with_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for folder in ("mine", "run"):
        Path(folder).mkdir()
        Path(folder, CONFIG).write_text("model: {steps: 60}\n")
    command = ["--config", f"mine/{CONFIG}", "--run.dir", "run"]
    assert TrainCLI([*command, "--run.resume", "true"]).folder.path == Path("run")
    assert "run.resume needs the run to go on with" in refused(lambda: TrainCLI([*command[:2], "--run.resume", "true"]))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert TrainCLI(command).resume and TrainCLI(command).folder.path == Path("run")
    (tmp_path / "mine" / LAST.parent).mkdir()  # it is that of a run, which has moved
    assert TrainCLI([*command, "--run.resume", "true"]).folder.path == Path("mine")


def test_what_a_killed_run_left_aside_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    left = [tmp_path / ".config.yaml.12.part", tmp_path / LAST.parent / ".last.ckpt.12.part"]
    others = [tmp_path / ".film.mkv.part", tmp_path / "another run" / ".config.yaml.12.part"]
    for file in left + others:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    folder = RunFolder(tmp_path)
    folder.hold()
    folder.release()
    assert [file.exists() for file in left + others] == [False, False, True, True]


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints, of steps 50 and 100."""
    for step in (50, 100):
        state = {"global_step": step, "state_dict": {"bank.log_odds": torch.arange(100.0)}}
        WholeCheckpoints().save_checkpoint(state, tmp_path / LAST)
    return tmp_path


def test_the_checkpoint_before_is_kept(folder: Path) -> None:
    assert (step_of(folder / LAST), step_of(folder / BEFORE)) == (100, 50)
    assert newest_sound(folder) == (folder / LAST, "")
    assert {path.name for path in (folder / LAST.parent).iterdir()} == {LAST.name, BEFORE.name}


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.7, 0.99])
def test_a_checkpoint_cut_short_gives_way_to_the_one_before(folder: Path, share: float) -> None:
    content = (folder / LAST).read_bytes()
    (folder / LAST).write_bytes(content[: int(share * len(content))])
    chosen, format_report = newest_sound(folder)
    assert chosen == folder / BEFORE
    assert format_report == f"{folder / LAST} is damaged; going on from {folder / BEFORE}, at step 50"


def test_a_changed_value_is_seen(folder: Path) -> None:
    content = (folder / LAST).read_bytes()
    (folder / LAST).write_bytes(
        content.replace(torch.tensor(7.0).numpy().tobytes(), torch.tensor(8.0).numpy().tobytes())
    )
    assert newest_sound(folder)[0] == folder / BEFORE
    shutil.copy(folder / LAST, folder / BEFORE)
    chosen, format_report = newest_sound(folder)
    assert chosen is None
    assert "the beginning, as there is no other" in format_report


def test_a_checkpoint_runs_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "pwned",)

    torch.save({"global_step": 3, "evil": Evil()}, tmp_path / "evil.ckpt")
    assert step_of(tmp_path / "evil.ckpt") is None
    assert not (tmp_path / "pwned").exists()


def test_a_kill_between_two_renames_leaves_the_one_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved, replace = [], Path.replace

    def once(self: Path, target: Path) -> Path:
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        WholeCheckpoints().save_checkpoint({"global_step": 150}, folder / LAST)
    monkeypatch.undo()
    assert newest_sound(folder) == (folder / BEFORE, "")
    assert step_of(folder / BEFORE) == 100


# --- a run's folder ---------------------------------------------------------------------------------------------------


def _hold(path: Path, ready: Any, enough: Any) -> None:
    folder = RunFolder(path)
    folder.claim("model: {}")
    ready.set()
    enough.wait()


def test_a_second_run_is_refused_while_the_first_is_alive_and_let_in_when_it_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, enough = context.Event(), context.Event()
    first = context.Process(target=_hold, args=(tmp_path / "run", ready, enough), daemon=True)
    first.start()
    assert ready.wait(60)
    (tmp_path / "run" / ".mask.safetensors.1.part").touch()
    second = RunFolder(tmp_path / "run")
    assert "a run is at work in" in refused(second.hold)
    assert "already holds a run" in refused(lambda: second.claim("model: {}"))
    first.kill()
    first.join()
    second.hold()
    assert not list((tmp_path / "run").glob("*.part"))  # left by the one that was killed
    second.release()


def test_a_full_disk_is_one_line_and_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    said = refused(lambda: WholeCheckpoints().save_checkpoint({"global_step": 150}, folder / LAST))
    assert "No space left on device" in said and "make room" in said
    assert newest_sound(folder) == (folder / LAST, "")


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_once_and_the_next_ends_the_process(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signum)
        assert signal.getsignal(signum) is signal.SIG_DFL
    assert signal.getsignal(signum) is before


def test_a_step_is_finished_first_and_a_requeue_is_left_to_the_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    asked: list[int] = []
    signal.signal(signal.SIGUSR1, lambda signum, _: asked.append(signum))
    try:
        stop, nothing = StopBetweenSteps(), Trainer.__new__(Trainer)
        stop.on_train_start(nothing, ml.MaskLearner())
        stop.on_train_batch_start(nothing, ml.MaskLearner(), None, 0)
        signal.raise_signal(signal.SIGUSR1)
        assert not asked
        with pytest.raises(Stopped) as caught:
            stop.on_train_batch_start(nothing, ml.MaskLearner(), None, 1)
        stop.on_exception(nothing, ml.MaskLearner(), caught.value)
        assert asked == [signal.SIGUSR1]
        other = StopBetweenSteps()
        other.on_train_start(nothing, ml.MaskLearner())
        signal.raise_signal(signal.SIGINT)
        assert "Ctrl-C again quits at once" in capsys.readouterr().out
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


# --- the same bytes ---------------------------------------------------------------------------------------------------


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    tensors, metadata = {"x": torch.arange(5)}, {name: name * 3 for name in "abcdefghij"}
    first = pack(tensors, metadata)
    for _ in range(20):
        assert pack(tensors, dict(reversed(metadata.items()))) == first
    atomic_write(tmp_path / "file", first)
    assert (tmp_path / "file").read_bytes() == first


def test_workers_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for workers in (0, 2):
        data = ml.MaskData(task="names", limit=30, positions="last", batch_size=4, workers=workers)
        learner = ml.MaskLearner(sizes=[4, 18], steps=6, polish=0)
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        Trainer(max_epochs=1, accelerator="cpu", limit_val_batches=0, enable_model_summary=False, **quiet).fit(
            learner, datamodule=data
        )
        found.append(learner.discretize())
    assert found[0].scores.numpy().tobytes() == found[1].scores.numpy().tobytes()


# --- configs ----------------------------------------------------------------------------------------------------------

BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
HARMFUL = {
    "a bomb": (BOMB + "model: {sizes: *a11}\n", "unfolds to more than 10000 values"),
    "an alias of itself": ("model: &a {sizes: [*a]}\n", "unfolds to more than"),
    "a class of somebody's": ("trainer: {logger: {class_path: os.system}}\n", "line 1: os.system names code"),
    "a class in a list": ("trainer:\n  callbacks:\n  - class_path: subprocess.Popen\n", "line 3: subprocess.Popen"),
    "a class by its name alone": ("trainer: {callbacks: evil.Callback}\n", "evil.Callback names code"),
    "a function as an argument": (
        "trainer:\n  callbacks:\n    class_path: lightning.pytorch.callbacks.LambdaCallback\n"
        "    init_args: {on_fit_start: os.system}\n",
        "line 4: os.system",
    ),
    "a key twice": ("model: {steps: 3}\nmodel: {steps: 4}\n", "line 2: model stands in line 1 already"),
    "a key twice further in": ("model:\n  steps: 3\n  lr: 1\n  steps: 4\n", "line 4: steps stands in line 2 already"),
    "a key twice in a list": ("trainer:\n  callbacks:\n  - {a: 1, a: 2}\n", "line 3: a stands in line 3 already"),
    "a key that is a list": ("model: {? [a, b] : 3}\n", "line 1: a key that is no word"),
    "no settings": ("- a\n", "holds no settings"),
    "nothing": ("", "holds no settings"),
    "a number": ("3\n", "holds no settings"),
    "a tab": ("model:\n\tsteps: 3\n", "line 2"),
    "no end": ("model:\n  steps: [3\n", "line 2, column 10: this is no YAML"),
    "an unknown alias": ("model: *nobody\n", "line 1, column 8"),
    "a NUL": ("model: \x00\n", "this is no YAML"),
    "too many brackets": ("[" * 5000, "this is no YAML"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_config_is_refused_before_it_is_used(name: str, tmp_path: Path) -> None:
    text, message = HARMFUL[name]
    path = tmp_path / "evil.yaml"
    path.write_text(text)
    for args in (["--config", str(path)], ["--model.steps", "3", f"--config={path}"]):
        said = refused(lambda args=args: require_harmless_configs(args))
        assert "evil.yaml" in said
        assert message in said


def test_bytes_that_are_no_text_and_files_that_are_no_config(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("model: {lm: é}".encode("latin-1"))
    assert "this is no YAML" in refused(lambda: require_harmless_configs(["--config", str(tmp_path / "latin.yaml")]))
    (tmp_path / "large.yaml").write_bytes(b"a" * 2**21)
    assert "more than a config holds" in refused(
        lambda: require_harmless_configs(["--config", str(tmp_path / "large.yaml")])
    )


def test_the_configs_of_the_project_and_of_runs_are_harmless(tmp_path: Path) -> None:
    written = {
        "trainer": {"callbacks": [{"class_path": "lightning.pytorch.callbacks.EarlyStopping"}], "precision": 1.5}
    }
    (tmp_path / CONFIG).write_text(yaml.safe_dump(written))
    ours = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))
    assert ours
    for path in (tmp_path / CONFIG, *ours):
        before = path.read_bytes()
        require_harmless_configs(["--config", str(path)])  # raises where it is not
        assert path.read_bytes() == before


@pytest.mark.parametrize("given", [{"a": None}, {"a": 3}, {"a": {"b": None}}, {}, {"a": [1]}])
def test_null_is_no_value(given: dict[str, Any]) -> None:
    assert refused(lambda: require_complete(given, {"a": {"b": 1}})).startswith("a")
    require_complete({"a": {"b": 2}}, {"a": {"b": 1}})


def test_what_is_printed_is_one_line_of_a_length_to_read() -> None:
    assert _printable("a\nb\x1b[2Jc\u202ed") == "a b [2Jc d"
    assert len(_printable("x" * 10**6)) < 1100
