"""The defaults of edge runs, where they differ from those of node runs."""

from typing import Any

from masklearn.edges import DEFAULT_SHARES


def settle_edge_defaults(config: Any, default_sizes: object) -> None:
    """Set the flags of an edge run that are left at the defaults of node runs: an edge graph is that of one text.

    Args:
        config: All settings; changed in place.
        default_sizes: The default of `model.sizes`.
    """
    model, data = config.model, config.data
    if model.graph != "edges":
        return
    if model.scope == "dataset":
        model.scope = data.scope = "input"
    if data.positions == "all":
        data.positions = "last"
    if model.sizes == default_sizes:
        model.sizes = DEFAULT_SHARES
