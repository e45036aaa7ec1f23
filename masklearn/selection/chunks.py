"""Which candidate masks run together, and from which layer on: a cost model of forwards that share a prefix.

Layers before the first one in which a candidate differs from the others need not run. But every forward has a cost of
its own, however few its rows: operations are launched and weights are read. So candidates that start in neighbouring
layers run together if the layers they repeat cost less than another forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from masklearn.masking import MaskedLM

LAUNCH_FLOPS = {"cpu": 2e7, "cuda": 1e11}
"""Arithmetic that a device does in the time that it takes to launch the operations of one layer."""
READ_TOKENS = {"cpu": 24, "cuda": 128}
"""Tokens for which a layer computes as long as it takes to read its weights."""
SETUP_SHARE = 0.5
"""Time that every layer of a forward takes even if it is skipped, as a share of that for launching its operations."""
MAX_COST_RATIO = 0.9
"""Prefixes are shared if the estimated cost is below this multiple of that of whole forwards."""


@dataclass(frozen=True)
class ForwardCost:
    """The cost of forwards, in passes of one token through one layer."""

    n_layers: int
    row_tokens: int
    """Tokens of one mask: those of all texts of a batch."""
    setup_tokens: float
    """Fixed cost of a layer, whether it is run or skipped."""
    fixed_tokens: float
    """Fixed cost of a layer that is run, whatever the number of its rows."""

    @classmethod
    def of(cls, masked_lm: MaskedLM, row_tokens: int) -> "ForwardCost":
        """The cost on the device of a model."""
        layers, device = masked_lm.layout.sites, "cpu" if masked_lm.device.type == "cpu" else "cuda"
        weights = sum(parameter.numel() for parameter in layers[0].layer.parameters())
        launch = LAUNCH_FLOPS[device] / (2 * weights)
        return cls(len(layers), row_tokens, SETUP_SHARE * launch, launch + READ_TOKENS[device])

    def of_chunk(self, n_masks: int, first_layer: int) -> float:
        """The cost of one forward of some masks from a layer on."""
        n_run = self.n_layers - first_layer
        return self.n_layers * self.setup_tokens + n_run * (self.fixed_tokens + n_masks * self.row_tokens)

    def of_batches(self, batches: Sequence[Sequence[slice]], first_layers: Sequence[int]) -> float:
        """The cost of the chunks that `plan_batches` makes."""
        chunks = (chunk for batch in batches for chunk in batch)
        return sum(self.of_chunk(chunk.stop - chunk.start, first_layers[chunk.stop - 1]) for chunk in chunks)

    def favours_sharing(self, batches: Sequence[Sequence[slice]], first_layers: Sequence[int]) -> bool:
        """Whether these chunks, and the forward whose layers they share, cost clearly less than whole forwards."""
        shared = self.of_chunk(1, 0) + self.of_batches(batches, first_layers)
        whole = sum(self.of_chunk(batch[-1].stop - batch[0].start, 0) for batch in batches)
        return shared < MAX_COST_RATIO * whole


def plan_batches(first_layers: Sequence[int], batch_size: int, cost: ForwardCost) -> list[list[slice]]:
    """Cut masks into batches, whose outputs are compared together, and these into the chunks that cost least.

    Args:
        first_layers: The first layer that every mask needs, descending.
        batch_size: Masks in a batch, at most.
        cost: The cost of forwards.

    Returns:
        For every batch the masks of each of its chunks. A chunk starts in the first layer of its last mask.
    """
    whole = whole_batches(len(first_layers), batch_size)
    return [_cheapest(first_layers, batch.start, batch.stop, cost) for (batch,) in whole]


def whole_batches(n_masks: int, batch_size: int) -> list[list[slice]]:
    """Cut masks into batches of at most `batch_size`, each of a single chunk."""
    return [[slice(start, min(start + batch_size, n_masks))] for start in range(0, n_masks, batch_size)]


def _cheapest(first_layers: Sequence[int], start: int, stop: int, cost: ForwardCost) -> list[slice]:
    """The chunks of one batch that cost least together, by dynamic programming over the places where layers change."""
    changes = [i for i in range(start + 1, stop) if first_layers[i] != first_layers[i - 1]]
    best: dict[int, tuple[float, list[int]]] = {start: (0.0, [start])}
    """For every place the cost of the masks before it and where their chunks begin and end."""
    for end in [*changes, stop]:
        layer = first_layers[end - 1]
        best[end] = min((before + cost.of_chunk(end - i, layer), [*cuts, end]) for i, (before, cuts) in best.items())
    return [slice(i, j) for i, j in pairwise(best[stop][1])]
