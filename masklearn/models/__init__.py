"""Any Hugging Face causal language model: loading it, finding where its nodes can be gated, and verifying that."""

from masklearn.models.diagnostics import dtype_name, input_device, text_config
from masklearn.models.discovery import LayerSites
from masklearn.models.forward_override import first_output, override_forward, with_first_output
from masklearn.models.layout import Layout
from masklearn.models.loading import (
    DTypeName,
    ModelOrName,
    TokenizerOrName,
    fingerprint,
    load_lm,
    load_tokenizer,
    require_in_memory,
)
from masklearn.models.prefix import Prefix, can_share_prefixes, prefix_of, recording, starting_at
from masklearn.models.sources import EMBEDDED, model_source
from masklearn.models.unwrapping import name_of, running_eagerly, unwrapped
from masklearn.models.verification import require_finite_outputs, verify_gates

__all__ = [
    "EMBEDDED",
    "DTypeName",
    "LayerSites",
    "Layout",
    "ModelOrName",
    "Prefix",
    "TokenizerOrName",
    "can_share_prefixes",
    "fingerprint",
    "dtype_name",
    "first_output",
    "input_device",
    "load_lm",
    "load_tokenizer",
    "model_source",
    "name_of",
    "override_forward",
    "prefix_of",
    "recording",
    "require_finite_outputs",
    "require_in_memory",
    "running_eagerly",
    "starting_at",
    "text_config",
    "unwrapped",
    "verify_gates",
    "with_first_output",
]
