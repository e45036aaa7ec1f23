"""The frozen model under gates: the one place where a gate meets an activation, and the owner of every hook."""

from masklearn.masked_lm.gating import gated, sound_layout
from masklearn.masked_lm.model import MaskedLM

__all__ = ["MaskedLM", "gated", "sound_layout"]
