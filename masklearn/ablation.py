"""What a closed node emits in place of its own output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from masklearn.errors import UserError

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

    def filed(self) -> dict[str, Tensor]:
        """The tensors that go into a file, by name; none of what belongs to single inputs."""
        kinds = {"heads": self.heads, "mlps": self.mlps} if self.name in KEPT else {}
        return {
            FILED.format(kind=kind, layer=layer): value[0]
            for kind, values in kinds.items()
            for layer, value in enumerate(values)
        }

    @classmethod
    def of_file(cls, name: AblationName, tensors: Mapping[str, Tensor]) -> "Ablation":
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


class Observed:
    """Means of what one place in the model puts out, and how far its nodes stray from them: float64, batch by batch.

    Args:
        parts: Nodes whose outputs stand side by side.
        positional: Whether the mean of every position is wanted as well as that of all tokens.
    """

    def __init__(self, parts: int, positional: bool) -> None:
        self.parts, self.positional = parts, positional
        self.total, self.squares = torch.zeros(1, 1), torch.zeros(1, 1)
        self.count = torch.zeros(1, dtype=torch.double)

    def update(self, outputs: Tensor, real: Tensor) -> None:
        """Take in outputs (inputs, tokens, parts * width) at the tokens that are real, boolean (inputs, tokens)."""
        outputs = outputs.double().masked_fill(~real[..., None], 0)
        total, count = outputs.sum(0), real.double().sum(0)
        if not self.positional:
            total, count = total.sum(0, keepdim=True), count.sum(0, keepdim=True)
        self.total, self.count = _add(self.total, total), _add(self.count, count)
        self.squares = self.squares.to(outputs) + outputs.square().sum((0, 1))

    def mean(self) -> Tensor:
        """Shape (1, positions, parts, width): the mean of every position, and last the one of all tokens.

        A position that no token has stood at has the mean of all tokens.
        """
        if not self.count.sum():
            raise ValueError("no tokens to average over")
        overall = self._overall()
        if not self.positional:
            return self._parted(overall)
        count = self.count[:, None]
        means = torch.where(count > 0, self.total / count.clamp(min=1), overall)
        return self._parted(torch.cat([means, overall]))

    def spread(self) -> Tensor:
        """Standard deviation of every node's output from its mean over all tokens, shape (1, 1, parts, 1)."""
        variance = self.squares / self.count.sum() - self._overall().square()
        return self._parted(variance).mean(-1, keepdim=True).clamp(min=0).sqrt()

    def _overall(self) -> Tensor:
        return self.total.sum(0, keepdim=True) / self.count.sum()

    def _parted(self, values: Tensor) -> Tensor:
        return values.float().unflatten(-1, (self.parts, -1))[None]


def _add(total: Tensor, more: Tensor) -> Tensor:
    """The sum over positions of two tensors, the shorter of which goes on with zeros."""
    longest = max(len(total), len(more))
    total, more = (pad(t, (0, 0) * (t.dim() - 1) + (0, longest - len(t))) for t in (total.to(more), more))
    return total + more


def at_positions(values: Tensor, tokens: int) -> Tensor:
    """Values (inputs, positions, ...) at so many tokens from the start: (inputs, tokens, ...), or 1 for all alike."""
    positions = values.shape[1]
    if positions == 1:
        return values
    if positions >= tokens:
        return values[:, :tokens]
    return values[:, torch.arange(tokens, device=values.device).clamp(max=positions - 1)]


def means_of(name: AblationName, heads: Sequence[Observed], mlps: Sequence[Observed]) -> Ablation:
    """An ablation that emits the means of what was observed in every layer.

    Raises:
        UserError: If a mean is not finite; names the nodes.
    """
    found = Ablation(name, tuple(seen.mean() for seen in heads), tuple(seen.mean() for seen in mlps))
    for layer, both in enumerate(zip(found.heads, found.mlps, strict=True)):
        for kind, values in zip(("the heads", "the MLP"), both, strict=True):
            if not values.isfinite().all():
                raise UserError(
                    f"{name} ablation: the mean of {kind} of layer {layer} is not finite. Choose "
                    "--model.dtype float32, or --model.ablation zero"
                )
    return found
