"""How the processes of a run are started and joined: by Lightning's `ddp`, but each trains by itself."""

import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.rendezvous import rendezvous

from masklearn import ranks
from masklearn.errors import UserError

WAIT = timedelta(days=7)
"""How long a process waits for the others: they may be learning. The dead are noticed elsewhere, see `RankWatch`."""


JOIN_TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others to start."""
NOTICE_SECONDS = 15.0
"""How long it waits before it says so."""


class RankStrategy(DDPStrategy):
    """Lightning's strategy `ddp`, in which every process trains as if it were alone.

    Lightning's own wraps the model, averages gradients, and needs the same number of steps everywhere. Ranks of a run
    learn different groups, or parts of a step whose gradients are summed; the learner sees to both, see `ranks`.

    Args:
        is_command: Whether the command line of this process is the run's, so that it can be started again.
    """

    def __init__(self, is_command: bool) -> None:
        super().__init__(timeout=WAIT)
        self.is_command = is_command
        self.started: list[subprocess.Popen[bytes]] = []
        """Processes that this one has started."""
        self.store: ranks.Store
        """Of the process group; set by `join`."""

    def join(self) -> None:
        """Start the other processes of this machine, unless a cluster has, and wait until all have joined.

        Raises:
            ValueError: If the cluster's job has another number of processes.
            UserError: If the other processes are to be started, and this one is no command.
        """
        environment = self.cluster_environment
        assert environment is not None
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // self.num_processes))
        n_processes = self.num_processes * self.num_nodes
        os.environ |= {"MASTER_ADDR": environment.main_address, "MASTER_PORT": str(environment.main_port)}
        if not environment.creates_processes_externally:
            self._start_others(environment.node_rank(), n_processes)
        self.set_world_ranks()
        rank = environment.global_rank()
        notice = threading.Timer(NOTICE_SECONDS, self._say_waiting, [n_processes])
        notice.daemon = True
        notice.start()
        try:
            self.store, *_ = next(rendezvous("env://", rank, n_processes, timeout=JOIN_TIMEOUT))
            backend = self._get_process_group_backend()
            dist.init_process_group(backend, store=self.store, rank=rank, world_size=n_processes, timeout=WAIT)
        finally:
            notice.cancel()
        self.setup_environment()
        if (
            self.root_device.type == "cuda"
        ):  # GPUs that cannot exchange tensors show now, not after all has been learned
            dist.all_reduce(torch.zeros(1, device=self.root_device))

    def _say_waiting(self, n_processes: int) -> None:
        """Say, once for each machine, whom this process waits for."""
        if self.local_rank == 0:
            address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            how = ", each machine with its NODE_RANK and the same MASTER_ADDR and MASTER_PORT"
            print(f"Waiting for {n_processes} processes at {address}{how if self.num_nodes > 1 else ''}", flush=True)

    def _start_others(self, node: int, n_processes: int) -> None:
        """Start this command again for every other device of this machine."""
        if not self.is_command:
            raise UserError(
                "a run on several devices starts its own command again for each of them, which cannot be done from "
                "Python. Run it in a terminal (in a notebook: !python train.py or evaluate.py), or use one device"
            )
        os.environ |= {"NODE_RANK": str(node), "WORLD_SIZE": str(n_processes), "LOCAL_RANK": "0"}
        quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # a lost connection is reported in one line, not by torch
        command = [sys.executable, str(Path(sys.argv[0]).resolve()), *sys.argv[1:]]
        for local_rank in range(1, self.num_processes):
            process = subprocess.Popen(command, env=os.environ | quiet | {"LOCAL_RANK": str(local_rank)})
            self.started.append(process)

    def _configure_launcher(self) -> None:
        """Leave the launcher out: processes are started by `join`, before data and model are loaded."""

    def _get_process_group_backend(self) -> str:
        """Objects are exchanged on the CPU, tensors where they are."""
        return "cpu:gloo,cuda:nccl" if self.root_device.type == "cuda" else "gloo"

    def configure_ddp(self) -> None:
        """Leave the model as it is."""

    @property
    def world_size(self) -> int:
        """What Lightning may synchronise: this process."""
        return 1

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Do not wait."""

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """The object of this process."""
        return obj

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """The tensor of this process."""
        return tensor
