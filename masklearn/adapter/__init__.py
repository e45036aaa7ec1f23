"""Any Hugging Face causal language model: loaded, and read as a node graph with places where its nodes can be gated."""

from masklearn.adapter.layout import Layout, Site
from masklearn.adapter.loading import EMBEDDED, DTypeName, fingerprint, load_lm, load_tokenizer
from masklearn.adapter.reading import apart, precision, probe, refusal, rounding, text_config
from masklearn.adapter.surgery import Forward, first, replaced, with_first

__all__ = [
    "EMBEDDED",
    "DTypeName",
    "Forward",
    "Layout",
    "Site",
    "apart",
    "fingerprint",
    "first",
    "load_lm",
    "load_tokenizer",
    "precision",
    "probe",
    "refusal",
    "replaced",
    "rounding",
    "text_config",
    "with_first",
]
