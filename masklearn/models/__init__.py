"""Any Hugging Face causal language model: loading it, finding where its nodes can be gated, and verifying that."""

from masklearn.models.diagnostics import text_config
from masklearn.models.discovery import LayerSites
from masklearn.models.forward_override import first_output, override_forward, with_first_output
from masklearn.models.layout import Layout
from masklearn.models.loading import EMBEDDED, DTypeName, fingerprint, load_lm, load_tokenizer, source_of
from masklearn.models.prefix import Prefix, can_share_prefixes, prefix_of, recording, starting_at
from masklearn.models.verification import require_finite_outputs, verify_gates

__all__ = [
    "EMBEDDED",
    "DTypeName",
    "LayerSites",
    "Layout",
    "Prefix",
    "can_share_prefixes",
    "fingerprint",
    "first_output",
    "load_lm",
    "load_tokenizer",
    "override_forward",
    "prefix_of",
    "recording",
    "require_finite_outputs",
    "source_of",
    "starting_at",
    "text_config",
    "verify_gates",
    "with_first_output",
]
