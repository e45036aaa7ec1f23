"""Banks of single texts: for every text and size the edges, or the positions, of a subgraph, as safetensors."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from masklearn.ablation import Ablation
from masklearn.errors import UserError, one_line
from masklearn.files import atomic_write, pack
from masklearn.graph import NodeGraph
from masklearn.mask_file import Mask, ModelId, mask_path
from masklearn.progress import ProgressBar, no_bar
from masklearn.shares import TextUnit, path_edges, resolve_shares, share_counts
from masklearn.version import masklearn_version

FORMAT = 1
"""Format version of the file."""
ChooseText = Callable[[Tensor], tuple[int, Sequence[Tensor]]]
"""From a text's token ids to the size of its whole graph, and the numbers of what is kept, size by size."""


def hash_of(texts: Sequence[Tensor]) -> str:
    """A hash of texts, each as token ids of shape (tokens,)."""
    return hashlib.sha256(json.dumps([ids.tolist() for ids in texts]).encode()).hexdigest()


@dataclass(frozen=True)
class TextBank:
    """Subgraphs of single texts at several relative sizes, and their provenance."""

    unit: ClassVar[TextUnit]
    """What the subgraphs are made of; the metadata `graph` of the file."""
    parts: ClassVar[tuple[str, ...]]
    """Kinds of units, in the order in which an evaluation counts them."""
    own_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that only banks of this unit have; files written before they existed lack them."""

    kept: tuple[tuple[Tensor, ...], ...]
    """For every text and size the numbers of the edges or positions kept (see their graph), int64, ascending."""
    shares: tuple[float, ...]
    """Edges or positions kept as shares of all, ascending: the sizes."""
    n_tokens: tuple[int, ...]
    """Tokens of every text, up to the one whose prediction counts."""
    n_units: tuple[int, ...]
    """Edges or positions of every text's whole graph."""
    graph: NodeGraph
    """The model's layers and heads."""
    model: ModelId
    groups: tuple[str, ...]
    """Names of the texts."""
    method: str
    """How they were chosen."""
    positions: str = "last"
    """Which position was scored, see `data.Positions`."""
    config: dict[str, Any] = field(default_factory=dict)
    """The settings of the run."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """One row for each size, as in `metrics.json`."""
    version: str = field(default_factory=masklearn_version)
    ablation: Ablation = Ablation()
    """What is closed emits zero."""
    texts: str = ""
    """A hash of all texts in tokens; empty in files that were written before there was one."""

    def __post_init__(self) -> None:
        n_texts = {len(self.kept), len(self.n_tokens), len(self.n_units), len(self.groups)}
        if len(n_texts) > 1 or not self.groups:
            raise ValueError(f"the parts of the bank are for {sorted(n_texts)} texts")
        if any(small >= large for small, large in pairwise((0.0, *self.shares))) or self.shares[-1] > 1:
            raise ValueError(f"sizes are {self.shares}, expected ascending shares of the {self.unit}")

    @classmethod
    def of_texts(
        cls,
        texts: Sequence[Tensor],
        names: Sequence[str],
        shares: Sequence[float] | str,
        graph: NodeGraph,
        model: ModelId,
        choose: ChooseText,
        method: str,
        positions: str = "last",
        bar: ProgressBar = no_bar,
    ) -> Self:
        """Choose the subgraphs of every text.

        Args:
            texts: Token ids of every text up to the token whose prediction counts, shape (tokens,) each.
            names: Names of the texts.
            shares: Sizes, see `resolve_shares`.
            graph: The model's layers and heads.
            model: Which model it is.
            choose: Chooses the subgraphs of a text.
            method: Name of that choice.
            positions: Which token is scored, see `data.Positions`.
            bar: Shows progress over the texts.

        Raises:
            UserError: If there is no text, or not one name for each; if a size is no share; or if what is chosen has
                not these sizes.
        """
        if not texts or len(set(names)) != len(texts):
            raise UserError(f"{len(texts)} texts and {len(set(names))} names are given. Give one name for each text")
        title, shares = f"{cls.unit.capitalize()} ({method})", resolve_shares(shares, cls.unit)
        n_units, kept = zip(*(choose(texts[index]) for index in bar(range(len(texts)), title)), strict=True)
        for name, n, of_text in zip(names, n_units, kept, strict=True):
            cls._require_sizes(name, of_text, share_counts(shares, n))
        lengths = tuple(map(len, texts))
        return cls(
            tuple(map(tuple, kept)), tuple(shares), lengths, n_units, graph, model, tuple(names), method, positions,
            texts=hash_of(texts),
        )  # fmt: skip

    @classmethod
    def _require_sizes(cls, name: str, kept: Sequence[Tensor], counts: Sequence[int]) -> None:
        """Refuse subgraphs of other sizes than the shares of a text's units."""
        found = [len(ids.unique()) if ids.dtype == torch.int64 else f"{ids.dtype} values" for ids in kept]
        if found != [*counts]:
            raise UserError(
                f"{', '.join(map(str, found))} {cls.unit} were chosen for text {name}, whose shares are "
                f"{', '.join(map(str, counts))}. Choose the numbers of so many, for each share"
            )

    def of(self, groups: tuple[str, ...]) -> Self:
        """This bank, if its texts have these names.

        Raises:
            UserError: If they have others.
        """
        if tuple(groups) != self.groups:
            raise UserError(f"the bank holds subgraphs of {len(self.groups)} texts, not those of {len(groups)} others")
        return self

    def require_texts(self, texts: Sequence[Tensor]) -> None:
        """Check that the subgraphs are those of texts, given as to `of_texts`.

        Raises:
            UserError: If they are not.
        """
        if self.texts and self.texts != hash_of(texts):
            raise UserError(
                f"the texts are not those of which these are the {self.unit}: they have changed since. Give the file "
                "as it was then: --data.path FILE"
            )

    def require(self, model: ModelId) -> None:
        """Check that the subgraphs are those of a model.

        Raises:
            UserError: If the fingerprints differ; names both models.
        """
        if self.model.fingerprint != model.fingerprint:
            raise UserError(f"the {self.unit} were chosen on {self.model}, not on {model}. Give that model with --lm")

    def require_graph(self, text: int, n_tokens: int, exists: Tensor) -> None:
        """Check the subgraphs of one text against its graph.

        Args:
            text: Number of the text.
            n_tokens: Its tokens.
            exists: Whether each place of a flat vector is an edge, or a position. Boolean, shape (flat,).

        Raises:
            UserError: If the graph is another one, if a subgraph has not its size, or if some units do not exist.
        """
        n_units = int(exists.sum())
        counts = share_counts(self.shares, n_units)
        same = (n_tokens, n_units) == (self.n_tokens[text], self.n_units[text])
        sizes = [len(ids.unique()) for ids in self.kept[text]]
        if not same or sizes != counts or not all(exists[ids].all() for ids in self.kept[text]):
            raise UserError(f"the bank is damaged: the {self.unit} of text {self.groups[text]} do not fit its graph")

    def save(self, path: str | Path) -> None:
        """Write the file atomically.

        Raises:
            UserError: If the file cannot be written; an earlier file is then untouched.
        """
        tensors = {
            self.unit: torch.cat([ids for by_size in self.kept for ids in by_size]).to(torch.int32),
            "lengths": torch.tensor([[len(ids) for ids in by_size] for by_size in self.kept]),
            "shares": torch.tensor(self.shares, dtype=torch.float64),
            "n_tokens": torch.tensor(self.n_tokens),
            f"n_{self.unit}": torch.tensor(self.n_units),
        }
        metadata = {
            "graph": self.unit,
            "format": FORMAT,
            "model": vars(self.model),
            "shape": [self.graph.n_layers, self.graph.n_heads],
            "groups": self.groups,
            "method": self.method,
            "positions": self.positions,
            "config": self.config,
            "metrics": self.metrics,
            "masklearn": self.version,
            "texts": self.texts,
            **{name: getattr(self, name) for name in self.own_fields},
        }
        atomic_write(Path(path), pack(tensors, {key: json.dumps(value) for key, value in metadata.items()}))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the file, or that of a run's folder.

        Raises:
            UserError: If the file is absent, damaged, of another kind, or of a newer format.
        """
        try:
            with safe_open(mask_path(path), framework="pt") as file:
                metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            if metadata["graph"] != cls.unit:
                raise ValueError(f"its graph is {metadata['graph']}, not {cls.unit}")
            if not isinstance(metadata["format"], int) or metadata["format"] > FORMAT:
                raise UserError(f"it has format {metadata['format']}; this masklearn reads up to {FORMAT}. Upgrade it")
            lengths = tensors["lengths"]
            parts = iter(tensors[cls.unit].long().split(lengths.flatten().tolist()))
            return cls(
                tuple(tuple(next(parts) for _ in row) for row in lengths),
                tuple(tensors["shares"].tolist()),
                tuple(tensors["n_tokens"].tolist()),
                tuple(tensors[f"n_{cls.unit}"].tolist()),
                NodeGraph(*metadata["shape"]),
                ModelId(**metadata["model"]),
                tuple(metadata["groups"]),
                *(metadata[name] for name in ("method", "positions", "config", "metrics", "masklearn")),
                **{name: metadata[name] for name in ("texts", *cls.own_fields) if name in metadata},
            )
        except KeyError as error:
            raise UserError(f"{path} is not a bank of {cls.unit}: it has no {error.args[0]!r}") from error
        except (OSError, SafetensorError, UserError, ValueError, TypeError, RuntimeError, RecursionError) as error:
            raise UserError(f"cannot read the bank of {cls.unit} {path}: {one_line(error)}") from error


@dataclass(frozen=True)
class EdgeBank(TextBank):
    """Subgraphs of the edges of single texts."""

    unit = "edges"
    parts = ("attention", "MLPs", "residual")
    own_fields = ("parallel",)

    parallel: bool = False
    """Whether attention and MLP of a layer run in parallel."""

    @property
    def path_edges(self) -> int:
        """See `shares.path_edges`."""
        return path_edges(self.graph.n_layers, self.parallel)

    @property
    def n_edges(self) -> tuple[int, ...]:
        """Edges of every text's whole graph."""
        return self.n_units


class PositionBank(TextBank):
    """Subgraphs of the positions of single texts: of nodes at single tokens."""

    unit = "positions"
    parts = ("heads", "MLPs")


def load_bank(path: str | Path) -> Mask | EdgeBank | PositionBank:
    """Read a file of node masks, of edges or of positions, whichever it is; or that of a run's folder.

    Raises:
        UserError: If it is none of them, or damaged.
    """
    try:
        with safe_open(mask_path(path), framework="pt") as file:
            graph = (file.metadata() or {}).get("graph")
    except (OSError, SafetensorError):
        graph = None
    if graph is None:
        return Mask.load(path)
    return (PositionBank if graph == json.dumps(PositionBank.unit) else EdgeBank).load(path)
