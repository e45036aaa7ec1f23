"""The metadata of a mask file: which model it is of, which entries it has, and whether they are consistent."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

MASK_FILE = "mask.safetensors"
"""Name of the mask file in a run's folder."""
METADATA_TYPES: dict[str, type] = {
    "model": dict, "nodes": list, "groups": list, "ablation": str, "positions": str, "config": dict, "metrics": list,
    "masklearn": str,
}  # fmt: skip
"""The metadata of a mask file, besides its format."""


def mask_path(path: str | Path) -> Path:
    """The mask file of a run's folder; any other path as it is, with `~` for the home folder."""
    file = Path(path).expanduser()
    return file / MASK_FILE if file.is_dir() else file


@dataclass(frozen=True)
class ModelId:
    """Which model a mask was learned on."""

    lm: str
    """Path or hub id."""
    revision: str | None
    """Revision on the hub."""
    fingerprint: str
    """Hash of a sample of the weights: equal for equal models, whatever their name."""

    def __str__(self) -> str:
        return f"{self.lm}{'@' + self.revision if self.revision else ''} (fingerprint {self.fingerprint})"


def require_valid(metadata: dict[str, Any]) -> None:
    """Check the types and the consistency of metadata.

    Raises:
        KeyError: If an entry is missing.
        ValueError: If an entry is invalid, or the file holds edges or positions of single texts.
    """
    if "graph" in metadata:
        raise ValueError(f"it holds {metadata['graph']} of single texts; masks of nodes are needed here")
    for name, expected in METADATA_TYPES.items():
        if not isinstance(metadata[name], expected):
            raise ValueError(f"its {name!r} is not a {expected.__name__}")
    names, model = metadata["nodes"] + metadata["groups"], metadata["model"]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("the names of its nodes and groups are not all strings")
    if len(set(metadata["groups"])) < len(metadata["groups"]):
        raise ValueError("two of its groups have the same name")
    if {*model} != {"lm", "revision", "fingerprint"} or not all(isinstance(v, str | None) for v in model.values()):
        raise ValueError(f"its model is {model}, not a name, a revision and a fingerprint")
    for section in ("model", "data"):
        if not isinstance(metadata["config"].get(section, {}), dict):
            raise ValueError(f"the section {section!r} of its config is not a dict")
