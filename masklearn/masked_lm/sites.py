"""Hooks: what is done to the outputs of nodes while a model runs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from masklearn.adapter import Layout, with_first

Change = Callable[[Tensor], Tensor]
"""From a node's output to what it shall be: (rows, tokens, width) to the same."""


def change_input(module: nn.Module, change: Change) -> RemovableHandle:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(args[0]), *args[1:])

    return module.register_forward_pre_hook(hook)


def change_output(module: nn.Module, change: Change) -> RemovableHandle:
    def hook(_: nn.Module, args: Any, output: Any) -> Any:
        return with_first(output, change(output[0] if isinstance(output, tuple | list) else output))

    return module.register_forward_hook(hook)


@contextmanager
def changed(
    layout: Layout,
    heads: Callable[[int], Change],
    mlp: Callable[[int], Change],
    attention: Callable[[int], Change] | None = None,
) -> Iterator[None]:
    """Put a change on the heads and on the MLP of every layer, while the context lasts.

    And one on the attention as a whole, where there is a norm behind it.
    """
    shape: tuple[int, ...] = ()

    def seen(change: Change) -> Change:
        def look(output: Tensor) -> Tensor:
            nonlocal shape
            shape = output.shape[:2]
            return change(output)

        return look

    def whole(change: Change) -> Change:
        """Some families have rows and tokens in one within an MLP, whose attention had them apart."""
        return lambda output: (
            change(output) if output.dim() > 2 else change(output.view(*shape, output.shape[-1])).reshape(output.shape)
        )

    with ExitStack() as stack:
        for layer, site in enumerate(layout.sites):
            if attention and site.attention_norm:
                stack.callback(change_output(site.attention_norm, attention(layer)).remove)
            stack.callback(change_input(site.heads, seen(heads(layer))).remove)
            stack.callback(change_output(site.mlp, whole(mlp(layer))).remove)
        yield
