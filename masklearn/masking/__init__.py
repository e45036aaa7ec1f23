"""The frozen model under gates: the one place where a gate meets an activation, and the owner of every hook."""

from masklearn.masking.gating import gated, verified_layout
from masklearn.masking.masked_lm import MaskedLM

__all__ = ["MaskedLM", "gated", "verified_layout"]
