"""Sizes: how many nodes a subgraph keeps, given as counts, as fractions or as a named series."""

from collections.abc import Sequence
from numbers import Real

from masklearn.errors import UserError

LOG_PREFIX, MIB_SERIES = "log:", "mib"
"""Names of the series: `log:12` for 12 log-spaced sizes, `mib` for the sizes of MIB."""
MIB_INPUT_SERIES = "mib-input"
"""Name of the sizes of MIB where the embedding counts as a node, which every circuit then keeps."""
MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Fractions of the graph that MIB evaluates (Mueller et al. 2025, arXiv 2504.13151)."""


def resolve_sizes(sizes: Sequence[int | float] | str, n_nodes: int) -> list[int]:
    """Sizes as node counts, ascending.

    Args:
        sizes: Counts, or fractions of all nodes below 1 (rounded); or `log:12` for 12 distinct sizes from 1 to
            `n_nodes - 1`, log-spaced as nearly as whole numbers allow; or `mib` for MIB's size formula (each fraction
            of the nodes, rounded down), without the empty and the full graph; or `mib-input`, the same where the
            embedding is one more node, which takes a place in every circuit.
        n_nodes: Nodes of the graph.

    Raises:
        UserError: If there is no size, if one is out of range or not a number, or if two are equal.
    """
    if not isinstance(sizes, str) and not _are_numbers(sizes):
        raise _invalid(sizes)
    if sizes in (MIB_SERIES, MIB_INPUT_SERIES):
        counts = mib_counts(n_nodes, with_input=sizes == MIB_INPUT_SERIES)
        if not (inner := sorted({count for count in counts if 0 < count < n_nodes})):
            raise UserError(f"model.sizes {sizes} gives no size for {n_nodes} nodes. Give numbers")
        return inner
    if isinstance(sizes, str):
        return _log_spaced(sizes, n_nodes)
    if not sizes:
        raise UserError(f'model.sizes is empty. Choose from 1 to {n_nodes}, for example --model.sizes "[8, 0.5]"')
    given_as: dict[int, int | float] = {}
    for size in sizes:
        count = _node_count(size if isinstance(size, int) else float(size), n_nodes)  # of NumPy, too
        if count in given_as:
            raise UserError(
                f"model.sizes names {count} of {n_nodes} nodes twice, as {given_as[count]} and as {size}. Remove one"
            )
        given_as[count] = size
    return sorted(given_as)


def mib_counts(n_nodes: int, with_input: bool = False) -> list[int]:
    """How many nodes MIB keeps at each of its fractions, rounded down.

    Args:
        n_nodes: Heads and MLPs of the model.
        with_input: Whether the embedding counts as a node. It is then not among the counts, which are one less: 0 is
            the embedding alone, and -1 not even that.
    """
    n_input = int(with_input)
    return [int(fraction * (n_nodes + n_input)) - n_input for fraction in MIB_FRACTIONS]


def _are_numbers(sizes: object) -> bool:
    return isinstance(sizes, Sequence) and all(isinstance(size, Real) for size in sizes)


def _invalid(sizes: object) -> UserError:
    return UserError(
        f'model.sizes is {sizes!r}; give numbers, for example "[4]" or "[8, 0.5]", log:12 for 12 log-spaced sizes, '
        "or mib"
    )


def _node_count(size: int | float, n_nodes: int) -> int:
    if isinstance(size, float) and not size.is_integer():
        if not 0 < size < 1:
            raise UserError(f"model.sizes asks for {size} nodes. Give a whole number, or a fraction below 1")
        count = max(1, round(size * n_nodes))
    else:
        count = int(size)
    if not 1 <= count <= n_nodes:
        raise UserError(
            f"model.sizes asks for {count} nodes, but the model has {n_nodes}. "
            f'Choose from 1 to {n_nodes}, for example --model.sizes "[{max(1, n_nodes // 8)}, 0.5]"'
        )
    return count


def _log_spaced(series: str, n_nodes: int) -> list[int]:
    number = series.removeprefix(LOG_PREFIX)
    if not series.startswith(LOG_PREFIX) or not number.isdecimal() or not int(number):
        raise _invalid(series)
    n = int(number)
    if n >= n_nodes:
        raise UserError(
            f"model.sizes asks for {n} log-spaced sizes, but the model has {n_nodes} nodes. "
            f"Choose up to {n_nodes - 1}, for example {LOG_PREFIX}{max(1, min(12, n_nodes - 1))}"
        )
    counts: list[int] = []
    for i in range(n):
        nearest = round((n_nodes - 1) ** (i / max(1, n - 1)))
        above_previous = max([nearest, *(count + 1 for count in counts[-1:])])
        counts.append(min(above_previous, n_nodes - n + i))  # leave a larger count for each of the sizes to come
    return counts
