"""The mask file: the masks of a run and everything needed to use, check and reproduce them, as safetensors."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from masklearn import hub
from masklearn.ablation import Ablation, AblationName
from masklearn.circuit_json import read_eap
from masklearn.errors import UserError, listed, one_line
from masklearn.files import atomic_write, pack
from masklearn.graph import NodeGraph
from masklearn.mask_metadata import MASK_FILE as MASK_FILE
from masklearn.mask_metadata import ModelId as ModelId
from masklearn.mask_metadata import mask_path, require_valid
from masklearn.tool_hooks import ToolName, hooks_of
from masklearn.version import masklearn_version

FORMAT = 2
"""Format version. Format 1, which is still read, had the values of mean ablation stacked over layers."""


@dataclass(frozen=True)
class Mask:
    """All masks of a run (groups x sizes x nodes) and their provenance.

    A loaded bank stays in its file: masks are read into memory when they are selected, and checked then.
    """

    mask: Tensor
    """Boolean, shape (groups, sizes, nodes); a mask of size s has exactly s ones."""
    scores: Tensor
    """Scores by which the nodes were ranked, float32, shape (groups, sizes or 1, nodes)."""
    sizes: Tensor
    """Nodes kept, int64, ascending, shape (sizes)."""
    graph: NodeGraph
    model: ModelId
    groups: tuple[str, ...] = ("dataset",)
    """Names of the groups, in the order of the masks."""
    ablation: Ablation = Ablation()
    """The ablation under which the masks were learned."""
    positions: str = "all"
    """Which positions were scored, see `data.Positions`."""
    config: dict[str, Any] = field(default_factory=dict)
    """The settings of the run that learned the masks."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """One row for each size, as in `metrics.json`."""
    version: str = field(default_factory=masklearn_version)
    """The version of masklearn that learned the masks."""
    learned_texts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """Hashes of the texts that the masks were learned and selected on, int64, shape (texts,); empty if unknown."""

    def __post_init__(self) -> None:
        expected = (len(self.groups), len(self.sizes), self.graph.n_nodes)
        if tuple(self.mask.shape) != expected or self.mask.dtype != torch.bool:
            raise ValueError(
                f"mask is {self.mask.dtype} of shape {tuple(self.mask.shape)}, expected bool of {expected}"
            )
        if self.scores.shape not in (expected, (expected[0], 1, expected[2])) or self.scores.dtype != torch.float32:
            raise ValueError(f"scores are {self.scores.dtype} of shape {tuple(self.scores.shape)}, expected {expected}")
        if self.sizes.dtype != torch.int64 or self.sizes.dim() != 1:
            raise ValueError(f"sizes are {self.sizes.dtype} of {self.sizes.dim()} dimensions, expected int64 of one")
        if self.learned_texts.dtype != torch.int64 or self.learned_texts.dim() != 1:
            raise ValueError(f"learned texts are {self.learned_texts.dtype}, expected hashes, int64 of one dimension")
        ends = (0, *self.sizes.tolist(), self.graph.n_nodes + 1)
        if any(small >= large for small, large in pairwise(ends)):
            raise ValueError(f"sizes are {ends[1:-1]}, expected ascending from 1 to {self.graph.n_nodes}")
        layers, heads = self.graph.n_layers, {value.shape[-2] for value in self.ablation.heads}
        if self.ablation.known and (len(self.ablation.heads) != layers or heads != {self.graph.n_heads}):
            found = f"{len(self.ablation.heads)} layers of {heads} heads"
            raise ValueError(f"the ablation has values for {found}, expected {layers} of {self.graph.n_heads}")

    def __getitem__(self, group: str | int) -> "Mask":
        """The masks of one group, by its name or its index.

        Raises:
            UserError: If the bank has no such group, or if its masks are damaged.
        """
        try:
            index = self.groups.index(group) if isinstance(group, str) else range(len(self.groups))[group]
        except (ValueError, IndexError) as error:
            raise UserError(f"this bank has no group {group!r}; it has {listed(self.groups)}") from error
        one = slice(index, index + 1)
        bank = replace(self, mask=self.mask[one].clone(), scores=self.scores[one].clone(), groups=self.groups[one])
        bank.check()
        return bank

    def of(self, groups: Sequence[str]) -> "Mask":
        """The masks of some groups, in this order.

        Raises:
            UserError: If the bank lacks one of the groups.
        """
        if tuple(groups) == self.groups:
            return self
        index_of = {name: index for index, name in enumerate(self.groups)}
        missing = [name for name in groups if name not in index_of]
        if missing:
            raise UserError(f"this bank has no masks for group {missing[0]!r}; it has {listed(self.groups)}")
        indices = [index_of[name] for name in groups]
        return replace(self, mask=self.mask[indices], scores=self.scores[indices], groups=tuple(groups))

    def share(self) -> Tensor:
        """Fraction of the groups that keep each node, shape (sizes, nodes); with one group, its masks as numbers."""
        return self.mask.float().mean(0)

    def check(self) -> None:
        """Read every mask and check it.

        Raises:
            UserError: If a mask does not keep as many nodes as its size, or if scores or ablation are not finite.
        """
        if not torch.equal(self.mask.sum(-1), self.sizes.expand(self.mask.shape[:2])):
            raise UserError("the bank is damaged: a mask does not keep as many nodes as its size says")
        if not all(values.isfinite().all() for values in (self.scores, *self.ablation.heads, *self.ablation.mlps)):
            raise UserError("the bank is damaged: its scores or its ablation values are not all finite")

    def select(self, s: int | float, group: str | int | None = None) -> Tensor:
        """One mask, boolean of shape (nodes,).

        Args:
            s: Its size: a count, or a fraction of all nodes.
            group: Its group, by name or index; optional if there is only one.

        Raises:
            UserError: If the bank has no such size or group.
        """
        count = max(1, round(s * self.graph.n_nodes)) if 0 < s < 1 else s
        sizes = self.sizes.tolist()
        if count not in sizes:
            raise UserError(f"this bank has no mask of {count:g} nodes; it has {', '.join(map(str, sizes))}")
        if group is None and len(self.groups) > 1:
            raise UserError(f"this bank has {len(self.groups)} groups; name one, for example {self.groups[0]!r}")
        return self[0 if group is None else group].mask[0, sizes.index(count)]

    def require(self, model: ModelId) -> None:
        """Check that the masks were learned on a model.

        Raises:
            UserError: If the fingerprints differ; names both models.
        """
        if self.model.fingerprint != model.fingerprint:
            raise UserError(f"the mask was learned on {self.model}, not on {model}. Give that model with --lm")

    def with_metrics(self, metrics: list[dict[str, Any]]) -> "Mask":
        """The same masks with the metrics of an evaluation."""
        return replace(self, metrics=metrics)

    def save(self, path: str | Path) -> None:
        """Write the mask file atomically.

        Raises:
            UserError: If the bank is damaged, or if the file cannot be written; an earlier file is then untouched.
        """
        self.check()
        atomic_write(Path(path).expanduser(), self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the mask file; equal banks have equal bytes."""
        tensors = {"mask": self.mask, "scores": self.scores, "sizes": self.sizes, **self.ablation.to_tensors()}
        if len(self.learned_texts):
            tensors["learned_texts"] = self.learned_texts
        metadata = {
            "format": FORMAT,
            "model": vars(self.model),
            "nodes": self.graph.names,
            "groups": self.groups,
            "ablation": self.ablation.name,
            "positions": self.positions,
            "config": self.config,
            "metrics": self.metrics,
            "masklearn": self.version,
        }
        packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return pack(packed, {key: json.dumps(value) for key, value in metadata.items()})

    @classmethod
    def load(cls, path: str | Path) -> "Mask":
        """Open a mask file, or that of a run's folder. Masks are read and checked when they are selected.

        Raises:
            UserError: If the file is absent, damaged, not a mask file, or of a newer format.
        """
        try:
            with safe_open(mask_path(path), framework="pt") as file:
                metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            if not isinstance(metadata["format"], int) or metadata["format"] > FORMAT:
                raise UserError(f"it has format {metadata['format']}; this masklearn reads up to {FORMAT}. Upgrade it")
            require_valid(metadata)
            name = cast(AblationName, metadata["ablation"])
            return cls(
                tensors["mask"],
                tensors["scores"],
                tensors["sizes"],
                NodeGraph.from_names(metadata["nodes"]),
                ModelId(**metadata["model"]),
                tuple(metadata["groups"]),
                Ablation.from_tensors(name, tensors),
                metadata["positions"],
                metadata["config"],
                metadata["metrics"],
                metadata["masklearn"],
                tensors.get("learned_texts", torch.zeros(0, dtype=torch.int64)),
            )
        except KeyError as error:
            raise UserError(f"{path} is not a mask file: it has no {error.args[0]!r}") from error
        except (OSError, SafetensorError, UserError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(f"cannot read the mask file {path}: {one_line(error)}") from error

    def push_to_hub(self, repo: str, private: bool | None = None, token: str | None = None) -> str:
        """Write the bank to a repository of the Hugging Face hub, with a card, and return its address.

        Raises:
            UserError: If the bank is damaged, or if there is no network, no token or no right to write there.
        """
        return hub.push(self, repo, private, token)

    @classmethod
    def from_pretrained(cls, repo: str | Path, revision: str | None = None, token: str | None = None) -> "Mask":
        """Open the mask file of a folder, such as a run's, or of a repository of the hub: see `load`.

        Raises:
            UserError: If there is none, or if the hub cannot be reached.
        """
        return cls.load(hub.fetch(repo, revision, token))

    @classmethod
    def from_eap(
        cls,
        path: str | Path,
        model: ModelId,
        sizes: Sequence[int | float] | None = None,
        ablation: Ablation = Ablation("resample"),
    ) -> "Mask":
        """Read a circuit or importances of EAP-IG or MIB.

        Args:
            path: The JSON file.
            model: What it is a circuit of, for example `ModelId("gpt2", None, fingerprint(lm))`.
            sizes: Cut the scores to so many nodes, the highest first; by default the circuit as it is.
            ablation: What closed nodes emit; resample ablation by default, as in those tools.

        Raises:
            UserError: If it is not such a file, a score is not finite, a size out of range, or the circuit empty.
        """
        graph, masks, scores = read_eap(path, sizes)
        return cls(masks[None], scores[None, None], masks.sum(-1), graph, model, ablation=ablation)

    @classmethod
    def from_wandb(cls, name: str, folder: str | Path | None = None) -> "Mask":
        """Download the mask file of a run from W&B, where it is an artifact, and open it.

        Args:
            name: Such as `mask-gpt2:latest` or `entity/project/mask-gpt2:v3`.
            folder: Where to keep the file; by default among temporary files.

        Raises:
            UserError: If there is no such artifact, or if W&B cannot be reached.
        """
        artifacts = import_module("masklearn.tracking.artifacts")  # W&B takes a second to import
        return cls.load(artifacts.fetch_artifact(name, folder))

    def hooks(
        self,
        for_: ToolName,
        s: int | float | None = None,
        group: str | int | None = None,
        ablation: Ablation | None = None,
    ) -> Any:
        """Hooks that keep the nodes of one mask in another tool's model: see `tool_hooks.hooks_of`.

        Args:
            for_: `transformer_lens` or `nnsight`.
            s: The mask's size, as in `select`; optional if there is only one.
            group: Its group.
            ablation: What closed nodes emit, by default as in the bank. Resample ablation must be given with values.

        Raises:
            UserError: If there is no such mask or tool, or if values are missing.
        """
        if s is None and len(self.sizes) > 1:
            raise UserError(f"this bank has {len(self.sizes)} sizes; name one, for example s={int(self.sizes[0])}")
        gates = self.select(int(self.sizes[0]) if s is None else s, group)
        return hooks_of(self.graph, gates, ablation or self.ablation, for_)
