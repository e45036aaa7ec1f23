"""What evidence is gathered on, besides a bank and its texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from masklearn.evidence.rediscovery import Variant
from masklearn.evidence.transfer import Checkpoint, OtherTexts


@dataclass(frozen=True)
class Sources:
    """What evidence is gathered on, besides the bank."""

    variants: list[Variant]
    """Rediscoveries for stability."""
    other_tasks: Mapping[str, Variant] = field(default_factory=dict)
    """Rediscoveries on other tasks, as controls."""
    other_texts: Sequence[OtherTexts] = ()
    """Texts to transfer to."""
    checkpoints: Sequence[Checkpoint] = ()
    """Checkpoints to transfer to."""
    gaps: Sequence[str] = ()
    """What cannot be used, a sentence each."""
    other_runs: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)
    """Masks of other runs on the same model, as controls: for each size that the bank has, too, shape (1, nodes)."""
