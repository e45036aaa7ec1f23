"""The defaults of runs on single texts, where they differ from those of node runs."""

from typing import Any

from masklearn.shares import DEFAULT_SHARES
from masklearn.training.text_learner import TEXT_TEMPERATURE


def settle_text_defaults(config: Any, defaults: Any) -> None:
    """Set the flags that are left at the defaults of node runs: a graph of edges or positions is that of one text.

    Args:
        config: All settings; changed in place.
        defaults: The defaults of node runs, of the model's flags.
    """
    model, data = config.model, config.data
    if model.graph == "nodes":
        return
    if model.scope == "dataset":
        model.scope = data.scope = "input"
    if data.positions == "all":
        data.positions = "last"
    if model.temperature == defaults.temperature:
        model.temperature = TEXT_TEMPERATURE
    if model.sizes == defaults.sizes:
        model.sizes = DEFAULT_SHARES
