"""Load models and tokenizers from a folder or the hub, freeze models, and tell models apart by a fingerprint."""

import hashlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from huggingface_hub import constants
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
from masklearn.models.adapters import base_of_adapter, merge_adapter
from masklearn.models.diagnostics import dtype_name
from masklearn.models.placement import (
    DeviceMap,
    QuantizationName,
    in_memory,
    move_model,
    placement_options,
    settle_placement,
)
from masklearn.models.sources import EMBEDDED, MODEL_FLAG, ModelSource, model_source
from masklearn.models.unwrapping import unwrapped

DTypeName = Literal["float32", "bfloat16", "float16"]
"""Precisions in which weights can be loaded."""
if TYPE_CHECKING:
    ModelOrName = str | PreTrainedModel
    TokenizerOrName = str | PreTrainedTokenizerBase
else:  # what the command line takes
    ModelOrName = TokenizerOrName = str
MAX_NAMED_WEIGHTS = 3
"""Missing weights that an error message lists by name."""
ADD_FLAG = "add --model.{0} true, in Python {0}=True"
"""Advice to set a flag, which the functions in Python have as an argument."""
WRAPPER_PREFIX = re.compile(r"(_orig_mod\.|module\.)+")
"""What torch.compile and parallel training put in front of the names of weights."""


def _load_error(lm: str, error: Exception, flag: str = MODEL_FLAG, what: str = "", other: str = "") -> UserError:
    """Make the error for a model or tokenizer that transformers fails to load, with advice where its cause is known.

    Args:
        lm: Its name.
        error: What transformers raises.
        flag: The flag that names it.
        what: What of it cannot be loaded, if not the model.
        other: What else would do.
    """
    message = str(error)
    advice = f"Give a model's folder, a hub id that this machine can reach, or {EMBEDDED}{other}"
    if "gated repo" in message:
        advice = f"Accept its licence at {constants.ENDPOINT}/{lm}, then log in with: hf auth login"
    elif "trust_remote_code" in message:
        advice = f"It comes with its own code: if you trust that code, {ADD_FLAG.format('trust_remote_code')}"
    elif "safetensors" in message and any(words in message for words in ("does not appear to have", "no file named")):
        pickles = "Weights are read as safetensors; if you trust this model's pickles"
        advice = f"{pickles}, {ADD_FLAG.format('allow_pickle')}"
    elif "gguf" in message and isinstance(error, ImportError):
        advice = "Get what reads the file with: pip install gguf"
    elif "compressed-tensors" in message and isinstance(error, ImportError):
        advice = "It reads these weights"
    elif any(words in message for words in ("device_map", "dispatched on", "accelerator")):
        advice = "Change --model.device_map, or leave it out"
    elif "bitsandbytes" in message:
        advice = "Leave --model.quantization out, or install a bitsandbytes that supports this machine"
    return UserError(f"{flag}: cannot load {what}{lm!r} ({one_line(error)}). {advice}")


def load_lm(
    lm: ModelOrName | os.PathLike[str] = EMBEDDED,
    revision: str | None = None,
    dtype: DTypeName | torch.dtype = "float32",
    device: str | int | torch.device | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    device_map: DeviceMap = None,
    quantization: QuantizationName | None = None,
) -> PreTrainedModel:
    """Load a causal language model, frozen and in evaluation mode.

    Args:
        lm: Folder, hub id, or `embedded`; a GGUF file; or an adapter of PEFT, which is merged into its base model. A
            model that is loaded already is frozen in place; its precision stays, and so does its device by default.
        revision: Branch, tag or commit on the hub.
        dtype: Precision of the weights.
        device: Device to load it to, for example `cuda`; by default the CPU.
        allow_pickle: Also read weights in pickle format. Loading such a file can run code.
        trust_remote_code: Run the Python files that come with the model.
        device_map: Spreads the layers over devices through accelerate: `auto` or `balanced`; the path of a JSON file
            from module names to GPU numbers, `cpu` or `disk`; or such a dictionary.
        quantization: Quantises the weights through bitsandbytes while they are loaded: `8bit` or `4bit`.

    Raises:
        UserError: If the model cannot be found or loaded, or lacks weights; if there is no such precision or device; or
            if a loaded model is given with settings of its loading.
    """
    dtype = _known_dtype(dtype)
    if isinstance(lm, str | os.PathLike):
        model = _load(os.fspath(lm), revision, dtype, allow_pickle, trust_remote_code, device_map, quantization)
    else:
        model = unwrapped(lm)
        _refuse_settings(model, {"revision": revision, "device_map": device_map, "quantization": quantization}, dtype)
    model = model.eval().requires_grad_(False)
    if device is not None:
        try:
            location = torch.device(device)
        except RuntimeError as error:
            raise UserError(f"there is no device {device!r}. Give cpu, cuda, or one of them: cuda:1") from error
        move_model(model, location)
    return model


def _known_dtype(dtype: str | torch.dtype) -> DTypeName:
    name = str(dtype).removeprefix("torch.")
    if name not in get_args(DTypeName):
        raise UserError(f"dtype is {dtype!r}; choose one of {', '.join(get_args(DTypeName))}")
    return cast(DTypeName, name)


