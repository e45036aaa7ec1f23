"""The frozen model under gates: the only folder that applies gates and registers hooks."""

from masklearn.masking.activation_stats import ActivationStats, ablation_from_means
from masklearn.masking.contributions import node_contributions
from masklearn.masking.gating import gated, verified_layout
from masklearn.masking.masked_lm import MaskedLM
from masklearn.masking.memory import free_bytes, scored_together

__all__ = [
    "ActivationStats",
    "MaskedLM",
    "ablation_from_means",
    "free_bytes",
    "gated",
    "node_contributions",
    "scored_together",
    "verified_layout",
]
