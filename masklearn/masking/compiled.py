"""Training steps, and the scoring of masks, in few fixed shapes: on a GPU as CUDA graphs, which launch a whole pass.

A model whose layers are small spends a pass launching operations. A graph records those of one forward and backward,
or of one forward, and replays them. Inputs are padded to few lengths, and the rows of scored masks to few numbers, so
that few shapes occur; padding changes no result. A model whose vocabulary is large spends a pass reading and writing
logits; the compiler fuses what the KL does with them.
"""

import gc
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import pad

from masklearn.ablation import Ablation
from masklearn.errors import UserError, one_line
from masklearn.masking.gating import gated
from masklearn.masking.masked_lm import MaskedLM, at_scored
from masklearn.masking.recording import Pass, no_waiting, recorded
from masklearn.masking.row_parts import is_device_failure, is_out_of_memory
from masklearn.models import is_placed
from masklearn.objective import FusedKL, kl_and_gradient, kl_in_place

CompileMode = bool | Literal["auto"]
"""Whether steps are compiled; auto: on a GPU, if the model is launch-bound."""
LAUNCH_BOUND_FLOPS = 4e11
"""A model is launch-bound if a step takes fewer operations of arithmetic for each layer: about a millisecond on a GPU,
in which a hundred operations are launched."""
BACKEND = "inductor"
"""Backend of `torch.compile`, which compiles steps where there are no CUDA graphs."""
MIN_LENGTH = 8
"""Shortest length to which inputs are padded."""
MIN_SCORED_TOKENS = 1024
"""Fewest tokens to which the rows of scored masks are padded: a graph of fewer takes as long."""

Shapes = tuple[bool, tuple[torch.Size, ...]]
"""Whether a pass has a gradient, and the shapes of its arguments."""


def compiling_pays(masked_lm: MaskedLM, tokens_per_step: int) -> bool:
    """Whether compiled steps of so many tokens are expected to be faster: on a GPU, if the model is launch-bound."""
    weights = sum(parameter.numel() for parameter in masked_lm.layout.sites[0].layer.parameters())
    return masked_lm.device.type == "cuda" and 6 * weights * tokens_per_step < LAUNCH_BOUND_FLOPS


def step_forward(masked_lm: MaskedLM, compiled: CompileMode, tokens_per_step: int) -> Callable[..., Tensor]:
    """What runs the rows of training steps of so many tokens, without prefixes: compiled, or `MaskedLM.forward`."""
    if is_placed(masked_lm.lm):  # hooks that bring activations and weights from device to device cannot be recorded
        compiled = False
    if compiled == "auto":
        compiled = compiling_pays(masked_lm, tokens_per_step)
    return CompiledSteps(masked_lm) if compiled else masked_lm.forward


def scoring_forward(masked_lm: MaskedLM, compiled: CompileMode) -> Callable[..., Tensor]:
    """What runs scored masks that share no prefix: on a GPU compiled where that pays, or `MaskedLM.forward` itself."""
    on_cpu = masked_lm.device.type == "cpu"
    return masked_lm.forward if on_cpu or not compiled or is_placed(masked_lm.lm) else CompiledScoring(masked_lm)


def fused_kl(masked_lm: MaskedLM, compiled: CompileMode) -> FusedKL | None:
    """What compares many logits where gates need a gradient: on a GPU `kl_and_gradient`, compiled; otherwise None."""
    return CompiledKL(type(masked_lm.lm).__name__) if compiled and masked_lm.device.type == "cuda" else None


def padded_length(n_tokens: int, context: int | None) -> int:
    """The length to which inputs are padded: a power of two, or one and a half of it, within the model's context."""
    length = MIN_LENGTH
    while length < n_tokens:
        length = length * 3 // 2 if length & (length - 1) == 0 else length * 4 // 3
    return max(n_tokens, min(length, context or length))


