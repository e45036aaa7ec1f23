"""Ablations as data: names, and the values that closed nodes emit. `masking/gating.py` applies them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

AblationName = Literal["zero", "mean", "mean-positional", "resample", "learned"]
"""`zero`: nothing. `mean`: the node's mean output over the tokens of the training split, without padding.
`mean-positional`: its mean over the tokens at the same position. `resample`: its output at the same position of the
corrupted input. `learned`: a trained constant."""
ABLATIONS: tuple[AblationName, ...] = get_args(AblationName)
"""All ablations."""
STORED_ABLATIONS = {"mean", "mean-positional", "learned"}
"""Ablations whose values are computed once and stored in the mask file."""
TENSOR_NAME = "ablation.{kind}.{layer}"
"""Name of a layer's values in a mask file. Shape (positions, heads, width) of heads, (positions, 1, width) of MLPs."""


@dataclass(frozen=True)
class Ablation:
    """An ablation, and the values that closed nodes emit under it.

    Values may depend on the input and on the position; those of the last position serve all later ones. A constant thus
    has one position, and a value shared by all inputs has one input.
    """

    name: AblationName = "zero"
    heads: tuple[Tensor, ...] = ()
    """Values in the input of each layer's output projection, each of shape (inputs or 1, positions, heads, width)."""
    mlps: tuple[Tensor, ...] = ()
    """Values of each MLP's addition to the residual stream, each of shape (inputs or 1, positions, 1, width)."""
    trained_up_to: float = 0.0
    """Values that require a gradient get one from gates up to this one: those that suit an open node are of no use once
    it is closed."""

    def __post_init__(self) -> None:
        if self.name not in ABLATIONS:
            raise ValueError(f"there is no ablation {self.name!r}")
        counts = {len(self.heads), len(self.mlps)}
        if (
            len(counts) > 1
            or (self.name in STORED_ABLATIONS and 0 in counts)
            or (self.name == "zero" and counts != {0})
        ):
            raise ValueError(
                f"{self.name} ablation comes with values for {len(self.heads)} layers' heads and {len(self.mlps)} MLPs"
            )

    @property
    def known(self) -> bool:
        """Whether it has values: zero ablation needs none, and resample ablation gets them batch by batch."""
        return bool(self.heads)

    @property
    def positional(self) -> bool:
        """Whether its values depend on the position in the text."""
        return any(value.shape[1] > 1 for value in (*self.heads, *self.mlps))

    def to(self, device: torch.device) -> "Ablation":
        """The ablation with its values on a device."""
        heads, mlps = (tuple(value.to(device) for value in values) for values in (self.heads, self.mlps))
        return replace(self, heads=heads, mlps=mlps)

    def detach(self) -> "Ablation":
        """The ablation with its values detached from the autograd graph."""
        heads, mlps = (tuple(value.detach() for value in values) for values in (self.heads, self.mlps))
        return replace(self, heads=heads, mlps=mlps)

    def to_tensors(self) -> dict[str, Tensor]:
        """The values as tensors of a mask file, by name; none for ablations whose values belong to single inputs."""
        kinds = {"heads": self.heads, "mlps": self.mlps} if self.name in STORED_ABLATIONS else {}
        return {
            TENSOR_NAME.format(kind=kind, layer=layer): value[0]
            for kind, values in kinds.items()
            for layer, value in enumerate(values)
        }

    @classmethod
    def from_tensors(cls, name: AblationName, tensors: Mapping[str, Tensor]) -> "Ablation":
        """The ablation whose values `to_tensors` put among the tensors of a mask file.

        Raises:
            ValueError: If values are missing.
        """
        found = {kind: _layer_values(kind, tensors) for kind in ("heads", "mlps")}
        return cls(name, found["heads"], found["mlps"])


def _layer_values(kind: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    stacked = tensors.get(f"ablation.{kind}")  # format 1: a constant for every node
    if stacked is not None:
        return tuple(value.view(1, 1, -1, value.shape[-1]) for value in stacked)
    names = [name for name in tensors if name.startswith(TENSOR_NAME.format(kind=kind, layer=""))]
    return tuple(tensors[TENSOR_NAME.format(kind=kind, layer=layer)][None] for layer in range(len(names)))


def at_positions(values: Tensor, tokens: int) -> Tensor:
    """Values (inputs, positions, ...) at the first `tokens` positions: (inputs, tokens, ...), or 1 position for all."""
    positions = values.shape[1]
    if positions == 1:
        return values
    if positions >= tokens:
        return values[:, :tokens]
    return values[:, torch.arange(tokens, device=values.device).clamp(max=positions - 1)]
