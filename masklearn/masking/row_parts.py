"""Rows of a forward in parts: when memory runs out, a forward goes on with half as many rows at a time."""

import gc
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from masklearn.models import Prefix

Result = TypeVar("Result")
OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")
"""How the error of an allocation reads that is not a `torch.OutOfMemoryError`: torch has none for a CPU's memory."""
DEVICE_FAILURE = ("cuda error", "cudnn_status", "cublas_status", "hip error")
"""How the error of a device reads that fails or disappears, if it is not a `torch.AcceleratorError`."""
CPU_FORWARD_TOKENS = 2**11
"""Tokens of a forward without gradients on a CPU: larger ones leave its cache and take longer for each token."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device has too little memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in OUT_OF_MEMORY)


def is_device_failure(error: BaseException) -> bool:
    """Whether an error says that a device failed or disappeared; it has to be reset, and with it the process."""
    failed = isinstance(error, torch.AcceleratorError) or any(text in str(error).lower() for text in DEVICE_FAILURE)
    return failed and not is_out_of_memory(error)


class Rows(NamedTuple):
    """The rows of a forward: every input under each of its K gate vectors. `MaskedLM.forward` explains the fields."""

    input_ids: Tensor
    scored: Tensor
    gates: Tensor | None = None
    """None for the full model."""
    corrupted: Tensor | None = None
    prefix: Prefix | None = None
    first_layer: int = 0

    @property
    def repeats(self) -> int:
        """How many times every input is run: K, or once if there are no gates."""
        return 1 if self.gates is None else len(self.gates)

    @property
    def n_tokens(self) -> int:
        """Tokens of all rows."""
        return self.repeats * self.input_ids.numel()

    def split(self, max_tokens: float) -> "list[list[Rows]]":
        """Parts of at most so many tokens, or of one row.

        Returns:
            Parts in the order of the K gate vectors, each a list of parts in the order of the inputs.
        """
        n_inputs, length = self.input_ids.shape
        if self.n_tokens <= max_tokens:
            return [[self]]
        n_rows = max(1, int(max_tokens // length))
        starts = range(0, n_inputs, n_rows)
        gates = [None] if self.gates is None else self.gates.split(max(1, n_rows // n_inputs))
        return [[self._replace(gates=part)._inputs(start, start + n_rows) for start in starts] for part in gates]

    def _inputs(self, start: int, stop: int) -> "Rows":
        """The rows of some of the inputs."""
        n_inputs, length = self.input_ids.shape
        if stop - start >= n_inputs:
            return self
        scored, kept = self.scored, slice(start, stop)
        if scored.dtype == torch.bool:
            scored = scored[kept]
        else:
            scored = scored[(scored >= start * length) & (scored < stop * length)] - start * length
        return Rows(
            self.input_ids[kept],
            scored,
            None if self.gates is None else self.gates[:, kept],
            None if self.corrupted is None else self.corrupted[kept],
            self.prefix and self.prefix.select(kept),
            self.first_layer,
        )


class HoldsMemory(Protocol):
    """What keeps memory that others may need."""

    def forget(self) -> None:
        """Free it."""
        ...


class RowLimit:
    """Most tokens that a forward runs at once; without limit until memory runs out, and halved whenever it does."""

    def __init__(self) -> None:
        self.holders = WeakSet[HoldsMemory]()
        """They free their memory whenever the limit is halved."""
        self.max_tokens = {False: math.inf, True: math.inf}
        """Without and with gradients."""
        self._last_tokens = {False: 0, True: 0}
        """Tokens of the last forward without and with gradients; 0 if it cannot be split."""

    def run(self, forward: Callable[[Rows], Tensor], rows: Rows) -> Tensor:
        """Run some rows, in parts if they exceed the limit; parts that need a gradient are run again for it.

        Args:
            forward: Maps rows to their last hidden states (K, positions, width).
            rows: The rows.

        Raises:
            RuntimeError: If a single row does not fit into memory.
        """
        grad = torch.is_grad_enabled()
        while True:
            parts = rows.split(self._max_tokens(rows, grad))
            first = parts[0][0]
            self._last_tokens[grad] = first.n_tokens if len(first.input_ids) * first.repeats > 1 else 0
            try:
                if first is rows:
                    return forward(rows)
                run = _checkpointed(forward) if grad else forward
                return torch.cat([torch.cat([run(part) for part in inputs], 1) for inputs in parts])
            except (RuntimeError, MemoryError) as error:
                self.lower(error, grad)
            self._free()

    def ran_whole(self, n_rows: int, n_tokens: int, grad: bool) -> None:
        """Note that something else has run a forward of so many rows, and tokens of all rows, at once."""
        self._last_tokens[grad] = n_tokens if n_rows > 1 else 0

    def _max_tokens(self, rows: Rows, grad: bool) -> float:
        on_cpu = rows.input_ids.device.type == "cpu" and not grad
        return min(self.max_tokens[grad], CPU_FORWARD_TOKENS if on_cpu else math.inf)

    def retry(self, work: Callable[[], Result]) -> Result:
        """Do work with forwards and backwards until it fits into memory; it must be possible to begin again.

        Raises:
            RuntimeError: If it does not fit one row at a time.
        """
        while True:
            self._last_tokens[True] = 0
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                self.lower(error, True)
            self._free()

    def _free(self) -> None:
        """Free what others hold, after the error is gone, whose traceback holds what has failed."""
        gc.collect()
        for holder in self.holders:
            holder.forget()

    def lower(self, error: Exception, grad: bool) -> None:
        """Halve the limit after an error, and say so in one line.

        Raises:
            Exception: The error, if memory did not run out or the last forward had a single row.
        """
        if not self._last_tokens[grad] or not is_out_of_memory(error):
            raise error
        self.max_tokens[grad], self._last_tokens[grad] = self._last_tokens[grad] // 2, 0
        doing = "learning" if grad else "scoring and evaluation"
        print(f"Memory ran out: {doing} goes on with {self.max_tokens[grad]} tokens in a forward", flush=True)


def _checkpointed(forward: Callable[[Rows], Tensor]) -> Callable[[Rows], Tensor]:
    """The forward without its activations, which the backward computes again, part by part."""

    def run(rows: Rows) -> Tensor:
        # a forward that stops early would leave offloaded weights behind that its last module has brought in
        with set_checkpoint_early_stop(False):
            return checkpoint(forward, rows, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore

    return run
