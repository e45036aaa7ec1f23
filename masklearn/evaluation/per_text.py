"""Results of each text, besides the means over all: the input of the study of computation density."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from masklearn.evaluation.metrics import TextMetrics
from masklearn.masking.masked_lm import MaskedLM


@dataclass(frozen=True)
class PerTextResults:
    """Subgraphs, and their metrics on each text."""

    masks: Tensor
    """Boolean, shape (draws, sizes, groups, nodes)."""
    texts: dict[str, Tensor]
    """The results of `TextMetrics`, with its K subgraphs as two dimensions: draws, sizes."""


@dataclass
class PerTextRecorder:
    """Collects the results of each text while `evaluate` runs."""

    n_texts: int
    """Number of texts in the evaluated split."""
    counts: Mapping[int, int]
    """How often each token occurs in the corpus."""
    results: dict[str, PerTextResults] = field(default_factory=dict)
    """Results by kind of subgraphs: `learned`, or the name of a baseline."""

    def meter(self, masked_lm: MaskedLM, n_masks: int) -> TextMetrics:
        """A fresh meter for some subgraphs, on the model's device."""
        return TextMetrics(n_masks, self.n_texts, self.counts).to(masked_lm.device)
