"""Models and tokenizers from a folder or the hub: frozen, known by a fingerprint, and clear about what is wrong."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from masklearn.errors import UserError, one_line
from masklearn.tiny import MODEL

EMBEDDED = "embedded"
"""The name by which the model that comes with the package is asked for."""
DTypeName = Literal["float32", "bfloat16", "float16"]
MOST_NAMED = 3
"""Weights that a message names."""


def _source(lm: str) -> str:
    """Folder or hub id of a model's name; a path that is not there is refused before the hub is asked."""
    if lm == EMBEDDED:
        return str(MODEL)
    looks_local = lm.startswith((".", "/", "~")) or lm.count("/") > 1
    path = Path(lm).expanduser()
    if looks_local and not path.is_dir():
        raise UserError(f"model.lm: there is no folder {lm}. Give a model's folder, a hub id, or {EMBEDDED}")
    return str(path) if path.is_dir() else lm


def _unloadable(lm: str, error: Exception) -> UserError:
    said = str(error)
    way_out = f"Give a model's folder, a hub id that this machine can reach, or {EMBEDDED}"
    if "trust_remote_code" in said:
        way_out = "It comes with code of its own: if you trust that, add --model.trust_remote_code true"
    elif "safetensors" in said and any(words in said for words in ("does not appear to have", "no file named")):
        way_out = "Weights are read as safetensors; if you trust this model's pickles, add --model.allow_pickle true"
    return UserError(f"model.lm: cannot load {lm!r} ({one_line(error)}). {way_out}")


def load_lm(
    lm: str = EMBEDDED,
    revision: str | None = None,
    dtype: DTypeName = "float32",
    device: str = "cpu",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal language model: frozen, in evaluation mode.

    Args:
        lm: Folder, hub id, or `embedded`.
        revision: Branch, tag or commit on the hub.
        dtype: Precision of the weights.
        device: Where to put it, for example `cuda`.
        allow_pickle: Read weights that are no safetensors as well; such a file can run code as it is read.
        trust_remote_code: Run the Python files that come with the model.

    Raises:
        UserError: If it cannot be found or loaded.
    """
    source = _source(lm)
    try:
        # the config is cheap, and the clearest about what is wrong
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        if not trust_remote_code and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UserError(
                f"model.lm: {lm} cannot be gated: found a model of type {config.model_type}, expected a causal "
                "language model. Choose a decoder with attention heads and an MLP in every layer"
            )
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=getattr(torch, dtype),
            use_safetensors=None if allow_pickle else True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        model, found = loaded
        if lacking := sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])]):
            raise UserError(  # the library would go on with random numbers in their place
                f"model.lm: {lm} lacks {len(lacking)} weights of its architecture, or has them in another shape: "
                f"{', '.join(lacking[:MOST_NAMED])}. Give a folder or a hub id with all of them"
            )
    except UserError:
        raise
    except Exception as error:  # whatever a damaged or foreign folder makes of the library
        raise _unloadable(lm, error) from error
    model = model.eval().requires_grad_(False)
    move(model, torch.device(device))
    return model


def move(lm: PreTrainedModel, device: torch.device) -> None:
    """Move a model in place.

    Raises:
        UserError: If the device is not there, or if it cannot hold the model.
    """
    try:
        nn.Module.to(lm, device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"model.lm: {type(lm).__name__} cannot be moved to {device} ({one_line(error)}). "
            "Choose another --trainer.accelerator, or another --model.dtype"
        ) from error


def load_tokenizer(
    lm: str = EMBEDDED, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model; one without a padding token pads with its end token.

    Raises:
        UserError: If it cannot be found or loaded.
    """
    source = _source(lm)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raises nothing more special
        raise _unloadable(lm, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.padding_side = "right"
    return tokenizer


def fingerprint(lm: PreTrainedModel) -> str:
    """What tells this model from another of the same shape, in float32 and bfloat16 alike (float16 rounds otherwise).

    A hash of every parameter's name, shape, and 64 values from all over it, rounded to bfloat16.
    """
    digest = hashlib.sha256()
    for chunk in _samples(lm):
        digest.update(chunk)
    return digest.hexdigest()[:16]


def _samples(lm: PreTrainedModel) -> Iterator[bytes]:
    for name, parameter in sorted(lm.named_parameters()):
        flat = parameter.detach().flatten()
        values = flat[:: max(1, len(flat) // 64)][:64].to(torch.bfloat16).float()
        yield f"{name} {tuple(parameter.shape)}".encode()
        yield values.cpu().numpy().tobytes()
