"""The edge bank: for every text and size the edges of a subgraph, as safetensors."""

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from masklearn.ablation import Ablation
from masklearn.edges.graph import EdgeGraph
from masklearn.edges.sizes import edge_counts
from masklearn.errors import UserError, one_line
from masklearn.files import atomic_write, pack
from masklearn.graph import NodeGraph
from masklearn.mask_file import Mask, ModelId, mask_path
from masklearn.version import masklearn_version

FORMAT = 1
"""Format version of the file."""
GRAPH = "edges"
"""Value of the metadata `graph` that marks an edge bank."""


@dataclass(frozen=True)
class EdgeBank:
    """Subgraphs of single texts at several relative sizes, and their provenance."""

    kept: tuple[tuple[Tensor, ...], ...]
    """For every text and size the numbers of the edges kept (see `EdgeGraph`), int64, ascending."""
    shares: tuple[float, ...]
    """Edges kept as shares of all, ascending: the sizes."""
    n_tokens: tuple[int, ...]
    """Tokens of every text, up to the one whose prediction counts."""
    n_edges: tuple[int, ...]
    """Edges of every text's whole graph."""
    graph: NodeGraph
    """The model's layers and heads."""
    model: ModelId
    groups: tuple[str, ...]
    """Names of the texts."""
    method: str
    """How the edges were chosen."""
    positions: str = "last"
    """Which position was scored, see `data.Positions`."""
    config: dict[str, Any] = field(default_factory=dict)
    """The settings of the run."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """One row for each size, as in `metrics.json`."""
    version: str = field(default_factory=masklearn_version)
    ablation: Ablation = Ablation()
    """Closed edges emit zero."""

    def __post_init__(self) -> None:
        n_texts = {len(self.kept), len(self.n_tokens), len(self.n_edges), len(self.groups)}
        if len(n_texts) > 1 or not self.groups:
            raise ValueError(f"the parts of the bank are for {sorted(n_texts)} texts")
        if any(small >= large for small, large in pairwise((0.0, *self.shares))) or self.shares[-1] > 1:
            raise ValueError(f"sizes are {self.shares}, expected ascending shares of the edges")

    def of(self, groups: tuple[str, ...]) -> "EdgeBank":
        """This bank, if its texts have these names.

        Raises:
            UserError: If they have others.
        """
        if tuple(groups) != self.groups:
            raise UserError(f"the bank holds subgraphs of {len(self.groups)} texts, not those of {len(groups)} others")
        return self

    def require(self, model: ModelId) -> None:
        """Check that the subgraphs are those of a model.

        Raises:
            UserError: If the fingerprints differ; names both models.
        """
        if self.model.fingerprint != model.fingerprint:
            raise UserError(f"the edges were chosen on {self.model}, not on {model}. Give that model with --lm")

    def require_edges(self, text: int, graph: EdgeGraph) -> None:
        """Check the subgraphs of one text against its graph.

        Raises:
            UserError: If the graph is another one, if a subgraph has not its size, or if some edges do not exist.
        """
        counts = edge_counts(self.shares, graph.n_edges)
        same = (graph.n_tokens, graph.n_edges) == (self.n_tokens[text], self.n_edges[text])
        sizes = [len(ids.unique()) for ids in self.kept[text]]
        if not same or sizes != counts or not all(graph.exists[ids].all() for ids in self.kept[text]):
            raise UserError(f"the bank is damaged: the edges of text {self.groups[text]} do not fit its graph")

    def save(self, path: str | Path) -> None:
        """Write the file atomically.

        Raises:
            UserError: If the file cannot be written; an earlier file is then untouched.
        """
        tensors = {
            "edges": torch.cat([ids for by_size in self.kept for ids in by_size]).to(torch.int32),
            "lengths": torch.tensor([[len(ids) for ids in by_size] for by_size in self.kept]),
            "shares": torch.tensor(self.shares, dtype=torch.float64),
            "n_tokens": torch.tensor(self.n_tokens),
            "n_edges": torch.tensor(self.n_edges),
        }
        metadata = {
            "graph": GRAPH,
            "format": FORMAT,
            "model": vars(self.model),
            "shape": [self.graph.n_layers, self.graph.n_heads],
            "groups": self.groups,
            "method": self.method,
            "positions": self.positions,
            "config": self.config,
            "metrics": self.metrics,
            "masklearn": self.version,
        }
        atomic_write(Path(path), pack(tensors, {key: json.dumps(value) for key, value in metadata.items()}))

    @classmethod
    def load(cls, path: str | Path) -> "EdgeBank":
        """Read the file, or that of a run's folder.

        Raises:
            UserError: If the file is absent, damaged, of another kind, or of a newer format.
        """
        try:
            with safe_open(mask_path(path), framework="pt") as file:
                metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            if metadata["graph"] != GRAPH:
                raise ValueError(f"its graph is {metadata['graph']}, not {GRAPH}")
            if not isinstance(metadata["format"], int) or metadata["format"] > FORMAT:
                raise UserError(f"it has format {metadata['format']}; this masklearn reads up to {FORMAT}. Upgrade it")
            lengths = tensors["lengths"]
            parts = iter(tensors["edges"].long().split(lengths.flatten().tolist()))
            return cls(
                tuple(tuple(next(parts) for _ in row) for row in lengths),
                tuple(tensors["shares"].tolist()),
                tuple(tensors["n_tokens"].tolist()),
                tuple(tensors["n_edges"].tolist()),
                NodeGraph(*metadata["shape"]),
                ModelId(**metadata["model"]),
                tuple(metadata["groups"]),
                *(metadata[name] for name in ("method", "positions", "config", "metrics", "masklearn")),
            )
        except KeyError as error:
            raise UserError(f"{path} is not an edge bank: it has no {error.args[0]!r}") from error
        except (OSError, SafetensorError, UserError, ValueError, TypeError, RuntimeError, RecursionError) as error:
            raise UserError(f"cannot read the edge bank {path}: {one_line(error)}") from error


def load_bank(path: str | Path) -> Mask | EdgeBank:
    """Read a file of node masks or of edges, whichever it is; or that of a run's folder.

    Raises:
        UserError: If it is neither, or damaged.
    """
    try:
        with safe_open(mask_path(path), framework="pt") as file:
            is_edges = "graph" in (file.metadata() or {})
    except (OSError, SafetensorError):
        is_edges = False
    return EdgeBank.load(path) if is_edges else Mask.load(path)
