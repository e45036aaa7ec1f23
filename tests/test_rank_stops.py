"""Runs of several ranks that stop: all end together, one line names the rank, and any number of ranks goes on."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest
import torch.distributed as dist
from conftest import ROOT
from faults.processes import end, wait_for
from forked import PER_INPUT, SHARED_MASK, on_ranks, run_ranks, same_masks, same_nodes, start_ranks
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from masklearn import ranks
from masklearn.cli import rank_watch, train_cli, train_command
from masklearn.cli.checkpoints import checkpoint_step
from masklearn.training.block_store import BlockStore
from masklearn.training.blocks import BlockFinisher
from masklearn.training.learner import MaskLearner


@pytest.fixture
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_watch, "SILENCE_SECONDS", 5.0)


def go_on(folder: Path, n_ranks: int, *flags: str) -> None:
    run_ranks(n_ranks, ["--config", str(folder / "config.yaml"), "--run.resume", "true", *flags])


def on_rank_1(flag: Path, function: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """A function that does something else on rank 1; the other ranks begin with it only after rank 1 has."""

    def changed(*args: Any, **kwargs: Any) -> Any:
        if ranks.rank() == 1:
            flag.touch()
            return instead(*args, **kwargs)
        while not flag.exists():
            time.sleep(0.01)
        return function(*args, **kwargs)

    return changed


def die(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("short_silence")
def test_a_rank_that_dies_stops_the_run_and_fewer_go_on(one_process: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    processes = start_ranks(3, [*PER_INPUT, "--run.dir", str(folder)])
    assert wait_for(lambda: any(folder.glob("checkpoints/blocks/block-*")), processes[0])
    processes[2].kill()
    first, second, _ = map(end, processes)
    assert first.one_line and "error: rank 2 (" in first.err and "no sign of life" in first.err
    assert f"--config {folder / 'config.yaml'} --run.resume true" in first.err
    assert second.code == 2 and "error" not in second.err
    go_on(folder, 2)
    assert same_masks(one_process, folder)


def test_a_killed_process_of_the_command_is_named_within_a_minute(tmp_path: Path) -> None:
    """The command itself starts the second process."""
    folder = tmp_path / "run"
    flags = [*PER_INPUT, "--model.steps", "100000", "--run.dir", str(folder), "--trainer.accelerator", "cpu"]
    command = [sys.executable, str(ROOT / "train.py"), *flags, "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while not (folder / "checkpoints" / "blocks" / "step-shape.safetensors").exists() and run.poll() is None:
            time.sleep(0.1)
        (other,) = psutil.Process(run.pid).children()
        other.kill()
        out, err = run.communicate(timeout=60)  # or the test fails
    assert run.returncode == 2 and out.count("Searching for masks") <= 1
    assert "error: rank 1 (" in err and "died with exit code -9" in err and "--run.resume true" in err


def test_no_thread_is_left_in_the_store_when_a_rank_never_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python ends such a thread, when the interpreter ends, in a way that aborts the process."""
    monkeypatch.setattr(rank_watch, "LEAVE_SECONDS", 0.2)
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(ranks, "gathered", lambda value: [value, value])

    def threads_and_ended() -> tuple[int, int]:
        port = find_free_network_port()
        store = dist.TCPStore("127.0.0.1", port, 2, True, wait_for_workers=False)  # pyright: ignore[reportPrivateImportUsage]
        before = threading.active_count()
        watch = rank_watch.RankWatch(store, [], lambda: "")
        watch.start()
        watch.close()
        return threading.active_count() - before, store.add(rank_watch.ENDED_KEY, 0)

    assert on_ranks(1, threads_and_ended) == [(0, 1)]  # in a process of its own, as stores do not survive a fork


@pytest.mark.usefixtures("short_silence")
@pytest.mark.parametrize(
    ("owner", "name"), [(BlockFinisher, "_polish"), (train_command, "_evaluate")], ids=["polish", "evaluation"]
)
def test_a_rank_that_is_killed_in_a_phase_is_named_and_others_go_on(
    owner: Any, name: str, one_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as context:
        context.setattr(owner, name, on_rank_1(tmp_path / "flag", getattr(owner, name), die))
        first, killed, third = map(end, start_ranks(3, [*PER_INPUT, "--run.dir", str(folder)]))
    assert first.one_line and "error: rank 1 (" in first.err and "--run.resume true" in first.err
    assert killed.code == -signal.SIGKILL and third.code == 2 and "error" not in third.err
    assert not (folder / "mask.safetensors").exists()
    go_on(folder, 2)
    assert same_masks(one_process, folder)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP, 0], ids=["killed", "stopped", "stuck"])
