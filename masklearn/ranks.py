"""Ranks: the processes of a run, one for each device, and how they share work and results.

They are those of the default process group of `torch.distributed`. Without one there is a single process, rank 0, and
every function returns what it is given.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Store = dist.Store  # pyright: ignore[reportPrivateImportUsage]  (public, but not in torch's list of names)
"""Where the processes of a group leave each other short messages; rank 0 holds it."""
MEETING_SECONDS = 0.1
"""Time between two looks at who has come to a meeting."""
_meetings = itertools.count()  # numbers of the meetings, which all processes hold in the same order
Item = TypeVar("Item")
Value = TypeVar("Value")


def is_distributed() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


@contextmanager
def alone() -> Iterator[None]:
    """Hide the other processes while the context is open: from this package, Lightning and torchmetrics alike."""
    if not is_distributed():
        yield
        return
    group = dist.GroupMember.WORLD
    try:
        dist.GroupMember.WORLD = None
        yield
    finally:
        dist.GroupMember.WORLD = group


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def share(items: Sequence[Item]) -> Sequence[Item]:
    """The items of this process: each process gets every `count()`-th, so that neighbours go to different ones."""
    return items[rank() :: count()]


def section(items: Sequence[Item]) -> Sequence[Item]:
    """The items of this process: each process gets neighbours, and as many as the others or one more."""
    begin, end = (len(items) * number // count() for number in (rank(), rank() + 1))
    return items[begin:end]


def collected(own: Sequence[Item]) -> list[Item]:
    """All items, in the order from which `share` took those of each process; every process must call this."""
    parts = gathered(list(own))
    return [parts[i % count()][i // count()] for i in range(sum(map(len, parts)))]


def from_first(value: Value) -> Value:
    """The value that rank 0 has; every process must call this."""
    values: list[Any] = [value]
    if is_distributed():
        dist.broadcast_object_list(values)
    return values[0]


def first_alone(action: Callable[[], object]) -> None:
    """Act on rank 0 alone, and wait until it is done; every process must call this."""
    if rank() == 0:
        action()
    meet()


def meet() -> None:
    """Wait until all processes are here; every process must call this.

    Unlike `gathered`, a signal interrupts it, so that a process that waits long stops at once if it is asked to.
    """
    if not is_distributed():
        return
    store, key = _store(), f"meeting/{next(_meetings)}"
    n_here = store.add(key, 1)
    while n_here < count():
        time.sleep(MEETING_SECONDS)
        n_here = store.add(key, 0)


def gathered(value: Value) -> list[Value]:
    """The values of all processes, by rank; every process must call this, and none returns before the last has."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error says that another process no longer answers."""
    return count() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error).lower())


def next_number(counter: str) -> int:
    """The next number of a counter that all processes share, from 0: no two get the same, and none waits."""
    return _store().add(counter, 1) - 1


def _store() -> Store:
    """The store of the process group."""
    return dist.distributed_c10d._get_default_store()  # torch has no public way to it


def part(n: int) -> tuple[Tensor, float]:
    """Which of `n` rows are this process's, and by what their results are multiplied before they are summed.

    Every process gets every `count()`-th row. With fewer rows than processes each gets all of them, at a fraction of
    their weight: the sum is the same, and no process has to do without rows.

    Returns:
        Boolean, shape (n,); and the weight.
    """
    if n < count():
        return torch.ones(n, dtype=torch.bool), 1 / count()
    return torch.arange(n) % count() == rank(), 1.0


def summed(tensor: Tensor) -> Tensor:
    """The sum of the tensors of all processes, without gradient; every process must call this."""
    total = tensor.detach().clone()
    if count() > 1:
        dist.all_reduce(total)
    return total


def smallest(value: int) -> int:
    """The smallest of the numbers that the processes have; every process must call this."""
    number = torch.tensor(value)
    if count() > 1:
        dist.all_reduce(number, dist.ReduceOp.MIN)
    return int(number)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add up the gradients that the processes have for the same parameters; every process must call this."""
    parameters = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    total = summed(torch.cat([gradient.flatten() for gradient in gradients]))
    for parameter, gradient in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.view_as(parameter)
