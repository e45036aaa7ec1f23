"""Ranks as forked processes, which need not import anything again."""

import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from faults.processes import EntryPoint, Process, end
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from masklearn import cli
from masklearn.mask_file import Mask

PER_INPUT = [
    *("--data.task", "names", "--data.positions", "last", "--data.limit", "10"),
    *("--model.scope", "input", "--model.block", "3", "--model.steps", "6", "--model.sizes", "[4, 18]"),
    *("--model.polish", "1", "--model.gates", "hard-concrete", "--trainer.logger", "false"),
    *("--trainer.enable_progress_bar", "false"),
]
"""Flags of a run with four blocks, whose gates are noisy."""
SHARED_MASK = [
    *("--data.task", "names", "--data.positions", "last", "--data.limit", "40", "--data.batch_size", "7"),
    *("--model.steps", "12", "--model.sizes", "[4, 18]", "--model.polish", "1", "--trainer.logger", "false"),
    *("--trainer.enable_progress_bar", "false", "--trainer.val_check_interval", "6"),
]
"""Flags of a run whose texts share a mask, seven in a step, which no number of processes divides."""


def rank_environment(rank: int, n_ranks: int, port: int) -> dict[str, str]:
    """What a launcher sets for one of the processes of a machine."""
    names = {"LOCAL_RANK": rank, "WORLD_SIZE": n_ranks, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in names.items()}


def train(args: list[str]) -> int:
    """Run `train.py`, and print to the files of a forked process, not to those of the test."""
    return _printing_to_own_files(cli.train, args)


def evaluate(args: list[str]) -> int:
    """Run `evaluate.py` likewise."""
    return _printing_to_own_files(cli.evaluate, args)


def _printing_to_own_files(entry_point: EntryPoint, args: list[str]) -> int:
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    try:
        return entry_point(args)
    except SystemExit as error:
        return int(error.code or 0)


def start_ranks(n_ranks: int, args: list[str], entry_point: EntryPoint = train) -> list[Process]:
    """Start `train.py` on several devices, or `evaluate.py`."""
    port = find_free_network_port()
    flags = ["--trainer.strategy", "ddp", "--trainer.devices", str(n_ranks), "--trainer.accelerator", "cpu"]
    args = [*args, *(flags if entry_point is train else ["--devices", str(n_ranks)])]
    return [Process(args, entry_point, rank_environment(rank, n_ranks, port)) for rank in range(n_ranks)]


def slurm_task(rank: int = 0, n_tasks: int = 1, n_nodes: int = 1) -> dict[str, str]:
    """What SLURM sets for one task of a job on this machine; tasks are dealt to so many nodes."""
    per_node = n_tasks // n_nodes
    names = {"PROCID": rank, "LOCALID": rank % per_node, "NODEID": rank // per_node, "NNODES": n_nodes}
    names |= {"NTASKS": n_tasks, "NTASKS_PER_NODE": per_node, "NODELIST": "127.0.0.1", "JOB_NAME": "masks"}
    return {f"SLURM_{name}": str(value) for name, value in names.items()}


def run_ranks(n_ranks: int, args: list[str], entry_point: EntryPoint = train) -> list[str]:
    """Run `train.py` on several devices, or `evaluate.py`, and return what each rank printed."""
    ended = [end(process) for process in start_ranks(n_ranks, args, entry_point)]
    assert [each.code for each in ended] == [0] * n_ranks, "\n".join(each.out + each.err for each in ended)
    return [each.out for each in ended]


def same_masks(folder: Path, other: Path) -> bool:
    """Whether the masks of two runs are the same, and their scores bit for bit."""
    a, b = (Mask.load(each / "mask.safetensors") for each in (folder, other))
    return torch.equal(a.mask, b.mask) and torch.equal(a.scores, b.scores) and a.groups == b.groups


def same_nodes(folder: Path, other: Path) -> bool:
    """Whether the masks of two runs have the same nodes and, but for rounding, the same KL on the test split."""
    a, b = (Mask.load(each / "mask.safetensors") for each in (folder, other))
    kl, other_kl = (torch.tensor([row["kl"] for row in mask.metrics]) for mask in (a, b))
    return torch.equal(a.mask, b.mask) and torch.allclose(kl, other_kl, rtol=1e-5)


def on_ranks(n_ranks: int, function: Callable[[], Any]) -> list[Any]:
    """What a function returns on every rank of a process group."""
    with tempfile.TemporaryDirectory() as folder:
        children = [_fork(rank, n_ranks, function, Path(folder)) for rank in range(n_ranks)]
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * n_ranks
        return [pickle.loads((Path(folder) / f"result-{rank}").read_bytes()) for rank in range(n_ranks)]


def _fork(rank: int, n_ranks: int, function: Callable[[], Any], folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        meet, timeout = f"file://{folder / 'store'}", timedelta(seconds=60)
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=n_ranks, timeout=timeout)
        (folder / f"result-{rank}").write_bytes(pickle.dumps(function()))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