class CompiledSteps:
    """Stands in for a `MaskedLM` in training steps. The first pass of every shape is compared with an eager one.

    What cannot be compiled runs eagerly; the first failure says so in one line.
    """

    max_shapes = 8
    """Shapes that are compiled; further ones run eagerly, as each keeps memory."""

    def __init__(self, masked_lm: MaskedLM) -> None:
        self.masked_lm, self.failed = masked_lm, False
        self._passes = dict[Shapes, Pass]()
        self._too_large = set[Shapes]()  # memory ran out while they were compiled
        self._pool = torch.cuda.graph_pool_handle() if masked_lm.device.type == "cuda" else None
        # held, so that what a graph reads is not freed if another tensor takes the place of one of them
        self._weights, self._addresses = list[Tensor](), list[int]()
        self.compile_seconds = 0.0
        """Seconds that went into compiling so far."""
        masked_lm.row_limit.holders.add(self)

    def __call__(self, input_ids: Tensor, scored: Tensor, gates: Tensor, corrupted: Tensor | None = None) -> Tensor:
        """As `MaskedLM.forward`, without prefixes."""
        hidden = self._compiled_hidden(input_ids, gates, corrupted)
        if hidden is None:
            return self.masked_lm(input_ids, scored, gates, corrupted)
        return at_scored(hidden.unflatten(0, (len(gates), -1)), scored)

    def _compiled_hidden(self, input_ids: Tensor, gates: Tensor, corrupted: Tensor | None) -> Tensor | None:
        """Last hidden states of all rows, shape (rows, tokens, width); None if they cannot be or are not compiled."""
        self._forget_moved_weights()
        k, n_tokens = len(gates), input_ids.shape[1]
        length = padded_length(n_tokens, self.masked_lm.layout.context)
        n_rows = k * len(input_ids)
        more_rows, more_tokens = self.padded_rows(n_rows, length) - n_rows, (0, length - n_tokens)
        grad = torch.is_grad_enabled()
        if not self.takes(n_rows + more_rows, length, grad):
            return None
        ablation = self.masked_lm.ablation_on(None if corrupted is None else pad(corrupted, more_tokens))
        rows = pad(pad(input_ids, more_tokens).repeat(k, 1), (0, 0, 0, more_rows))
        args = rows, pad(gates.flatten(0, 1), (0, 0, 0, more_rows)), *ablation.heads, *ablation.mlps
        if (run := self._pass_for(ablation, args)) is None:
            return None
        self.masked_lm.row_limit.ran_whole(n_rows, rows.numel(), grad)  # memory may run out in what follows
        return run(*args)[:n_rows, :n_tokens]

    def padded_rows(self, n_rows: int, length: int) -> int:
        """The number of rows to which so many rows of a length are padded: steps always have the same."""
        del length
        return n_rows

    def takes(self, n_rows: int, length: int, grad: bool) -> bool:
        """Whether passes of this shape are compiled: if they fit into memory in one part."""
        return n_rows * length <= self.masked_lm.row_limit.max_tokens[grad]

    def _pass_for(self, ablation: Ablation, args: tuple[Tensor, ...]) -> Pass | None:
        """The compiled pass for arguments of these shapes; None if there is none."""
        key = args[1].requires_grad, tuple(arg.shape for arg in args)
        if key in self._passes or self.failed or key in self._too_large or len(self._passes) == self.max_shapes:
            return self._passes.get(key)
        start, problem = time.monotonic(), ""
        try:
            self._passes[key] = self._compile(ablation, args)
        except UserError:
            raise
        except Exception as error:  # compilers raise errors of many kinds
            problem, self.failed = one_line(error)[:200], not is_out_of_memory(error)
        if problem:  # the error and what it held are gone
            rows, length = args[0].shape
            what = type(self.masked_lm.lm).__name__ if self.failed else f"a pass of {rows} rows of {length} tokens"
            print(f"{self.what} without --model.compile: {what} cannot be compiled ({problem})", flush=True)
            self._too_large.add(key)
            self.forget()  # all take their memory from one pool
        self.compile_seconds += time.monotonic() - start
        return self._passes.get(key)

    def _forget_moved_weights(self) -> None:
        """Drop all passes if weights have moved: a graph reads them where they were."""
        addresses = [weight.data_ptr() for weight in self._weights]
        if not addresses or addresses != self._addresses:
            lm = self.masked_lm.lm
            self._weights = [*lm.parameters(), *lm.buffers()]  # a model that moves gets new buffers
            self._addresses = [weight.data_ptr() for weight in self._weights]
            self.forget()

    def forget(self) -> None:
        """Drop all passes, and free the memory of those that are CUDA graphs, which refer to themselves."""
        self._passes.clear()
        if self._pool is not None:
            gc.collect()
            self._pool = torch.cuda.graph_pool_handle()

    what = "Steps run"
    """What the line says that runs without compilation."""

    def _compile(self, ablation: Ablation, args: tuple[Tensor, ...]) -> Pass:
        """Compile the pass for arguments of these shapes, and compare it with the eager pass.

        Raises:
            Exception: If it cannot be compiled, or gives other results.
        """
        masked_lm, n_heads = self.masked_lm, len(ablation.heads)

        def eager(input_ids: Tensor, gates: Tensor, *values: Tensor) -> Tensor:
            given = replace(ablation, heads=values[:n_heads], mlps=values[n_heads:])
            with gated(masked_lm.lm, gates, given, masked_lm.layout):
                return masked_lm.layout.hidden(input_ids)

        # ids and gates are copied: a graph reads its arguments where these samples are
        sample = tuple(arg.detach().clone().requires_grad_(arg.requires_grad) for arg in args[:2])
        others = args[0].roll(1, 1), args[1].detach().flip(1).requires_grad_(args[1].requires_grad)
        values = tuple(arg.detach().requires_grad_(arg.requires_grad) for arg in args[2:])
        with no_waiting() if self._pool is not None else nullcontext():
            expected = _outcome(eager, (*others, *values))
        if self._pool is None:
            traced = make_fx(eager, tracing_mode="fake", _allow_non_fake_inputs=True)(*sample, *values)
            compiled: Pass = torch.compile(traced, backend=BACKEND, dynamic=False)
        else:
            compiled = recorded(eager, (*sample, *values), self._pool, type(masked_lm.lm).__name__)
        for found, one in zip(_outcome(compiled, (*others, *values)), expected, strict=True):
            tolerance = torch.finfo(masked_lm.lm.dtype).eps ** 0.5  # half of the digits
            if not (found - one).norm() <= tolerance * one.norm():
                raise ValueError("the compiled pass gives other results")
        return compiled


