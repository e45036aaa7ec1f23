"""What can go wrong with Weights & Biases: none of it may stop a run, and what was not sent stays on the disk."""

import json
from collections.abc import Callable
from pathlib import Path

import psutil

from faults.bench import Bench, Fault, failed, history
from faults.disks import small_disk
from faults.processes import Process, end, start, wait_for
from faults.server import Server

Moment = Callable[[Process, Path], bool]
"""Whether a run has come so far."""


def begun(process: Process, folder: Path) -> bool:
    return (folder / "checkpoints" / "last.ckpt").is_file()


def trained(process: Process, folder: Path) -> bool:
    return "Evaluating on" in process.said()


def at_start(bench: Bench, times: int) -> Fault:
    """Nobody listens, somebody listens and says nothing, or says that the key has expired."""
    fault = Fault("W&B at the start: no network, a server that hangs, an expired key")
    for i in range(times):
        server = Server(expired=i % 3 == 2)
        if i % 3 == 0:
            server.drop()
        if i % 3 == 1:
            server.freeze()
        _try(bench, fault, server, None, lambda process, server: None)
    return fault


def on_the_way(bench: Bench, times: int) -> Fault:
    """The server goes, hangs, or W&B's own process is killed, while steps are made."""
    fault = Fault("W&B while training: network lost, a server that hangs, W&B's own process killed")
    _three_ways(bench, fault, times, begun)
    return fault


def at_end(bench: Bench, times: int) -> Fault:
    """The same, when results are being written."""
    fault = Fault("W&B after training: network lost, a server that hangs, W&B's own process killed")
    _three_ways(bench, fault, times, trained)
    return fault


def without_room(bench: Bench, times: int) -> Fault:
    """Its folder is a disk that is full, or fills up, or takes nothing."""
    fault = Fault("W&B's folder on a disk that is full, fills up, or is read-only", "what W&B could not write")
    for i in range(times):
        kib, options = [(4, ""), (60, ""), (64, ",ro")][i % 3]
        with bench.folder() as folder, small_disk(folder / "wandb", kib, options):
            if i % 3 == 0:
                (folder / "wandb" / "full").write_bytes(bytes(4096))
            ended = end(start(bench.begin(folder)))
            fault.scorer(failed(ended) if ended.code else "", *bench.differences(folder, tracked=False))
            format_report = [line for line in ended.out.splitlines() if line.startswith("W&B")]
            fault.note(f"{kib} KiB{options}: {' / '.join(format_report)}")
    return fault


def _three_ways(bench: Bench, fault: Fault, times: int, moment: Moment) -> None:
    harm = [lambda process, server: server.drop(), lambda process, server: server.freeze(), _kill_core]
    for i in range(times):
        _try(bench, fault, Server(), moment, harm[i % 3], tracked=i % 3 < 2)


def _kill_core(process: Process, server: Server) -> None:
    """Kill the process by which W&B writes and sends."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if "wandb" in child.name() or "wandb-core" in " ".join(child.cmdline()):
            child.kill()


def _try(
    bench: Bench,
    fault: Fault,
    server: Server,
    moment: Moment | None,
    harm: Callable[[Process, Server], None],
    tracked: bool = True,
) -> None:
    """One run with a server to which something happens, at once or at a moment."""
    try:
        with bench.folder() as folder:
            process = start(bench.begin(folder), **server.environment)
            reached = moment is None or wait_for(lambda: moment(process, folder), process)
            if moment is not None and reached:
                harm(process, server)
            ended = end(process)
            trouble = [failed(ended)] if ended.code else bench.differences(folder, tracked=False)
            if not ended.code and tracked and _values(folder) != _values(bench.reference):
                trouble.append("another W&B history on the disk")
            format_report = [line for line in ended.out.splitlines() if line.startswith("W&B")]
            places = list((folder / "wandb").glob("*run-*-*"))
            named = any("wandb sync" in line and any(place.name in line for place in places) for line in format_report)
            fault.scorer("" if reached else "ended too early", "" if named else f"told {format_report}", *trouble)
            measured = json.loads((folder / "metrics.json").read_text()) if not ended.code else {}
            alone = json.loads((bench.reference / "metrics.json").read_text())
            fault.note(
                f"{measured.get('seconds')} s to the results, {ended.seconds:.0f} s in all "
                f"(left alone {alone['seconds']} and {bench.seconds:.0f}); {' / '.join(format_report)}"
            )
    finally:
        server.drop()


def _values(folder: Path) -> dict[tuple[int, str], object]:
    """The history but for what belongs to a run that is sent at once, such as sizes and digests of its files."""
    return {at: value for at, value in history(folder).items() if isinstance(value, int | float)}
