"""What a closed node emits in place of its own output."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

AblationName = Literal["zero", "mean", "mean-positional", "resample", "learned"]
"""`zero`: nothing. `mean`: the node's mean output over the training split's tokens, padding left out.
`mean-positional`: its mean over the tokens at the same position. `resample`: its output at the same position of the
corrupted input. `learned`: a trained constant."""
ABLATIONS: tuple[AblationName, ...] = get_args(AblationName)
KEPT = {"mean", "mean-positional", "learned"}
"""Ablations whose values are found once, and saved with the masks."""
FILED = "ablation.{kind}.{layer}"
"""A layer's values in a file, of shape (positions, heads, width) of its heads and (positions, 1, width) of the MLP."""


@dataclass(frozen=True)
class Ablation:
    """An ablation, and what it lets closed nodes emit, as far as that is known.

    Values may differ from input to input and from position to position; those of the last position hold for all that
    follow. So a constant has one position, and what is alike for all inputs is of one input.
    """

    name: AblationName = "zero"
    heads: tuple[Tensor, ...] = ()
    """For every layer, in the input of the output projection. Each of shape (inputs or 1, positions, heads, width)."""
    mlps: tuple[Tensor, ...] = ()
    """For every layer, in what the MLP adds to the stream. Each of shape (inputs or 1, positions, 1, width)."""

    def __post_init__(self) -> None:
        if self.name not in ABLATIONS:
            raise ValueError(f"there is no ablation {self.name!r}")
        counts = {len(self.heads), len(self.mlps)}
        if len(counts) > 1 or (self.name in KEPT and 0 in counts) or (self.name == "zero" and counts != {0}):
            raise ValueError(
                f"{self.name} ablation comes with values for {len(self.heads)} layers' heads and {len(self.mlps)} MLPs"
            )

    @property
    def known(self) -> bool:
        """Whether there are values; zero ablation needs none, and resampling has them batch by batch."""
        return bool(self.heads)

    def to(self, device: torch.device) -> "Ablation":
        heads, mlps = (tuple(value.to(device) for value in values) for values in (self.heads, self.mlps))
        return Ablation(self.name, heads, mlps)

    def detach(self) -> "Ablation":
        heads, mlps = (tuple(value.detach() for value in values) for values in (self.heads, self.mlps))
        return Ablation(self.name, heads, mlps)

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors that go into a file, by name; none of what belongs to single inputs."""
        kinds = {"heads": self.heads, "mlps": self.mlps} if self.name in KEPT else {}
        return {
            FILED.format(kind=kind, layer=layer): value[0]
            for kind, values in kinds.items()
            for layer, value in enumerate(values)
        }

    @classmethod
    def from_tensors(cls, name: AblationName, tensors: Mapping[str, Tensor]) -> "Ablation":
        """What `filed` put into a file.

        Raises:
            ValueError: If values are missing.
        """
        found = {kind: _of_layers(kind, tensors) for kind in ("heads", "mlps")}
        return cls(name, found["heads"], found["mlps"])


def _of_layers(kind: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    stacked = tensors.get(f"ablation.{kind}")  # as files of format 1 have them, a constant for every node
    if stacked is not None:
        return tuple(value.view(1, 1, -1, value.shape[-1]) for value in stacked)
    names = [name for name in tensors if name.startswith(FILED.format(kind=kind, layer=""))]
    return tuple(tensors[FILED.format(kind=kind, layer=layer)][None] for layer in range(len(names)))


def at_positions(values: Tensor, tokens: int) -> Tensor:
    """Values (inputs, positions, ...) at so many tokens from the start: (inputs, tokens, ...), or 1 for all alike."""
    positions = values.shape[1]
    if positions == 1:
        return values
    if positions >= tokens:
        return values[:, :tokens]
    return values[:, torch.arange(tokens, device=values.device).clamp(max=positions - 1)]
