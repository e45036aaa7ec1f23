"""CUDA graphs: recording a forward, and the backward through it, without harm to a process where that fails."""

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from masklearn.errors import UserError, one_line
from masklearn.masking.row_parts import is_device_failure

Pass = Callable[..., Tensor]
"""Maps input ids (rows, tokens), gates (rows, nodes) and values of closed nodes to hidden states, the last dimension of
which is the width."""


def recorded(run: Pass, sample: tuple[Tensor, ...], pool: tuple[int, int], model: str) -> Pass:
    """Record a pass as CUDA graphs, after a run that lets libraries settle.

    Args:
        run: The pass.
        sample: Its arguments, which the graphs read where they are.
        pool: Memory of the graphs.
        model: Name of the model's class, for the error.

    Raises:
        UserError: If the pass cannot be recorded, and CUDA does not recover from the attempt.
        Exception: If it cannot be recorded.
    """
    stream = torch.cuda.current_stream()
    try:
        with no_garbage_collection():
            return torch.cuda.make_graphed_callables(run, sample, num_warmup_iters=1, pool=pool)  # pyright: ignore
    except Exception as error:
        torch.cuda.set_stream(stream)  # a failed recording leaves its own behind
        try:  # as Lightning does at the end of a fit; in some versions of torch the allocator still waits for the graph
            torch.cuda.empty_cache()
        except RuntimeError as second:
            if is_device_failure(second):
                raise
            problem = f"{model} cannot be recorded as a CUDA graph ({one_line(error)[:200]})"
            raise UserError(f"{problem}. Start a new run with --model.compile false") from error
        raise


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise where the CPU waits for the GPU, which no graph records, and from which some versions do not recover."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect no garbage, as CUDA does not allow older graphs to be freed while another is recorded."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
