"""The frozen model under gates: the only folder that applies gates and registers hooks."""

from masklearn.masking.activation_stats import ActivationStats, ablation_from_means
from masklearn.masking.compiled import (
    CompiledSteps,
    CompileMode,
    compiling_pays,
    fused_kl,
    padded_length,
    scoring_forward,
    step_forward,
)
from masklearn.masking.contributions import node_contributions
from masklearn.masking.gating import gated, verified_layout
from masklearn.masking.masked_lm import MaskedLM
from masklearn.masking.memory import free_bytes, free_everywhere, peak_bytes, reset_peak, scored_together
from masklearn.masking.row_parts import is_device_failure
from masklearn.masking.shared_layers import hidden_of_subgraphs, shared_forwards, subgraph_groups

__all__ = [
    "ActivationStats",
    "CompileMode",
    "CompiledSteps",
    "MaskedLM",
    "ablation_from_means",
    "compiling_pays",
    "fused_kl",
    "scoring_forward",
    "step_forward",
    "free_bytes",
    "free_everywhere",
    "gated",
    "hidden_of_subgraphs",
    "is_device_failure",
    "node_contributions",
    "padded_length",
    "peak_bytes",
    "reset_peak",
    "scored_together",
    "shared_forwards",
    "subgraph_groups",
    "verified_layout",
]
