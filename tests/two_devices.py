"""Two devices on a machine that has none: tensors in main memory that carry the name of a device.

An operation on tensors of different devices is an error here, as it is on GPUs. Values, gradients included, are exact.
"""

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

FIRST, SECOND = torch.device("cpu", 1), torch.device("cpu", 2)
MAIN_MEMORY = torch.device("cpu")
INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class OnDevice(Tensor):
    """A tensor that says it is on a device; its values are in main memory."""

    in_memory: Tensor

    @staticmethod
    def __new__(cls, values: Tensor, device: torch.device) -> "OnDevice":
        made = Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device=device,
            storage_offset=values.storage_offset(),
        )  # fmt: skip
        made.in_memory = values
        return made

    def tolist(self) -> Any:
        return self.in_memory.tolist()

    def untyped_storage(self) -> Any:
        return self.in_memory.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class TwoDevices(TorchDispatchMode):
    """Lets tensors be made on the devices while it is active."""

    def __enter__(self) -> Any:
        make = torch.tensor  # it makes its result without a dispatch
        placed = lambda *args, device=None, **kwargs: make(*args, **kwargs).to(device or MAIN_MEMORY)  # noqa: E731
        self.patch = patch.object(torch, "tensor", placed)
        self.patch.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.patch.stop()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation in main memory, and name the device of its result."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    if func in INDEXED:  # indices may be in main memory
        tensors = [tensor for tensor in tensors if tensor.device != MAIN_MEMORY]
    devices = {tensor.device for tensor in tensors if tensor.dim() or tensor.device != MAIN_MEMORY}
    if len(devices) > 1 and func not in COPIES:
        raise RuntimeError(f"{func} got tensors on {', '.join(sorted(map(str, devices)))}")
    device = tensors[0].device if func in COPIES else next(iter(devices), MAIN_MEMORY)
    if kwargs.get("device"):
        device, kwargs = torch.device(kwargs["device"]), kwargs | {"device": MAIN_MEMORY}
    bare_args, bare_kwargs = tree_map(lambda v: v.in_memory if isinstance(v, OnDevice) else v, (args, kwargs))
    out = func(*bare_args, **bare_kwargs)
    if device == MAIN_MEMORY:
        return out
    placed = tree_map(lambda v: OnDevice(v, device) if isinstance(v, Tensor) else v, out)
    return return_and_correct_aliasing(func, args, kwargs, placed)
