"""Trace one short forward of a model: which module's output is which other module's input."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from masklearn.models.forward_override import Forward, first_argument, first_output, override_forward


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: its first input and first output.

    The values are the very objects, not copies, so `is` tells whether one module's output is another's input. An
    object that was changed in place in between has a different version number.
    """

    input: Any
    input_version: int
    output: Any
    output_version: int

    @property
    def is_identity(self) -> bool:
        """Whether the module returned its input, as dropout does in evaluation mode."""
        return self.output is self.input

    def feeds(self, other: "ModuleCall") -> bool:
        """Whether the other call's input is this call's output, with no change in place in between."""
        return other.input is self.output and other.input_version == self.output_version


@dataclass(frozen=True)
class Trace:
    """The module calls of one forward, and its logits."""

    calls: dict[nn.Module, list[ModuleCall]]
    """The calls of every traced module, in order."""
    logits: Tensor
    """Shape (rows, tokens, vocabulary)."""

    @classmethod
    def of(cls, lm: PreTrainedModel, modules: Iterable[nn.Module], input_ids: Tensor) -> "Trace":
        """Run a model on token ids (rows, tokens) and record every call of the given modules."""
        calls: dict[nn.Module, list[ModuleCall]] = {}
        with ExitStack() as stack, torch.no_grad():
            for module in set(modules):
                record = override_forward(module, lambda forward, module=module: _recorded(module, forward, calls))
                stack.enter_context(record)
            logits = lm(input_ids=input_ids, use_cache=False).logits
        return cls(calls, logits)

    def single_call(self, module: nn.Module) -> ModuleCall | None:
        """Return the call of a module; None unless it was called exactly once."""
        calls = self.calls.get(module, [])
        return calls[0] if len(calls) == 1 else None

    def chain(self, start: nn.Module, candidates: Iterable[nn.Module]) -> list[nn.Module]:
        """Follow an output from module to module, as long as exactly one candidate takes it as its input.

        Returns:
            `start`, then the modules that follow it.
        """
        chain, candidates = [start], list(candidates)
        while (last := self.single_call(chain[-1])) is not None:
            successors = [
                module
                for module in candidates
                if module not in chain and (call := self.single_call(module)) is not None and last.feeds(call)
            ]
            if len(successors) != 1:
                break
            chain += successors
        return chain

    def output_submodule(self, module: nn.Module) -> nn.Module | None:
        """Return the innermost submodule whose output is the module's own output; None if there is none.

        Of those that have one input, too, it is the outermost: the others are inside of a wrapper, as of an adapter.
        """
        outer = self.single_call(module)
        found = None
        for submodule in module.modules():  # from the outside in
            call = self.single_call(submodule)
            if outer and call and submodule is not module and call.output is outer.output and not call.is_identity:
                before = self.single_call(found) if found else None
                found = found if before and before.input is call.input else submodule
        return found


def _recorded(module: nn.Module, forward: Forward, calls: dict[nn.Module, list[ModuleCall]]) -> Forward:
    """Return a forward that does the same and appends the call to `calls`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        value = first_argument(args, kwargs)
        input_version = _version(value)
        result = forward(*args, **kwargs)
        output = first_output(result)
        calls.setdefault(module, []).append(ModuleCall(value, input_version, output, _version(output)))
        return result

    return run


def _version(value: Any) -> int:
    """Return how often a tensor was changed in place, for example by adding a residual to it."""
    return value._version if isinstance(value, Tensor) else 0
