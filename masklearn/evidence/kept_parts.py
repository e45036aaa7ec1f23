"""Finished parts of the evidence, kept in a folder: a command that is stopped and started again computes the rest."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from masklearn.data import MaskData
from masklearn.data.digests import digest, texts_digest
from masklearn.evidence.plan import EvidencePlan
from masklearn.files import atomic_write
from masklearn.mask_file import Mask
from masklearn.masking import MaskedLM
from masklearn.version import masklearn_version

KeptPart = Callable[[], Any]
"""Returns a part of the evidence, from where it is kept, or computed now and kept."""
NAMED_BY_PARTS = {
    "parts", "seeds", "bootstraps", "halves", "paraphrase_column", "transfer", "checkpoints", "estimate",
}  # fmt: skip
"""Settings of a plan that say which parts there are, and change none of them."""
USED_IN = {
    "draws": {"tests"}, "pairs": {"completeness", "pairs"},
    "steps": {"stability", "controls"}, "polish_budget": {"stability", "controls"},
}  # fmt: skip
"""Settings of a plan that some kinds of parts alone depend on."""


@dataclass(frozen=True)
class KeptParts:
    """Parts by name. A part that depends on something else than now is computed again."""

    folder: Path | None = None
    """Where they are; None keeps none."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """What all parts depend on, in values of JSON. What one part depends on besides belongs into its name."""

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """A part, from the folder if it is there, or computed now and kept.

        Args:
            name: Its name, and that of its file.
            compute: Returns it, in values of JSON.

        Raises:
            UserError: If it cannot be written.
        """
        kept = self.load(name)
        return self.keep(name, compute()) if kept is None else kept

    def keep(self, name: str, value: Any) -> Any:
        """Keep a part in place of an earlier one, and return it.

        Raises:
            UserError: If it cannot be written.
        """
        if self.folder:
            content = {"inputs": self.inputs, "value": value}
            atomic_write(self.folder / f"{name}.json", json.dumps(content).encode())
        return value

    def has(self, name: str) -> bool:
        """Whether the folder has a part."""
        return self.load(name) is not None

    def load(self, name: str) -> Any:
        """A part from the folder; None if it is not there, or if it depends on something else than now."""
        if self.folder is None:
            return None
        try:
            content = json.loads((self.folder / f"{name}.json").read_bytes())
            same = _used_in(name, content["inputs"]) == _used_in(name, self.inputs)
            return content["value"] if same else None
        except (OSError, ValueError, TypeError, KeyError):  # absent or damaged: it is computed again
            return None


def _used_in(name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that a part of this name depends on."""
    kind, plan = name.split("-")[0], inputs.get("plan", {})
    return {**inputs, "plan": {key: plan[key] for key in plan if kind in USED_IN.get(key, {kind})}}


def inputs_of(masked_lm: MaskedLM, mask: Mask, data: MaskData, plan: EvidencePlan) -> dict[str, Any]:
    """What all parts of the evidence on a bank depend on."""
    return {
        "bank": digest(mask.to_bytes()),
        "model": masked_lm.layout.fingerprint,
        "dtype": str(masked_lm.lm.dtype),
        "texts": texts_digest(data),
        "plan": {name: value for name, value in asdict(plan).items() if name not in NAMED_BY_PARTS},
        "masklearn": masklearn_version(),
    }
