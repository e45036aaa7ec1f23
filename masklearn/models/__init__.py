"""Any Hugging Face causal language model: loading it, finding where its nodes can be gated, and verifying that."""

from masklearn.models.diagnostics import dtype_name, text_config
from masklearn.models.discovery import LayerSites, has_weight_matrix
from masklearn.models.forward_override import Forward, first_output, override_forward, with_first_output
from masklearn.models.layout import Layout, require_evaluation_mode
from masklearn.models.loading import (
    DTypeName,
    ModelOrName,
    TokenizerOrName,
    fingerprint,
    load_lm,
    load_tokenizer,
)
from masklearn.models.placement import (
    DeviceMap,
    QuantizationName,
    best_device,
    compute_devices,
    describe_placement,
    input_device,
    is_offloaded,
    is_placed,
    move_model,
    require_plain,
)
from masklearn.models.prefix import Prefix, can_share_prefixes, prefix_of, recording, starting_at, stopped_before
from masklearn.models.sources import EMBEDDED, has_revisions, model_source, why_hub_unreachable
from masklearn.models.unwrapping import name_of, running_eagerly, unwrapped
from masklearn.models.verification import require_finite_outputs, verify_gates

__all__ = [
    "EMBEDDED",
    "DTypeName",
    "DeviceMap",
    "Forward",
    "LayerSites",
    "Layout",
    "ModelOrName",
    "Prefix",
    "QuantizationName",
    "TokenizerOrName",
    "best_device",
    "can_share_prefixes",
    "compute_devices",
    "describe_placement",
    "fingerprint",
    "dtype_name",
    "first_output",
    "has_revisions",
    "has_weight_matrix",
    "input_device",
    "is_offloaded",
    "is_placed",
    "load_lm",
    "load_tokenizer",
    "model_source",
    "move_model",
    "name_of",
    "override_forward",
    "prefix_of",
    "recording",
    "require_evaluation_mode",
    "require_finite_outputs",
    "require_plain",
    "running_eagerly",
    "starting_at",
    "stopped_before",
    "text_config",
    "unwrapped",
    "verify_gates",
    "why_hub_unreachable",
    "with_first_output",
]
