"""Results of each text, besides the means over all: the input of the study of computation density."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from masklearn.evaluation.metrics import BY_SUBGRAPH, TextMetrics
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
        return TextMetrics(n_masks, self.n_texts, self.counts, sync_on_compute=False).to(masked_lm.device)

    def record(self, masks_of: Mapping[str, Tensor], meter: TextMetrics) -> None:
        """Keep the results of a meter.

        Args:
            masks_of: The masks of every kind, in the order in which the meter counts them. Boolean, shape (draws,
                sizes, groups, nodes).
            meter: The meter, of all of these masks.
        """
        found = {name: values.cpu() for name, values in meter.compute().items()}
        of_masks, begin = {name: found.pop(name) for name in (*BY_SUBGRAPH, "recovered")}, 0
        of_texts = {name: values.view(self.n_texts) for name, values in found.items()}  # torchmetrics squeezes these
        n_masks = sum(masks.shape[0] * masks.shape[1] for masks in masks_of.values())
        for name, masks in masks_of.items():
            draws, sizes = masks.shape[:2]
            end = begin + draws * sizes
            texts = {
                key: values.view(n_masks, self.n_texts, -1)[begin:end].unflatten(0, (draws, sizes))
                for key, values in of_masks.items()
            }
            texts = {key: values if key == "recovered" else values[..., 0] for key, values in texts.items()}
            self.results[name], begin = PerTextResults(masks.cpu(), texts | of_texts), end
