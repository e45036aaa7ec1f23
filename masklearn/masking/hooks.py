"""Forward hooks that edit activations. No other file of the package registers a hook."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from masklearn.models import Layout, first_output, with_first_output

ActivationEdit = Callable[[Tensor], Tensor]
"""Maps an activation of shape (rows, tokens, width) to the one that replaces it."""


def edit_input(module: nn.Module, edit: ActivationEdit) -> RemovableHandle:
    """Register a hook that edits a module's first input, whether positional or by keyword."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, kwargs | {name: edit(kwargs[name])}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def edit_output(module: nn.Module, edit: ActivationEdit) -> RemovableHandle:
    """Register a hook that edits a module's output, or its first element if the module returns a tuple."""

    def hook(_: nn.Module, args: Any, output: Any) -> Any:
        return with_first_output(output, edit(first_output(output)))

    return module.register_forward_hook(hook)


@contextmanager
def checked_calls(module: nn.Module, check: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call `check` with the arguments of every call of a module, by name, while the context is open."""
    parameters = signature(module.forward)

    def hook(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        check(dict(parameters.bind_partial(*args).arguments) | kwargs)

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def edited_activations(
    layout: Layout,
    heads: Callable[[int], ActivationEdit],
    mlp: Callable[[int], ActivationEdit],
    attention: Callable[[int], ActivationEdit] | None = None,
) -> Iterator[None]:
    """Edit the activations of every layer while the context is open.

    Args:
        layout: The model's layout.
        heads: From a layer's number to the edit of its heads' outputs, concatenated: (rows, tokens, heads * width).
        mlp: From a layer's number to the edit of its MLP's output.
        attention: From a layer's number to the edit of its whole attention's output, in layers with a norm after the
            attention; no edit by default.
    """
    rows_and_tokens: tuple[int, ...] = ()

    def noting_shape(edit: ActivationEdit) -> ActivationEdit:
        def run(output: Tensor) -> Tensor:
            nonlocal rows_and_tokens
            rows_and_tokens = output.shape[:2]
            return edit(output)

        return run

    def in_three_dimensions(edit: ActivationEdit) -> ActivationEdit:
        """In some families the MLP's output has rows and tokens in one dimension; the attention's never has."""

        def run(output: Tensor) -> Tensor:
            if output.dim() > 2:
                return edit(output)
            return edit(output.view(*rows_and_tokens, output.shape[-1])).reshape(output.shape)

        return run

    with ExitStack() as stack:
        for layer, site in enumerate(layout.sites):
            if attention and site.attention_norm:
                stack.callback(edit_output(site.attention_norm, attention(layer)).remove)
            stack.callback(edit_input(site.output_projection, noting_shape(heads(layer))).remove)
            stack.callback(edit_output(site.mlp, in_three_dimensions(mlp(layer))).remove)
        yield