def test_without_rank_0_all_stop_and_rank_1_says_so(
    signum: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 learns, and rank 2 waits for the others, in a call that no signal interrupts."""
    for name, seconds in {"SILENCE_SECONDS": 3.0, "GRACE_SECONDS": 3.0, "LEAVE_SECONDS": 1.0}.items():
        monkeypatch.setattr(rank_watch, name, seconds)
    folder, flag, fit, look = tmp_path / "run", tmp_path / "flag", train_command._fit, rank_watch.RankWatch._look
    if not signum:  # no thread of rank 0 runs, but its store answers
        monkeypatch.setattr(rank_watch.RankWatch, "_look", lambda watch: look(watch) if ranks.rank() else None)

    def fit_or_wait(cli: Any) -> None:
        if ranks.rank() == 2:
            flag.touch()
            ranks.gathered(None)
        fit(cli)

    monkeypatch.setattr(train_command, "_fit", fit_or_wait)
    first, *others = start_ranks(3, [*PER_INPUT, "--model.steps", "100000", "--run.dir", str(folder)])
    assert wait_for(flag.exists, first)
    first.send_signal(signum)
    second, third = map(end, others)
    first.kill()
    end(first)
    problem = "died" if signum == signal.SIGKILL else "has shown no sign of life for 3 s"
    assert second.one_line and "error: rank 0 (" in second.err and f"{problem}. What was finished is kept" in second.err
    assert f"--config {folder / 'config.yaml'} --run.resume true" in second.err
    assert third.code == 2 and "error" not in third.err


def test_a_rank_whose_device_fails_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA")

    step = on_rank_1(tmp_path / "flag", MaskLearner.training_step, fail)
    monkeypatch.setattr(MaskLearner, "training_step", step)
    folder = tmp_path / "run"
    first, second = map(end, start_ranks(2, [*PER_INPUT, "--run.dir", str(folder)]))
    assert first.one_line and "error: rank 1 (" in first.err and "the device failed (CUDA error: " in first.err
    assert f"Go on with: python train.py --config {folder / 'config.yaml'} --run.resume true" in first.err
    assert second.code == 2 and "error" not in second.err.lower()


def test_a_rank_whose_disk_is_full_is_named_and_no_block_is_lost(
    one_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, put = tmp_path / "run", BlockStore.put

    def full(store: BlockStore, *args: Any) -> None:
        while not any(block in store for block in range(4)):  # another rank has stored one
            time.sleep(0.01)
        with patch("os.fsync", side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))):
            put(store, *args)

    with monkeypatch.context() as context:
        context.setattr(BlockStore, "put", on_rank_1(tmp_path / "flag", put, full))
        first, second = map(end, start_ranks(2, [*PER_INPUT, "--run.dir", str(folder)]))
    assert first.one_line and "error: rank 1 (" in first.err and "No space left on device" in first.err
    assert "make room on this disk" in first.err and "--run.resume true" in first.err
    assert second.code == 2 and "Traceback" not in second.err
    store = BlockStore(folder / "checkpoints" / "blocks")
    n_stored = sum(len(store.get(block)["groups"]) for block in range(4) if block in store)
    go_on(folder, 3)
    learned = json.loads((folder / "metrics.json").read_text())["ranks"]
    assert n_stored > 0 and sum(each["groups"] for each in learned) == 10 - n_stored
    assert same_masks(one_process, folder)


def test_a_shared_mask_is_resumed_by_another_number_of_ranks(
    one_process_shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_cli, "CHECKPOINT_INTERVAL", 5)
    folder = tmp_path / "run"
    stopped = map(end, start_ranks(3, [*SHARED_MASK, "--trainer.max_steps", "7", "--run.dir", str(folder)]))
    assert [each.code for each in stopped] == [2, 2, 2]
    assert checkpoint_step(folder / "checkpoints" / "last.ckpt") == 5
    go_on(folder, 2, "--trainer.max_steps", "-1")
    assert same_nodes(one_process_shared, folder)
