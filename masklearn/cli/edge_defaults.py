"""The defaults of edge runs, where they differ from those of node runs."""

from typing import Any

from masklearn.edges import DEFAULT_SHARES
from masklearn.errors import UserError
from masklearn.training.edge_learner import EDGE_TEMPERATURE


def settle_edge_defaults(config: Any, defaults: Any) -> None:
    """Set the flags of an edge run that are left at the defaults of node runs: an edge graph is that of one text.

    Args:
        config: All settings; changed in place.
        defaults: The defaults of node runs, of the model's flags.

    Raises:
        UserError: If the cost of the run is asked for, which is estimated for nodes only.
    """
    model, data = config.model, config.data
    if model.graph != "edges":
        return
    if config.run.estimate:
        raise UserError("run.estimate is for masks of nodes. Leave it out, or choose --model.graph nodes")
    if model.scope == "dataset":
        model.scope = data.scope = "input"
    if data.positions == "all":
        data.positions = "last"
    if model.temperature == defaults.temperature:
        model.temperature = EDGE_TEMPERATURE
    if model.sizes == defaults.sizes:
        model.sizes = DEFAULT_SHARES
