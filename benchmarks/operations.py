"""Counts the operations of training steps, and those for which a program waits for the device."""

from collections import Counter
from typing import Any

from lightning import Callback
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = {"view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze",
         "detach", "alias", "split", "unbind", "as_strided", "_reshape_alias", "lift_fresh"}  # fmt: skip
READS_BACK = {"_local_scalar_dense", "nonzero"}
"""Operations for which a program waits until a GPU has done all its work."""


class Operations(TorchDispatchMode):
    """Counts what is computed while the context is open; views cost nothing and do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def n_reads_back(self) -> int:
        """Operations that wait for the device."""
        return sum(self.counts[name] for name in READS_BACK)


class CountedSteps(Callback):
    """Counts the operations of each step."""

    def __init__(self) -> None:
        self.steps: list[Operations] = []

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append(Operations())
        self.steps[-1].__enter__()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps[-1].__exit__(None, None, None)
