"""The transformers model inside of what people wrap around it: compiled, parallel and adapter models."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import PreTrainedModel

from masklearn.errors import UserError


def unwrapped(lm: Any) -> PreTrainedModel:
    """Return the transformers model inside of a compiled, parallel or PEFT model; a bare model is returned as it is.

    The adapters of a PEFT model are layers of the model inside, so they stay in effect.

    Raises:
        UserError: If there is no transformers model inside, or if it works only together with its wrapper.
    """
    while True:
        if isinstance(lm, nn.Module) and "_orig_mod" in lm._modules:
            lm = lm._orig_mod
        elif isinstance(lm, PreTrainedModel):
            return lm
        elif isinstance(lm, DataParallel | DistributedDataParallel):
            lm = lm.module
        elif callable(getattr(lm, "get_base_model", None)):
            lm = _without_peft(lm)
        else:
            raise UserError(
                f"a {type(lm).__name__} is no causal language model of transformers. Give the model that "
                "AutoModelForCausalLM loads, or its folder or hub id to load_lm"
            )


def _without_peft(lm: Any) -> nn.Module:
    """Return the model inside of a PEFT model, whose layers hold the adapters."""
    for name, config in lm.peft_config.items():
        if config.is_prompt_learning:
            raise UserError(
                f"the adapter {name!r} is {config.peft_type.value}: it adds trained vectors to the prompt, outside of "
                "the model's layers, and cannot be gated. Give an adapter of the weights, such as LoRA, or the model "
                "without it"
            )
        if config.is_adaption_prompt:
            raise UserError(
                f"the adapter {name!r} is {config.peft_type.value}: it wraps the attention, so that heads cannot be "
                "told apart, nor the adapter merged. Give an adapter of the weights, such as LoRA, or none"
            )
    return lm.get_base_model()


@contextmanager
def running_eagerly() -> Iterator[None]:
    """Run without compiled code, which would ignore gates: that of a model, of its layers, or of `generate`.

    Raises:
        UserError: Inside of compiled code that cannot be compiled together with the gates: it may run what was
            compiled without them.
    """
    if torch.compiler.is_compiling():  # together with the gates
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        except RuntimeError as error:
            raise UserError(
                "gates do not hold inside of compiled code, which may run what was compiled without them. Enter gated "
                "outside: with gated(...): compiled_function(...)"
            ) from error
        yield


def name_of(lm: Any) -> str:
    """Return the folder or hub id that a model was loaded from; the name of its class if it was made in memory."""
    model = unwrapped(lm)
    return model.name_or_path or type(model).__name__
