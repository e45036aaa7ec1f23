"""The metadata of a mask file: which entries it has, and whether they are consistent."""

from typing import Any

METADATA_TYPES: dict[str, type] = {
    "model": dict, "nodes": list, "groups": list, "ablation": str, "positions": str, "config": dict, "metrics": list,
    "masklearn": str,
}  # fmt: skip
"""The metadata of a mask file, besides its format."""


def require_valid(metadata: dict[str, Any]) -> None:
    """Check the types and the consistency of metadata.

    Raises:
        KeyError: If an entry is missing.
        ValueError: If an entry is invalid.
    """
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
