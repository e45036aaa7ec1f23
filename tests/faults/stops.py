"""Runs that a signal asks to stop."""

import os
import signal
import time
from pathlib import Path

from faults.bench import UP_TO_50_STEPS, Bench, Fault, failed
from faults.processes import end, let_run, run_to_end, start, wait_for

MAX_QUIT_SECONDS = 3
"""Seconds that quitting at once may take on a busy machine."""


def by_signal(bench: Bench, times: int, signum: signal.Signals) -> Fault:
    """One signal at a random moment."""
    fault = Fault(f"{signum.name} at a random moment")
    for _ in range(times):
        with bench.folder() as folder:
            process = start(bench.start_flags(folder))
            wait_for((folder / "wandb").is_dir, process)
            let_run(process, bench.moment(0.05, 0.5))
            process.send_signal(signum)
            ended = end(process)
            is_clear = ended.one_line and "Go on with: python train.py" in ended.err
            fault.record("" if is_clear or not ended.code else failed(ended), *bench.finish(folder))
    return fault


def by_second_interrupt(bench: Bench, times: int) -> Fault:
    """Ctrl-C twice."""
    fault = Fault("a second Ctrl-C 50 ms after the first: quits at once", UP_TO_50_STEPS)
    slowest = 0.0
    for _ in range(times):
        with bench.folder() as folder:
            process = start(bench.start_flags(folder))
            wait_for((folder / "checkpoints" / "last.ckpt").is_file, process)
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
            start_time = time.monotonic()
            process.send_signal(signal.SIGINT)
            ended = end(process)
            seconds = time.monotonic() - start_time
            slowest = max(slowest, seconds)
            fault.record(
                "" if seconds < MAX_QUIT_SECONDS else f"took {seconds:.0f} s",
                "" if ended.code in (-signal.SIGINT, 2) else failed(ended),
                *bench.finish(folder),
            )
    fault.note(f"the slowest end after a second Ctrl-C took {slowest:.2f} s")
    return fault


def by_requeue(bench: Bench, times: int) -> Fault:
    """SLURM's signal, with a fake scontrol, and then the job's original command again."""
    fault = Fault("SLURM requeue: SIGUSR1, `scontrol requeue`, the same command again")
    tools = bench.work / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "scontrol").write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/calls"\n')
    (tools / "scontrol").chmod(0o755)
    job = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "masks", "SLURM_LOCALID": "0"}
    job |= {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "PATH": f"{tools}:{os.environ['PATH']}"}
    for _ in range(times):
        with bench.folder() as folder:
            (tools / "calls").unlink(missing_ok=True)
            process = start(bench.start_flags(folder), **job)
            wait_for(lambda folder=folder: _is_training(folder), process)
            let_run(process, bench.moment(0, 0.1))
            process.send_signal(signal.SIGUSR1)
            first = end(process)
            calls = (tools / "calls").read_text() if (tools / "calls").exists() else "nothing"
            second = run_to_end(bench.start_flags(folder), **job, SLURM_RESTART_COUNT="1")
            fault.record(
                "" if calls == "requeue 77\n" else f"scontrol was called with {calls}, {failed(first)}",
                "" if not second.code else failed(second),
                *bench.differences(folder),
            )
    return fault


def _is_training(folder: Path) -> bool:
    """Whether training has started: a job cannot be requeued earlier."""
    return (folder / "checkpoints").is_dir()
