"""What a closed node emits in place of its own output."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

AblationName = Literal["zero", "mean"]
"""`zero`: nothing. `mean`: the node's mean output over the training split's tokens, padding left out."""


@dataclass(frozen=True)
class Ablation:
    """An ablation and the values it needs, if any."""

    name: AblationName = "zero"
    heads: Tensor | None = None
    """What every closed head emits, in the input of the output projection. Shape (layers, heads, head width)."""
    mlps: Tensor | None = None
    """What every closed MLP emits. Shape (layers, width)."""

    def __post_init__(self) -> None:
        if self.name not in get_args(AblationName):
            raise ValueError(f"there is no ablation {self.name!r}")
        if len(self.values()) != (2 if self.name == "mean" else 0):
            raise ValueError(f"{self.name} ablation comes with {len(self.values())} tensors of values")

    def to(self, device: torch.device) -> "Ablation":
        return Ablation(self.name, *(value if value is None else value.to(device) for value in (self.heads, self.mlps)))

    def values(self) -> dict[str, Tensor]:
        """The tensors by name, as they go into a file."""
        pairs = {"ablation.heads": self.heads, "ablation.mlps": self.mlps}
        return {name: value for name, value in pairs.items() if value is not None}


class RunningMean:
    """Mean over tokens, in float64, batch by batch."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def update(self, tokens: Tensor) -> None:
        """Take in the outputs at some tokens, shape (tokens, ...)."""
        total = tokens.double().sum(0)
        self.total = total if self.total is None else self.total + total
        self.count += len(tokens)

    def compute(self) -> Tensor:
        if self.total is None or not self.count:
            raise ValueError("no tokens to average over")
        return (self.total / self.count).float()
