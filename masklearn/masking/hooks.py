"""Hooks: what is done to the outputs of nodes while a model runs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from masklearn.models import Layout, with_first

ActivationEdit = Callable[[Tensor], Tensor]
"""From a node's output to what it shall be: (rows, tokens, width) to the same."""


def change_input(module: nn.Module, change: ActivationEdit) -> RemovableHandle:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(args[0]), *args[1:])

    return module.register_forward_pre_hook(hook)


def change_output(module: nn.Module, change: ActivationEdit) -> RemovableHandle:
    def hook(_: nn.Module, args: Any, output: Any) -> Any:
        return with_first(output, change(output[0] if isinstance(output, tuple | list) else output))

    return module.register_forward_hook(hook)


@contextmanager
def edited_activations(
    layout: Layout,
    heads: Callable[[int], ActivationEdit],
    mlp: Callable[[int], ActivationEdit],
    attention: Callable[[int], ActivationEdit] | None = None,
) -> Iterator[None]:
    """Put a change on the heads and on the MLP of every layer, while the context lasts.

    And one on the attention as a whole, where there is a norm behind it.
    """
    shape: tuple[int, ...] = ()

    def seen(change: ActivationEdit) -> ActivationEdit:
        def look(output: Tensor) -> Tensor:
            nonlocal shape
            shape = output.shape[:2]
            return change(output)

        return look

    def whole(change: ActivationEdit) -> ActivationEdit:
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
