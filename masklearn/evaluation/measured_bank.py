"""Everything that an evaluation measures of a bank, and its form as tensors of a file."""

import json
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from masklearn.evaluation.measure import Row
from masklearn.evaluation.per_text import PerTextResults

JSON, BY_GROUP = "json", "by_group"
"""Names of the tensors that all kinds of subgraphs share; the first holds the rows, and the kinds in their order."""
MASKS, TOP_IDS, TOP_PROBABILITIES = "masks", "top_ids", "top_probabilities"
"""Names of tensors of a kind of subgraphs, besides those of metrics."""


@dataclass(frozen=True)
class MeasuredBank:
    """What was measured of a bank's subgraphs, and of those that they are compared with."""

    rows: list[Row]
    """One row for each size."""
    by_group: Tensor
    """KL and TV of each group, shape (2, sizes, groups)."""
    results: dict[str, PerTextResults] = field(default_factory=dict)
    """The results of each text by kind of subgraphs; empty if they were not asked for."""
    top: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """For banks of single texts by kind: the most probable next tokens and their probabilities, the full model's last;
    each of shape (texts, sizes + 1, tokens)."""

    def to_tensors(self) -> dict[str, Tensor]:
        """All of it as tensors by name."""
        content = json.dumps({"rows": self.rows, "kinds": [*self.results]}).encode()
        tensors = {JSON: torch.frombuffer(bytearray(content), dtype=torch.uint8), BY_GROUP: self.by_group}
        for kind, found in self.results.items():
            named = {MASKS: found.masks, **found.texts}
            if kind in self.top:
                named[TOP_IDS], named[TOP_PROBABILITIES] = self.top[kind]
            tensors |= {f"{kind}/{name}": tensor.clone() for name, tensor in named.items()}  # kinds share some
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """What `to_tensors` has made tensors of.

        Raises:
            KeyError, ValueError: If something is missing or damaged.
        """
        by_kind: dict[str, dict[str, Tensor]] = {}
        for full_name, tensor in tensors.items():
            kind, _, name = full_name.rpartition("/")
            by_kind.setdefault(kind, {})[name] = tensor
        shared = by_kind.pop("")
        content = json.loads(bytes(shared[JSON].tolist()))
        top = {
            k: (named.pop(TOP_IDS), named.pop(TOP_PROBABILITIES)) for k, named in by_kind.items() if TOP_IDS in named
        }
        results = {kind: PerTextResults(by_kind[kind].pop(MASKS), by_kind[kind]) for kind in content["kinds"]}
        return cls(content["rows"], shared[BY_GROUP], results, top)
