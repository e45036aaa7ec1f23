"""Results text by text, beside the means: what the study of computation density reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from masklearn.evaluation.metrics import TextMetrics
from masklearn.masking.masked_lm import MaskedLM


@dataclass(frozen=True)
class PerTextResults:
    """Some subgraphs, and what was measured of them text by text."""

    masks: Tensor
    """Boolean, shape (draws, sizes, groups, nodes)."""
    texts: dict[str, Tensor]
    """What `TextMetrics` gives, with draws and sizes in two dimensions."""


@dataclass
class PerTextRecorder:
    """What is to be seen text by text beside the means, and what was."""

    n_texts: int
    """Texts that are reported on."""
    counts: Mapping[int, int]
    """How often each token comes in the corpus."""
    seen: dict[str, PerTextResults] = field(default_factory=dict)
    """By the name of the subgraphs: `learned`, or that of a baseline."""

    def meter(self, masked_lm: MaskedLM, n_masks: int) -> TextMetrics:
        return TextMetrics(n_masks, self.n_texts, self.counts).to(masked_lm.device)
