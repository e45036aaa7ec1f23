"""Adapters of PEFT: a folder or hub id that holds one is loaded on its base model and merged into the weights."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from masklearn.errors import UserError
from masklearn.models.sources import ModelSource
from masklearn.models.unwrapping import unwrapped

SAFE_WEIGHTS = "adapter_model.safetensors"


def base_of_adapter(source: ModelSource) -> tuple[str, str | None] | None:
    """Return the name of an adapter's base model and its revision, if that is known; None for a whole model."""
    folder = source.folder
    if "gguf_file" in source.options or (folder and (folder / "config.json").is_file()):
        return None
    config = find_adapter_config_file(source.location, **source.options)
    if config is None:
        return None
    known = json.loads(Path(config).read_text(encoding="utf-8"))
    return known["base_model_name_or_path"], known.get("revision")


def merge_adapter(lm: str, source: ModelSource, base: PreTrainedModel, allow_pickle: bool) -> PreTrainedModel:
    """Return the base model with the adapter merged into its weights.

    Raises:
        UserError: If peft is not installed, if the weights are pickles that are not allowed, or if the adapter is of a
            kind that has no weights to merge.
    """
    if not find_spec("peft"):
        raise UserError(f"model.lm: {lm} is an adapter, which peft loads. Get it with: pip install peft")
    if source.folder and not allow_pickle and not (source.folder / SAFE_WEIGHTS).is_file():
        raise UserError(
            f"model.lm: {lm} holds no {SAFE_WEIGHTS}. Weights are read as safetensors; if you trust this adapter's "
            "pickles, add --model.allow_pickle true"
        )
    from peft import PeftModel  # optional

    model: Any = PeftModel.from_pretrained(base, source.location, **source.options)
    unwrapped(model)  # refuses adapters of the prompt, which cannot be merged
    return model.merge_and_unload()
