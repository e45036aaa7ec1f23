"""Another forward in a module's place for a while: how the adapter looks into a model, without hooks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Forward = Callable[..., Any]


@contextmanager
def replaced(module: nn.Module, make: Callable[[Forward], Forward]) -> Iterator[None]:
    """Run `make(forward)` in place of a module's own forward, as long as the context lasts."""
    own, before = "forward" in vars(module), module.forward  # others may have replaced it already, on the instance
    module.forward = make(before)
    try:
        yield
    finally:
        if own:
            module.forward = before
        else:
            del module.forward


def first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a module is given to work on: its first argument, by place or by name."""
    return args[0] if args else next(iter(kwargs.values()), None)


def with_first(value: Any, new: Any) -> Any:
    """An output whose first part is another."""
    return type(value)([new, *value[1:]]) if isinstance(value, tuple | list) else new
