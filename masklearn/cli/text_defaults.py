"""The defaults of runs on single texts, where they differ from those of node runs."""

from typing import Any

from masklearn.errors import UserError
from masklearn.shares import DEFAULT_SHARES
from masklearn.training.text_learner import TEXT_TEMPERATURE

NODE_FLAGS = (
    "family", "budget", "draws", "restarts", "block", "polish", "polish_budget", "gates", "sampled_kl_draws",
)  # fmt: skip
"""Flags of the model that only runs on nodes follow."""


def settle_text_defaults(config: Any, defaults: Any) -> None:
    """Set the flags that are left at the defaults of node runs: a graph of edges or positions is that of one text.

    Args:
        config: All settings; changed in place.
        defaults: The defaults of node runs, of the model's flags.

    Raises:
        UserError: If a flag is given that only node runs follow.
    """
    model, data = config.model, config.data
    if model.graph == "nodes":
        return
    if given := [flag for flag in NODE_FLAGS if model[flag] != defaults[flag]]:
        raise UserError(
            f"model.{given[0]} is for masks of nodes, and graphs of {model.graph} are learned in another way. Leave "
            f"out --model.{given[0]}, or --model.graph"
        )
    if model.scope == "dataset":
        model.scope = data.scope = "input"
    if data.positions == "all":
        data.positions = "last"
    if model.temperature == defaults.temperature:
        model.temperature = TEXT_TEMPERATURE
    if model.sizes == defaults.sizes:
        model.sizes = DEFAULT_SHARES
