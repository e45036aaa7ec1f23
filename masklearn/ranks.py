"""Ranks: the processes of a run, one for each device, and how they share work and results.

They are those of the default process group of `torch.distributed`. Without one there is a single process, rank 0, and
every function returns what it is given.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")
Value = TypeVar("Value")


def is_distributed() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def share(items: Sequence[Item]) -> Sequence[Item]:
    """The items of this process: each process gets every `count()`-th, so that neighbours go to different ones."""
    return items[rank() :: count()]


def from_first(value: Value) -> Value:
    """The value that rank 0 has; every process must call this."""
    values: list[Any] = [value]
    if is_distributed():
        dist.broadcast_object_list(values)
    return values[0]


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


def summed(tensor: Tensor) -> Tensor:
    """The sum of the tensors of all processes; its gradient is that of this process's tensor alone.

    Each process then has its own part of the gradient of a loss that all of them compute. The parts add up to the
    gradient that a single process would have.
    """
    if count() == 1:
        return tensor
    return _Sum.apply(tensor)  # pyright: ignore[reportReturnType]  (torch does not say what `apply` returns)


class _Sum(torch.autograd.Function):
    """See `summed`."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]
