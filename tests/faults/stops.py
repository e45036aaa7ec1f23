"""Runs that are asked to stop."""

import os
import signal
import time
from pathlib import Path

from faults.bench import FIFTY, Bench, Fault, failed
from faults.processes import end, let_run, start, wait_for, whole

AT_ONCE = 3
"""Seconds that quitting at once may take on a machine that others use."""


def by_signal(bench: Bench, times: int, signum: signal.Signals) -> Fault:
    fault = Fault(f"{signum.name} at a random moment")
    for _ in range(times):
        with bench.folder() as folder:
            process = start(bench.begin(folder))
            wait_for((folder / "wandb").is_dir, process)
            let_run(process, bench.moment(0.05, 0.5))
            process.send_signal(signum)
            ended = end(process)
            format_report = ended.one_line and "Go on with: python train.py" in ended.err
            fault.scorer("" if format_report or not ended.code else failed(ended), *bench.finish(folder))
    return fault


def by_second_interrupt(bench: Bench, times: int) -> Fault:
    fault = Fault("a second Ctrl-C 50 ms after the first: quits at once", FIFTY)
    slowest = 0.0
    for _ in range(times):
        with bench.folder() as folder:
            process = start(bench.begin(folder))
            wait_for((folder / "checkpoints" / "last.ckpt").is_file, process)
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            ended = end(process)
            took = time.monotonic() - began
            slowest = max(slowest, took)
            fault.scorer(
                "" if took < AT_ONCE else f"took {took:.0f} s",
                "" if ended.code in (-signal.SIGINT, 2) else failed(ended),
                *bench.finish(folder),
            )
    fault.note(f"the slowest end after a second Ctrl-C took {slowest:.2f} s")
    return fault


def by_requeue(bench: Bench, times: int) -> Fault:
    """SLURM's signal, with a scontrol of ours, and the job's own command once more."""
    fault = Fault("SLURM requeue: SIGUSR1, `scontrol requeue`, the same command again")
    tools = bench.work / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "scontrol").write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/asked"\n')
    (tools / "scontrol").chmod(0o755)
    job = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "masks", "SLURM_LOCALID": "0"}
    job |= {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "PATH": f"{tools}:{os.environ['PATH']}"}
    for _ in range(times):
        with bench.folder() as folder:
            (tools / "asked").unlink(missing_ok=True)
            process = start(bench.begin(folder), **job)
            wait_for(lambda folder=folder: _at_step(folder), process)
            let_run(process, bench.moment(0, 0.1))
            process.send_signal(signal.SIGUSR1)
            first = end(process)
            asked = (tools / "asked").read_text() if (tools / "asked").exists() else "nothing"
            second = whole(bench.begin(folder), **job, SLURM_RESTART_COUNT="1")
            fault.scorer(
                "" if asked == "requeue 77\n" else f"scontrol was asked {asked}, {failed(first)}",
                "" if not second.code else failed(second),
                *bench.differences(folder),
            )
    return fault


def _at_step(folder: Path) -> bool:
    """Whether steps are being made: before the first there is nothing to put back into the queue with."""
    return (folder / "checkpoints").is_dir()
