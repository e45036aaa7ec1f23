"""Failures of Weights & Biases: none may stop a run, and what was not sent stays on the disk."""

import json
from collections.abc import Callable
from pathlib import Path

import psutil

from faults.bench import Bench, Fault, failed, history
from faults.disks import small_disk
from faults.processes import Process, end, start, wait_for
from faults.server import Server

Moment = Callable[[Process, Path], bool]
"""Whether a run has reached a moment."""


def has_checkpoint(process: Process, folder: Path) -> bool:
    """Whether the run has saved a checkpoint."""
    return (folder / "checkpoints" / "last.ckpt").is_file()


def is_trained(process: Process, folder: Path) -> bool:
    """Whether the run has finished training."""
    return "Evaluating on" in process.output()


def at_start(bench: Bench, times: int) -> Fault:
    """Nothing listens, the server does not answer, or the key has expired."""
    fault = Fault("W&B at the start: no network, a server that hangs, an expired key")
    for i in range(times):
        server = Server(expired=i % 3 == 2)
        if i % 3 == 0:
            server.drop()
        if i % 3 == 1:
            server.freeze()
        _try(bench, fault, server, None, lambda process, server: None)
    return fault


def while_training(bench: Bench, times: int) -> Fault:
    """The server stops or hangs, or W&B's own process is killed, during training."""
    fault = Fault("W&B while training: network lost, a server that hangs, W&B's own process killed")
    _three_ways(bench, fault, times, has_checkpoint)
    return fault


def at_end(bench: Bench, times: int) -> Fault:
    """The same after training."""
    fault = Fault("W&B after training: network lost, a server that hangs, W&B's own process killed")
    _three_ways(bench, fault, times, is_trained)
    return fault


def on_a_full_disk(bench: Bench, times: int) -> Fault:
    """W&B's folder is on a disk that is full, fills up, or is read-only."""
    fault = Fault("W&B's folder on a disk that is full, fills up, or is read-only", "what W&B could not write")
    for i in range(times):
        kib, options = [(4, ""), (60, ""), (64, ",ro")][i % 3]
        with bench.folder() as folder, small_disk(folder / "wandb", kib, options):
            if i % 3 == 0:
                (folder / "wandb" / "full").write_bytes(bytes(4096))
            ended = end(start(bench.start_flags(folder)))
            fault.record(failed(ended) if ended.code else "", *bench.differences(folder, tracked=False))
            lines = [line for line in ended.out.splitlines() if line.startswith("W&B")]
            fault.note(f"{kib} KiB{options}: {' / '.join(lines)}")
    return fault


def _three_ways(bench: Bench, fault: Fault, times: int, moment: Moment) -> None:
    ways = [lambda process, server: server.drop(), lambda process, server: server.freeze(), _kill_core]
    for i in range(times):
        _try(bench, fault, Server(), moment, ways[i % 3], tracked=i % 3 < 2)


def _kill_core(process: Process, server: Server) -> None:
    """Kill the process with which W&B writes and sends."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if "wandb" in child.name() or "wandb-core" in " ".join(child.cmdline()):
            child.kill()


def _try(
    bench: Bench,
    fault: Fault,
    server: Server,
    moment: Moment | None,
    break_it: Callable[[Process, Server], None],
    tracked: bool = True,
) -> None:
    """One run with a server that is broken before the run, or at a moment of it."""
    try:
        with bench.folder() as folder:
            process = start(bench.start_flags(folder), **server.environment)
            is_reached = moment is None or wait_for(lambda: moment(process, folder), process)
            if moment is not None and is_reached:
                break_it(process, server)
            ended = end(process)
            problems = [failed(ended)] if ended.code else bench.differences(folder, tracked=False)
            if not ended.code and tracked and _values(folder) != _values(bench.reference):
                problems.append("another W&B history on the disk")
            lines = [line for line in ended.out.splitlines() if line.startswith("W&B")]
            names = [path.name for path in (folder / "wandb").glob("*run-*-*")]
            is_named = any("wandb sync" in line and any(name in line for name in names) for line in lines)
            fault.record("" if is_reached else "ended too early", "" if is_named else f"printed {lines}", *problems)
            metrics = json.loads((folder / "metrics.json").read_text()) if not ended.code else {}
            undisturbed = json.loads((bench.reference / "metrics.json").read_text())
            fault.note(
                f"{metrics.get('seconds')} s to the results, {ended.seconds:.0f} s in all "
                f"(undisturbed {undisturbed['seconds']} and {bench.seconds:.0f}); {' / '.join(lines)}"
            )
    finally:
        server.drop()


def _values(folder: Path) -> dict[tuple[int, str], object]:
    """The numbers of the history; runs that are sent at once differ in the sizes and digests of files."""
    return {at: value for at, value in history(folder).items() if isinstance(value, int | float)}
