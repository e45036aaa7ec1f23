"""Replace a module's forward for the length of a context: how this folder observes a model without hooks.

Hooks belong to `masklearn.masking`. Using a different mechanism here makes verification independent of the hooks that
it verifies.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Forward = Callable[..., Any]
"""A module's forward, with whatever arguments that module takes."""


@contextmanager
def override_forward(module: nn.Module, wrap: Callable[[Forward], Forward]) -> Iterator[None]:
    """Replace a module's forward with `wrap(forward)` while the context is open."""
    on_instance, before = "forward" in vars(module), module.forward  # another library may have replaced it already
    module.forward = wrap(before)
    try:
        yield
    finally:
        if on_instance:
            module.forward = before
        else:
            del module.forward


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the first argument of a call, whether positional or by keyword; None if there is none."""
    return args[0] if args else next(iter(kwargs.values()), None)


def first_output(output: Any) -> Any:
    """Return a module's output, or its first element if the module returns a tuple or list."""
    return output[0] if isinstance(output, tuple | list) else output


def with_first_output(output: Any, new: Any) -> Any:
    """Return a module's output with its first element (see `first_output`) replaced by `new`."""
    return type(output)([new, *output[1:]]) if isinstance(output, tuple | list) else new
