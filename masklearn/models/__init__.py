"""Any Hugging Face causal language model: loaded, and read as a node graph with places where its nodes can be gated."""

from masklearn.models.diagnostics import differs, precision, probe, rounding, text_config, unsupported_model
from masklearn.models.forward_override import Forward, first, replaced, with_first
from masklearn.models.layout import Layout, Site
from masklearn.models.loading import EMBEDDED, DTypeName, fingerprint, load_lm, load_tokenizer

__all__ = [
    "EMBEDDED",
    "DTypeName",
    "Forward",
    "Layout",
    "Site",
    "differs",
    "fingerprint",
    "first",
    "load_lm",
    "load_tokenizer",
    "precision",
    "probe",
    "unsupported_model",
    "replaced",
    "rounding",
    "text_config",
    "with_first",
]
