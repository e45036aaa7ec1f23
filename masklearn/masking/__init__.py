"""The frozen model under gates: the only folder that applies gates and registers hooks."""

from masklearn.masking.activation_stats import ActivationStats, ablation_from_means
from masklearn.masking.contributions import node_contributions
from masklearn.masking.gating import gated, verified_layout
from masklearn.masking.masked_lm import MaskedLM

__all__ = ["ActivationStats", "MaskedLM", "ablation_from_means", "gated", "node_contributions", "verified_layout"]
