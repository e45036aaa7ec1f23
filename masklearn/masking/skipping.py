"""Closed MLPs are not run: a forward without gradients computes an MLP only in the rows whose gate for it is open."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from masklearn.models import Layout, override_forward


@contextmanager
def closed_mlps_skipped(layout: Layout, gates: Tensor) -> Iterator[None]:
    """Let the MLP of every layer run only in the rows in which it is not closed, while the context is open.

    In the other rows it puts out zeros, which the gate of 0 then replaces by what a closed node emits. An MLP that
    takes or returns more than one tensor, or has rows and tokens in one dimension, runs whole.

    Args:
        layout: The model's layout.
        gates: Gates of the MLPs, shape (rows, layers); the forward must have as many rows.
    """
    is_open = gates != 0
    n_open = is_open.sum(0).tolist()
    open_first = is_open.int().argsort(dim=0, descending=True, stable=True)
    with ExitStack() as stack:
        for layer, n in enumerate(n_open):
            if n < len(gates):
                # one row at least, since only a forward tells the width and the dtype of the output
                rows = open_first[: max(1, n), layer].sort().values
                stack.enter_context(override_forward(layout.sites[layer].mlp_branch, _only(rows, len(gates))))
        yield


def _only(rows: Tensor, n_rows: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wrap a forward so that it runs in these rows out of `n_rows`."""

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            values = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            if len(values) != 1 or values[0].dim() != 3 or len(values[0]) != n_rows:
                return forward(*args, **kwargs)

            kept = rows.to(values[0].device)

            def select(value: Any) -> Any:
                return value.index_select(0, kept) if isinstance(value, Tensor) else value

            output = forward(*map(select, args), **{name: select(value) for name, value in kwargs.items()})
            if not isinstance(output, Tensor) or output.dim() != 3:
                return forward(*args, **kwargs)
            return output.new_zeros(n_rows, *output.shape[1:]).index_copy_(0, kept.to(output.device), output)

        return run

    return wrap
