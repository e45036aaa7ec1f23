"""Sizes as shares of a text's edges or positions, since texts of different lengths have different numbers of them."""

import math
from collections.abc import Sequence
from typing import Literal

from masklearn.errors import UserError
from masklearn.sizes import LOG_PREFIX

TextUnit = Literal["edges", "positions"]
"""What the graph of a single text is made of: edges, or nodes at single tokens."""
SMALLEST_SHARE, LARGEST_SHARE = 1e-4, 0.8
"""Ends of a log-spaced series."""
DEFAULT_SHARES = "log:12"


def path_edges(n_layers: int, parallel: bool) -> int:
    """Edges of a path from a token to the output: a smaller subgraph of edges cannot depend on the text.

    Args:
        n_layers: Layers of the model.
        parallel: Whether attention and MLP of a layer read the same stream, so that a path has one edge a layer.
    """
    return n_layers if parallel else 2 * n_layers


def resolve_shares(sizes: Sequence[int | float] | str, unit: TextUnit = "edges") -> list[float]:
    """Shares of the edges or positions to keep, ascending.

    Args:
        sizes: Shares between 0 and 1, or `log:12` for 12 log-spaced ones.
        unit: What they are shares of, for messages.

    Raises:
        UserError: If a size is not a share, if two are equal, or if the series is unknown.
    """
    example = 'for example --model.sizes "[0.001, 0.01, 0.1]" or log:12'
    if isinstance(sizes, str):
        number = sizes.removeprefix(LOG_PREFIX)
        if not sizes.startswith(LOG_PREFIX) or not number.isdecimal() or int(number) < 2:
            raise UserError(f"model.sizes is {sizes!r}; with --model.graph {unit} give shares of the {unit}, {example}")
        steps = int(number) - 1
        ratio = LARGEST_SHARE / SMALLEST_SHARE
        return [float(f"{SMALLEST_SHARE * ratio ** (i / steps):.3g}") for i in range(steps + 1)]
    if not isinstance(sizes, Sequence):
        raise UserError(f"model.sizes is {sizes!r}; give a list of shares of the {unit}, {example}")
    outside = [size for size in sizes if not 0 < size <= 1]
    if outside or not sizes:
        found = f"asks for {outside[0]} {unit}" if outside else "is empty"
        raise UserError(
            f"model.sizes {found}, but the number of {unit} depends on the text. Give shares of it, {example}"
        )
    shares = sorted(map(float, sizes))
    if len(set(shares)) < len(shares):
        raise UserError(f"model.sizes names a share twice: {', '.join(map(str, shares))}. Remove one")
    return shares


def share_counts(shares: Sequence[float], n_units: int) -> list[int]:
    """Edges or positions of every share: rounded down, but at least one, so that the smallest shares may coincide."""
    return [max(1, math.floor(share * n_units * (1 + 1e-12))) for share in shares]
