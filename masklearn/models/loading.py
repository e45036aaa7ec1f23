"""Load models and tokenizers from a folder or the hub, freeze models, and tell models apart by a fingerprint."""

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
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from masklearn.errors import UserError, one_line
from masklearn.tiny import MODEL_FOLDER

EMBEDDED = "embedded"
"""Name of the model that comes with the package."""
DTypeName = Literal["float32", "bfloat16", "float16"]
"""Precisions in which weights can be loaded."""
MAX_NAMED_WEIGHTS = 3
"""Missing weights that an error message lists by name."""


def source_of(lm: str) -> str:
    """Return the folder or hub id that a model's name stands for.

    Raises:
        UserError: If the name looks like a path and there is no such folder; the hub is not asked then.
    """
    if lm == EMBEDDED:
        return str(MODEL_FOLDER)
    looks_local = lm.startswith((".", "/", "~")) or lm.count("/") > 1
    path = Path(lm).expanduser()
    if looks_local and not path.is_dir():
        raise UserError(f"model.lm: there is no folder {lm}. Give a model's folder, a hub id, or {EMBEDDED}")
    return str(path) if path.is_dir() else lm


def _load_error(lm: str, error: Exception) -> UserError:
    """Make the error for a model or tokenizer that transformers fails to load, with advice where its cause is known."""
    message = str(error)
    advice = f"Give a model's folder, a hub id that this machine can reach, or {EMBEDDED}"
    if "trust_remote_code" in message:
        advice = "It comes with its own code: if you trust that code, add --model.trust_remote_code true"
    elif "safetensors" in message and any(words in message for words in ("does not appear to have", "no file named")):
        advice = "Weights are read as safetensors; if you trust this model's pickles, add --model.allow_pickle true"
    return UserError(f"model.lm: cannot load {lm!r} ({one_line(error)}). {advice}")


def load_lm(
    lm: str = EMBEDDED,
    revision: str | None = None,
    dtype: DTypeName = "float32",
    device: str = "cpu",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal language model, frozen and in evaluation mode.

    Args:
        lm: Folder, hub id, or `embedded`.
        revision: Branch, tag or commit on the hub.
        dtype: Precision of the weights.
        device: Device to load it to, for example `cuda`.
        allow_pickle: Also read weights in pickle format. Loading such a file can run code.
        trust_remote_code: Run the Python files that come with the model.

    Raises:
        UserError: If the model cannot be found or loaded, or lacks weights.
    """
    source = source_of(lm)
    try:
        # the config comes first: reading it is cheap, and its errors are the clearest
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        if not trust_remote_code:
            _require_causal(lm, config)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=getattr(torch, dtype),
            use_safetensors=None if allow_pickle else True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        model, loading_info = loaded
        _require_all_weights(lm, loading_info)
    except UserError:
        raise
    except Exception as error:  # a damaged or foreign folder can raise anything
        raise _load_error(lm, error) from error
    model = model.eval().requires_grad_(False)
    move_model(model, torch.device(device))
    return model


def _require_causal(lm: str, config: PreTrainedConfig) -> None:
    """Refuse a model for which transformers has no causal language model."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"model.lm: {lm} cannot be gated: found a model of type {config.model_type}, expected a causal "
            "language model. Choose a decoder with attention heads and an MLP in every layer"
        )


def _require_all_weights(lm: str, loading_info: dict[str, Any]) -> None:
    """Refuse a model that lacks weights: transformers only warns, and initialises them at random."""
    mismatched = [name for name, *_ in loading_info["mismatched_keys"]]
    if missing := sorted([*loading_info["missing_keys"], *mismatched]):
        raise UserError(
            f"model.lm: {lm} lacks {len(missing)} weights of its architecture, or has them in another shape: "
            f"{', '.join(missing[:MAX_NAMED_WEIGHTS])}. Give a folder or a hub id with all of them"
        )


def move_model(lm: PreTrainedModel, device: torch.device) -> None:
    """Move a model to a device, in place.

    Raises:
        UserError: If there is no such device, or if the model does not fit on it.
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
    """Load the tokenizer of a model; one without a padding token pads with its end token, on the right.

    Raises:
        UserError: If the tokenizer cannot be found or loaded.
    """
    source = source_of(lm)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises plain exceptions
        raise _load_error(lm, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.padding_side = "right"
    return tokenizer


def fingerprint(lm: PreTrainedModel) -> str:
    """Return a hash that differs between models with different weights.

    It covers every parameter's name, shape and 64 evenly spaced values, rounded to bfloat16. So it is the same for a
    model in float32 and in bfloat16; float16 rounds differently.
    """
    digest = hashlib.sha256()
    for chunk in _weight_samples(lm):
        digest.update(chunk)
    return digest.hexdigest()[:16]


def _weight_samples(lm: PreTrainedModel) -> Iterator[bytes]:
    """Yield the bytes that `fingerprint` hashes."""
    for name, parameter in sorted(lm.named_parameters()):
        flat = parameter.detach().flatten()
        values = flat[:: max(1, len(flat) // 64)][:64].to(torch.bfloat16).float()
        yield f"{name} {tuple(parameter.shape)}".encode()
        yield values.cpu().numpy().tobytes()