def _refuse_settings(model: PreTrainedModel, settings: dict[str, Any], dtype: DTypeName) -> None:
    """Refuse settings that a loaded model cannot follow."""
    given = next((name for name, value in settings.items() if value is not None), None)
    if given is not None:
        raise UserError(f"{given} is for a model that is loaded by its name, and this one is loaded. Leave {given} out")
    if dtype not in ("float32", dtype_name(model)):
        raise UserError(f"dtype is {dtype}, and the loaded model is in {dtype_name(model)}. Leave dtype out")


def _load(
    lm: str,
    revision: str | None,
    dtype: DTypeName,
    allow_pickle: bool,
    trust_remote_code: bool,
    device_map: DeviceMap = None,
    quantization: QuantizationName | None = None,
) -> PreTrainedModel:
    """Load a model by its name: its own weights, or an adapter merged into those of its base model."""
    try:
        source = model_source(lm, revision)
        base = base_of_adapter(source)
        if base is None:
            with placement_options(device_map, quantization, getattr(torch, dtype)) as placement:
                model = _load_weights(lm, source, dtype, allow_pickle, trust_remote_code, placement)
                settle_placement(model, placement)
                _decompress(model)
        elif device_map is not None or quantization is not None:
            raise UserError(
                f"model.lm: {lm} is an adapter, which is merged into whole weights. Leave --model.device_map and "
                "--model.quantization out, or save the merged model and give its folder"
            )
        else:
            model = _load(*base, dtype, allow_pickle, trust_remote_code)
            model = merge_adapter(lm, source, model, allow_pickle)
    except UserError:
        raise
    except Exception as error:  # a damaged or foreign folder can raise anything
        raise _load_error(lm, error) from error
    model.name_or_path = lm
    return model


def _load_weights(
    lm: str,
    source: ModelSource,
    dtype: DTypeName,
    allow_pickle: bool,
    trust_remote_code: bool,
    placement: dict[str, Any],
) -> PreTrainedModel:
    # the config comes first: reading it is cheap, and its errors are the clearest
    config = AutoConfig.from_pretrained(source.location, trust_remote_code=trust_remote_code, **source.options)
    if not trust_remote_code:
        _require_causal(lm, config)

    def load(**renaming: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            source.location,
            dtype=getattr(torch, dtype),
            use_safetensors=None if allow_pickle else True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **renaming,
            **placement,
            **source.options,
        )

    model, loading_info = load()
    prefixes = {match[0] for name in loading_info["unexpected_keys"] if (match := WRAPPER_PREFIX.match(name))}
    if prefixes and loading_info["missing_keys"]:
        model, loading_info = load(key_mapping={f"^{re.escape(prefix)}": "" for prefix in prefixes})
    _require_all_weights(lm, loading_info)
    return model


def _decompress(lm: PreTrainedModel) -> None:
    """Have compressed-tensors decompress its weights now; in a forward of ours, the first one, it would fail."""
    if hasattr(lm, "ct_decompress_hook"):
        with torch.no_grad():
            lm(torch.zeros(1, 1, dtype=torch.long, device=lm.device))


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


def load_tokenizer(
    lm: TokenizerOrName = EMBEDDED,
    revision: str | None = None,
    trust_remote_code: bool = False,
    flag: str = MODEL_FLAG,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; one without a padding token pads with its end token, on the right.

    Args:
        lm: Name of the model, as in `load_lm`; or a tokenizer that is loaded already, which is changed in place.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run the Python files that come with the tokenizer.
        flag: The flag that names it, for messages.

    Raises:
        UserError: If the tokenizer cannot be found or loaded.
    """
    is_loaded = isinstance(lm, PreTrainedTokenizerBase)
    tokenizer = lm if is_loaded else _load_tokenizer(lm, revision, trust_remote_code, flag)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.padding_side = "right"
    return tokenizer


def _load_tokenizer(lm: str, revision: str | None, trust_remote_code: bool, flag: str) -> PreTrainedTokenizerBase:
    source = model_source(lm, revision, flag)
    try:
        base = base_of_adapter(source)
        if base is not None and not (source.folder and (source.folder / "tokenizer_config.json").is_file()):
            return _load_tokenizer(*base, trust_remote_code, flag)
        return AutoTokenizer.from_pretrained(source.location, trust_remote_code=trust_remote_code, **source.options)
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises plain exceptions
        what = "the tokenizer of " if source.folder else ""  # of a hub id it is not known whether there is a model
        other = "; if the model comes without a tokenizer, name another's with --data.tokenizer"
        raise _load_error(lm, error, flag, what, other if flag == MODEL_FLAG else "") from error


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
        with in_memory(lm.get_submodule(name.rpartition(".")[0])):
            flat = lm.get_parameter(name).detach().flatten()
            values = flat[:: max(1, len(flat) // 64)][:64].to(torch.bfloat16).float()
            yield f"{name} {tuple(parameter.shape)}".encode()
            yield values.cpu().numpy().tobytes()