class CompiledKL:
    """`kl_and_gradient`, compiled when it is first called. If that fails, it is `kl_in_place`, after one line.

    Args:
        model: Name of the model's class, for that line.
    """

    def __init__(self, model: str) -> None:
        self.model, self.failed = model, False
        self._compiled: FusedKL | None = None

    def __call__(self, full: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """As `kl_and_gradient`; `masked` may be overwritten."""
        if not self.failed:
            try:
                return self._compiled(full, masked) if self._compiled else self._first(full, masked)
            except Exception as error:  # compilers raise errors of many kinds
                if is_out_of_memory(error) or is_device_failure(error):
                    raise
                self.failed = True
                print(f"The KL is computed without --model.compile: that of {self.model} cannot be compiled "
                      f"({one_line(error)[:200]})", flush=True)  # fmt: skip
        kl, gradient = kl_in_place(full, masked, 1.0, True)
        assert gradient is not None
        return kl, gradient

    def _first(self, full: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """The first call, without the compiler's advice on how to change the code; importing it takes seconds."""
        compiled: FusedKL = torch.compile(kl_and_gradient, backend=BACKEND, dynamic=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\._inductor")
            found = compiled(full, masked)
        self._compiled = compiled
        return found


class CompiledScoring(CompiledSteps):
    """Stands in for a `MaskedLM` where masks are scored: any number of rows, with and without gradients.

    Rows are padded to a power of two. Forwards that keep the device busy by themselves run eagerly, as do those under
    resample ablation, whose values belong to single rows.
    """

    max_shapes = 32
    what = "Masks are scored"

    def padded_rows(self, n_rows: int, length: int) -> int:
        """A power of two, with at least `MIN_SCORED_TOKENS` tokens."""
        return 1 << (max(n_rows, MIN_SCORED_TOKENS // length) - 1).bit_length()

    def takes(self, n_rows: int, length: int, grad: bool) -> bool:
        """Whether such a forward is launch-bound, and fits into memory."""
        pays = self.masked_lm.ablation.name != "resample" and compiling_pays(self.masked_lm, n_rows * length)
        return pays and super().takes(n_rows, length, grad)


def _outcome(run: Pass, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Hidden states of a pass, and the gradients of a weighted sum of them if there are any, in float32."""
    hidden = run(*args).float()
    if not hidden.requires_grad:
        return (hidden.clone(),)
    weights = torch.linspace(-1, 1, hidden.shape[-1], device=hidden.device)
    inputs = [arg for arg in args if arg.requires_grad]
    return (hidden.detach().clone(), *(g.float() for g in torch.autograd.grad((hidden * weights).sum(), inputs)))
