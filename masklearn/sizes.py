"""Sizes: how many nodes a subgraph keeps, from counts, fractions or a named series to whole numbers."""

from collections.abc import Sequence

from masklearn.errors import UserError

LOG, MIB = "log:", "mib"
MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all nodes at which MIB looks (Mueller et al. 2025, arXiv 2504.13151)."""


def resolve_sizes(sizes: Sequence[int | float] | str, n_nodes: int) -> list[int]:
    """Sizes as node counts, ascending.

    Args:
        sizes: Counts, or fractions below 1 (shares of the nodes, rounded); or `log:12` for 12 sizes from 1 to all nodes
            but one, log-spaced as nearly as whole numbers can be; or `mib` for those at which MIB looks.
        n_nodes: Nodes to choose from.

    Raises:
        UserError: If there are none, if one is out of range, or if two are the same.
    """
    if sizes == MIB:
        return sorted({int(fraction * n_nodes) for fraction in MIB_FRACTIONS} - {0, n_nodes})
    if isinstance(sizes, str):
        return _log_spaced(sizes, n_nodes)
    if not sizes:
        raise UserError(f'model.sizes is empty. Choose from 1 to {n_nodes}, for example --model.sizes "[8, 0.5]"')
    counts: dict[int, int | float] = {}
    for size in sizes:
        if isinstance(size, float) and not size.is_integer():
            if not 0 < size < 1:
                raise UserError(
                    f"model.sizes asks for {size} nodes; a count is a whole number, a fraction lies below 1"
                )
            count = max(1, round(size * n_nodes))
        else:
            count = int(size)
        if not 1 <= count <= n_nodes:
            raise UserError(
                f"model.sizes asks for {count} nodes, but the model has {n_nodes}. "
                f'Choose from 1 to {n_nodes}, for example --model.sizes "[{max(1, n_nodes // 8)}, 0.5]"'
            )
        if count in counts:
            raise UserError(
                f"model.sizes names {count} of {n_nodes} nodes twice, as {counts[count]} and as {size}. Drop one"
            )
        counts[count] = size
    return sorted(counts)


def _log_spaced(asked: str, n_nodes: int) -> list[int]:
    number = asked.removeprefix(LOG)
    if not asked.startswith(LOG) or not number.isdecimal() or not int(number):
        raise UserError(
            f'model.sizes is {asked!r}; give numbers, for example "[8, 0.5]", log:12 for 12 log-spaced sizes, or mib'
        )
    n = int(number)
    if n >= n_nodes:
        raise UserError(
            f"model.sizes asks for {n} log-spaced sizes, but the model has {n_nodes} nodes. "
            f"Choose up to {n_nodes - 1}, for example {LOG}{max(1, min(12, n_nodes - 1))}"
        )
    counts: list[int] = []
    for i in range(n):
        ideal = round((n_nodes - 1) ** (i / max(1, n - 1)))
        counts.append(min(max([ideal, *(c + 1 for c in counts[-1:])]), n_nodes - n + i))  # distinct, and none left over
    return counts
