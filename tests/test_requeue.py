"""SLURM jobs: a signal requeues them in every phase, and the same command then goes on. The scheduler is a fake one."""

import os
import re
import shlex
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from faults.processes import Ended, Process, end, start, wait_for
from forked import PER_INPUT, same_masks, slurm_task, train
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from masklearn import cli, ranks
from masklearn.cli import evaluate_command, train_command
from masklearn.cli.stopping import Requeue, interruptible
from masklearn.selection.polish import Step, StepTracker, polish
from masklearn.training import blocks
from masklearn.training.learner import MaskLearner


@dataclass
class Cluster:
    """A scheduler whose `scontrol` writes down what it is called with."""

    environment: dict[str, str]
    calls: Path

    def start(self, args: list[str], n_tasks: int = 1, n_nodes: int = 1, **environment: str) -> list[Process]:
        """The tasks of a job, as `srun` starts them."""
        tasks = [slurm_task(rank, n_tasks, n_nodes) for rank in range(n_tasks)]
        return [start(args, train, **task, **self.environment, **environment) for task in tasks]

    @property
    def was_asked_once(self) -> bool:
        """Whether the job was requeued, and nothing else asked for."""
        return self.calls.read_text().split() == ["requeue", self.environment["SLURM_JOB_ID"]]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    tools, calls = tmp_path / "bin", tmp_path / "calls"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    (tools / "scontrol").chmod(0o755)
    job = str(find_free_network_port())  # its last digits are those of the port at which tasks meet
    return Cluster({"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": job}, calls)


def signalled(tasks: list[Process], ready: Path) -> list[Ended]:
    """What becomes of tasks that get the signal when a file is there."""
    assert wait_for(ready.exists, tasks[0])
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
    return [end(task) for task in tasks]


def waiting(flag: Path) -> Any:
    """A function that waits for the signal, and says so once rank 0 does: other ranks may come here first."""

    def wait(*args: Any, **kwargs: Any) -> None:
        if ranks.rank() == 0:
            flag.touch()
        time.sleep(60)

    return wait


def job_script() -> str:
    """The job script of the page on several devices."""
    page = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", page, re.DOTALL)
    return script


def test_the_job_script_of_the_page_is_requeued_and_goes_on(
    cluster: Cluster, one_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one task a node instead of four, and the flags of the other tests for model and data."""
    script, folder = job_script().replace("\\\n", " "), tmp_path / "runs" / "my-run"
    asked = dict(re.findall(r"#SBATCH --(\S+)=(\S+)", script))
    n_nodes, per_node = int(asked["nodes"]), int(asked["ntasks-per-node"])
    assert asked["signal"].startswith("SIGUSR1@") and "#SBATCH --requeue" in script
    (command,) = re.findall(r"^srun .*python train\.py (.*)$", script, re.MULTILINE)
    for flag, count in {"num_nodes": n_nodes, "devices": per_node}.items():
        assert f"--trainer.{flag} {count}" in command
    command = command.replace(f"--trainer.devices {per_node}", "--trainer.devices 1")
    own = shlex.join([*PER_INPUT, "--trainer.accelerator", "cpu"])
    args = shlex.split(command.replace("--model.lm PATH_OR_HUB_ID --data.path prompts.jsonl", own))
    args[args.index("--config") + 1] = str(ROOT / args[args.index("--config") + 1])
    monkeypatch.chdir(tmp_path)
    tasks = cluster.start(args, n_nodes, n_nodes)
    assert wait_for(lambda: any(folder.glob("checkpoints/blocks/block-*")), tasks[0])
    first, second = signalled(tasks, folder / "config.yaml")
    assert first.one_line and second.code == 2 and not second.err and cluster.was_asked_once
    assert not (folder / "mask.safetensors").exists()
    tasks = cluster.start(args, n_nodes, n_nodes, SLURM_RESTART_COUNT="1")
    assert [end(task).code for task in tasks] == [0, 0]
    assert same_masks(one_process, folder)


@pytest.mark.parametrize(
    ("owner", "name", "n_tasks"),
    [(MaskLearner, "discretize", 2), (train_command, "_evaluate", 1)],
    ids=["polish", "evaluation"],
)
def test_a_signal_after_learning_requeues_the_job(
    owner: Any, name: str, n_tasks: int, cluster: Cluster, one_process: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder, flag = tmp_path / "run", tmp_path / "flag"
    args = [*PER_INPUT, "--trainer.accelerator", "cpu", "--trainer.devices", str(n_tasks), "--run.dir", str(folder)]
    with monkeypatch.context() as context:
        context.setattr(owner, name, waiting(flag))
        first, *others = signalled(cluster.start(args, n_tasks), flag)
    assert first.one_line and "error: stopped. What was finished is kept. Go on with: " in first.err
    assert "is requeued. A run that names its --run.dir goes on" in first.out and cluster.was_asked_once
    assert all(other.code == 2 and not other.err for other in others)
    tasks = cluster.start(args, n_tasks, SLURM_RESTART_COUNT="1")
    assert [end(task).code for task in tasks] == [0] * n_tasks
    assert same_masks(one_process, folder)


def test_a_signal_stops_the_polish_of_a_block_after_its_step(
    cluster: Cluster, one_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, began, sent = tmp_path / "run", tmp_path / "began", tmp_path / "sent"

    def noted(steps: Iterable[Step]) -> Iterator[Step]:
        for step in steps:
            with began.open("a") as file:
                file.write(f"{step.kind.name} ")
            while not sent.exists():
                time.sleep(0.01)
            yield step

    def noted_polish(*args: Any, tracker: StepTracker, **kwargs: Any) -> Any:
        return polish(*args, tracker=lambda *state: noted(tracker(*state)), **kwargs)

    args = [*PER_INPUT, "--trainer.accelerator", "cpu", "--run.dir", str(folder)]
    with monkeypatch.context() as context:
        context.setattr(blocks, "polish", noted_polish)
        (task,) = cluster.start(args)
        assert wait_for(began.exists, task)
        task.send_signal(signal.SIGUSR1)
        sent.touch()
        ended = end(task)
    assert ended.one_line and "stopped at step 6. Go on with: " in ended.err and cluster.was_asked_once
    assert began.read_text() == "SWAP " and not any(folder.glob("checkpoints/blocks/block-*"))
    (task,) = cluster.start(args, SLURM_RESTART_COUNT="1")
    assert end(task).code == 0 and same_masks(one_process, folder)


def test_a_signal_requeues_an_evaluation(
    cluster: Cluster, one_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "flag"
    monkeypatch.setattr(evaluate_command, "_evaluate_all", waiting(flag))
    mask = str(one_process / "mask.safetensors")
    task = start(["--mask", mask], cli.evaluate, **slurm_task(), **cluster.environment)
    (ended,) = signalled([task], flag)
    assert ended.code == 2 and cluster.was_asked_once


def test_the_first_task_alone_requeues_and_says_if_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PATH": str(tmp_path), "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(name, value)
    requeue = Requeue()
    assert requeue.finish() == ""
    requeue.is_requested = True
    message = requeue.finish()
    assert message.startswith("Job 7_3 could not be requeued (") and message.endswith("Submit it again")
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert requeue.finish() == ""


def test_the_signal_interrupts_once_and_only_in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    previous = signal.getsignal(signal.SIGUSR1)
    with interruptible():
        assert signal.getsignal(signal.SIGUSR1) is previous
    for name, value in slurm_task().items():
        monkeypatch.setenv(name, value)
    with interruptible() as requeue:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)  # while the run is stopping: only noted
        assert requeue.is_requested
    assert signal.getsignal(signal.SIGUSR1) is previous
