"""Any Hugging Face causal language model: loaded, and read as a node graph with places where its nodes can be gated."""

from masklearn.adapter.layout import Layout, Site, apart, probe, refusal, rounding
from masklearn.adapter.loading import (
    EMBEDDED,
    DTypeName,
    fingerprint,
    load_lm,
    load_tokenizer,
)
from masklearn.adapter.surgery import Forward, first, replaced, with_first

__all__ = [
    "EMBEDDED",
    "DTypeName",
    "Forward",
    "Layout",
    "Site",
    "fingerprint",
    "apart",
    "first",
    "load_lm",
    "load_tokenizer",
    "probe",
    "refusal",
    "replaced",
    "rounding",
    "with_first",
]
