"""Learned masks over the attention heads and MLPs of a frozen causal language model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from masklearn.ablation import Ablation
from masklearn.errors import UserError
from masklearn.graph import Node, NodeGraph
from masklearn.mask_file import Mask
from masklearn.masking.gating import gated
from masklearn.masking.masked_lm import MaskedLM
from masklearn.models.loading import load_lm, load_tokenizer

if TYPE_CHECKING:
    from masklearn.api import LearnedBank, baselines, circuit, evaluate, learn
    from masklearn.data.datamodule import MaskData
    from masklearn.training.learner import MaskLearner

_LAZY = {
    "LearnedBank": "masklearn.api",
    "MaskData": "masklearn.data",
    "MaskLearner": "masklearn.training.learner",
    "baselines": "masklearn.api",
    "circuit": "masklearn.api",
    "evaluate": "masklearn.api",
    "learn": "masklearn.api",
}
"""Names that need Lightning, which takes seconds to import and is not needed to use a mask."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


__all__ = [
    "Ablation",
    "LearnedBank",
    "Mask",
    "MaskData",
    "MaskLearner",
    "MaskedLM",
    "Node",
    "NodeGraph",
    "UserError",
    "baselines",
    "circuit",
    "evaluate",
    "gated",
    "learn",
    "load_lm",
    "load_tokenizer",
]
