"""One short forward of a model, watched: which module of a layer takes up what which other has put out."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from masklearn.models.forward_override import Forward, first, replaced


@dataclass(frozen=True)
class ModuleCall:
    """What a module was given and what it gave, once: the very objects, and how often each was changed in place."""

    given: Any
    given_version: int
    gave: Any
    gave_version: int

    @property
    def untouched(self) -> bool:
        """Whether it gave what it was given, as dropout does in evaluation."""
        return self.gave is self.given

    def feeds(self, other: "ModuleCall") -> bool:
        return other.given is self.gave and other.given_version == self.gave_version


@dataclass(frozen=True)
class Trace:
    """The passages of one forward, module by module, and the logits that it came to."""

    passages: dict[nn.Module, list[ModuleCall]]
    logits: Tensor

    @classmethod
    def of(cls, lm: PreTrainedModel, modules: Iterable[nn.Module], input_ids: Tensor) -> "Trace":
        """Watch some modules while the model reads a text."""
        passages: dict[nn.Module, list[ModuleCall]] = {}
        with ExitStack() as stack, torch.no_grad():
            for module in set(modules):
                stack.enter_context(replaced(module, lambda forward, module=module: _watch(module, forward, passages)))
            logits = lm(input_ids=input_ids, use_cache=False).logits
        return cls(passages, logits)

    def once(self, module: nn.Module) -> ModuleCall | None:
        """The passage of a module that is passed exactly once in a forward."""
        found = self.passages.get(module, [])
        return found[0] if len(found) == 1 else None

    def chain(self, start: nn.Module, modules: Iterable[nn.Module]) -> list[nn.Module]:
        """A module and those after it that each take up what the one before put out, and nothing else."""
        found, modules = [start], list(modules)
        while (last := self.once(found[-1])) is not None:
            takers = [m for m in modules if m not in found and (p := self.once(m)) is not None and last.feeds(p)]
            if len(takers) != 1:
                break
            found += takers
        return found

    def end(self, module: nn.Module) -> nn.Module | None:
        """The innermost part of a module that makes the module's output, if any part does."""
        whole = self.once(module)
        found = None
        for part in module.modules():
            passage = self.once(part)
            if whole and passage and part is not module and passage.gave is whole.gave and not passage.untouched:
                found = part  # parts come from the outside in
        return found


def _watch(module: nn.Module, forward: Forward, passages: dict[nn.Module, list[ModuleCall]]) -> Forward:
    def watched(*args: Any, **kwargs: Any) -> Any:
        given = first(args, kwargs)
        version = _version(given)
        output = forward(*args, **kwargs)
        gave = output[0] if isinstance(output, tuple | list) else output
        passages.setdefault(module, []).append(ModuleCall(given, version, gave, _version(gave)))
        return output

    return watched


def _version(value: Any) -> int:
    """How often a tensor was changed in place: adding a residual so makes another value of the same object."""
    return value._version if isinstance(value, Tensor) else 0
