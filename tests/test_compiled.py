"""Compiled steps give the results of eager ones, on few shapes, and a model that cannot be compiled runs eagerly."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny_llama
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Callback, Trainer
from passes import IDS, outcome, run_steps
from torch import Tensor
from torch.testing import assert_close

import masklearn as ml
from masklearn import objective
from masklearn.ablation import Ablation
from masklearn.masking import CompiledSteps, MaskedLM, compiled, compiling_pays, fused_kl
from masklearn.masking.compiled import CompiledKL, CompiledScoring, padded_length
from masklearn.objective import chunked_kl, kl_and_gradient, kl_in_place
from masklearn.training.staying import StaysOnDevice


@pytest.fixture(autouse=True)
def quick_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")


@pytest.mark.parametrize(("name", "ablation"), [("gpt2", "mean-positional"), ("gpt2", "resample"), ("gemma2", "zero")])
def test_compiled_steps_have_the_eager_output_and_gradient(name: str, ablation: str) -> None:
    masked_lm = MaskedLM(next(family for family in FAMILIES if family.name == name).build())
    generator = torch.Generator().manual_seed(0)
    ids, other = torch.randint(3, 40, (2, 2, 9), generator=generator)
    if ablation == "resample":
        masked_lm.ablation = Ablation("resample")
    elif ablation != "zero":
        masked_lm.ablation = masked_lm.mean_ablation([(other, torch.ones_like(other, dtype=torch.bool))], True)
    steps = CompiledSteps(masked_lm)
    lengths = (9, 8, 9) if ablation == "resample" else (9,)
    for length in lengths:
        gates = torch.rand(3, 2, masked_lm.graph.n_nodes, generator=generator)
        corrupted = other[:, :length] if ablation == "resample" else None
        expected = outcome(masked_lm, ids[:, :length], gates, corrupted)
        for found, one in zip(outcome(steps, ids[:, :length], gates, corrupted), expected, strict=True):
            assert_close(found, one, atol=1e-4, rtol=1e-4)
    assert not steps.failed and len(steps._passes) == len(set(lengths))


def test_lengths_are_padded_to_two_an_octave_within_the_context() -> None:
    assert [padded_length(n, None) for n in (2, 8, 9, 12, 13, 16, 17, 25, 100)] == [8, 8, 12, 12, 16, 16, 24, 32, 128]
    assert padded_length(100, 110) == 110 and padded_length(60, 64) == 64 and padded_length(70, 64) == 70


@pytest.mark.parametrize("cause", ["model", "results"])
def test_a_model_that_cannot_be_compiled_runs_eagerly_after_one_line(
    cause: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    masked_lm = MaskedLM(tiny_llama())
    if cause == "model":  # a length that depends on values cannot be traced
        site = masked_lm.layout.sites[1].mlp
        read: Any = lambda _, args, output: output * output.isfinite().all().item()  # noqa: E731
        site.register_forward_hook(read)
    else:
        monkeypatch.setattr(compiled, "make_fx", lambda eager, **_: lambda *args: lambda *same: 2 * eager(*same))
        monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    steps, ids = CompiledSteps(masked_lm), torch.arange(3, 17).view(2, 7)
    gates = torch.rand(2, 2, masked_lm.graph.n_nodes)
    for _ in range(2):
        for found, expected in zip(outcome(steps, ids, gates), outcome(masked_lm, ids, gates), strict=True):
            assert torch.equal(found, expected)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "LlamaForCausalLM cannot be compiled" in printed


def test_a_compiled_run_learns_the_masks_of_an_eager_one() -> None:
    learned = []
    for compile_steps in (False, True):
        learner = ml.MaskLearner(sizes=[4, 13], steps=4, draws=4, polish=0, compile=compile_steps)
        trainer = Trainer(
            accelerator="cpu", max_steps=4, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(learner, datamodule=ml.MaskData(task="names", positions="last", limit=20, batch_size=4))
        learned.append(learner.bank.log_odds.detach())
    assert_close(learned[1], learned[0], atol=1e-3, rtol=1e-3)


def test_auto_compiles_nothing_on_a_cpu() -> None:
    assert not compiling_pays(MaskedLM(tiny_llama()), 1)


def test_scored_masks_run_in_few_shapes_with_and_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "compiling_pays", lambda masked_lm, n_tokens: n_tokens <= 1024)
    monkeypatch.setattr(compiled, "MIN_SCORED_TOKENS", 512)
    masked_lm = MaskedLM(tiny_llama())
    scoring, generator = CompiledScoring(masked_lm), torch.Generator().manual_seed(0)
    for k, n_inputs, n_tokens in ((3, 2, 7), (5, 2, 8), (1, 3, 6), (50, 2, 8), (90, 2, 8)):
        ids = torch.randint(3, 40, (n_inputs, n_tokens), generator=generator)
        gates = torch.rand(k, n_inputs, masked_lm.graph.n_nodes, generator=generator).round()
        with torch.no_grad():
            scored = torch.ones_like(ids, dtype=torch.bool)
            assert_close(scoring(ids, scored, gates), masked_lm(ids, scored, gates), atol=1e-4, rtol=1e-4)
        if k < 50:
            for found, expected in zip(outcome(scoring, ids, gates), outcome(masked_lm, ids, gates), strict=True):
                assert_close(found, expected, atol=1e-4, rtol=1e-4)
    rows = sorted((grad, shapes[0][0]) for grad, shapes in scoring._passes)
    assert not scoring.failed and rows == [(False, 64), (False, 128), (True, 64)]  # 180 rows are not launch-bound


def test_passes_follow_weights_that_have_moved() -> None:
    masked_lm = MaskedLM(tiny_llama())
    steps, ids = CompiledSteps(masked_lm), torch.arange(3, 17).view(2, 7)
    gates, recorded = torch.rand(2, 2, masked_lm.graph.n_nodes), list[Any]()
    for _ in range(2):
        for found, expected in zip(outcome(steps, ids, gates), outcome(masked_lm, ids, gates), strict=True):
            assert_close(found, expected, atol=1e-4, rtol=1e-4)
        recorded += steps._passes.values()
        for weight in masked_lm.lm.parameters():  # as when a model goes to another device and back
            weight.data = 1.1 * weight.data
    outcome(steps, ids, gates)
    assert len(steps._passes) == 1 and len({*recorded, *steps._passes.values()}) == 3


def test_a_fit_leaves_the_model_where_recorded_passes_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    moves, apply = list[str](), MaskedLM._apply
    monkeypatch.setattr(MaskedLM, "_apply", lambda self, *args: moves.append("moved") or apply(self, *args))
    learner = ml.MaskLearner(sizes=[4], steps=2, polish=0)
    quiet_fit(learner, AtTheEnd(moves))
    assert moves[-1] == "learned" and "moved" in moves
    learner.cpu()  # a caller may move it
    assert moves[-1] == "moved"


def test_values_of_closed_nodes_are_moved_to_the_device_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    moves, move = list[torch.device](), Ablation.to
    monkeypatch.setattr(Ablation, "to", lambda self, device: moves.append(device) or move(self, device))
    learner = ml.MaskLearner(sizes=[4], steps=2, polish=0, ablation="mean")
    quiet_fit(learner)
    assert moves == [learner.masked_lm.device]


def test_a_fit_that_fails_gives_the_device_back(monkeypatch: pytest.MonkeyPatch) -> None:
    moves, apply = list[str](), MaskedLM._apply
    monkeypatch.setattr(MaskedLM, "_apply", lambda self, *args: moves.append("moved") or apply(self, *args))

    def fails(*_: Any) -> None:
        moves.append("failed")
        raise ValueError("no step")

    learner = ml.MaskLearner(sizes=[4], steps=2, polish=0)
    monkeypatch.setattr(learner, "training_step", fails)
    with pytest.raises(ValueError, match="no step"):
        quiet_fit(learner)
    assert moves[-2:] == ["failed", "moved"]


def quiet_fit(learner: ml.MaskLearner, *callbacks: Callback) -> None:
    trainer = Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(learner, datamodule=ml.MaskData(task="names", positions="last", limit=20))


class AtTheEnd(Callback):
    """Notes when learning is over."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.notes.append("learned")


def test_what_cannot_be_compiled_is_scored_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "compiling_pays", lambda *_: True)
    masked_lm = MaskedLM(tiny_llama())
    scoring, ids = CompiledScoring(masked_lm), torch.arange(3, 17).view(2, 7)
    scored, gates = torch.ones_like(ids, dtype=torch.bool), torch.ones(2, 2, masked_lm.graph.n_nodes)
    with torch.no_grad():
        for ablation, corrupted, n_tokens in (("resample", ids.flip(0), 1 << 20), ("zero", None, 28)):
            masked_lm.ablation, masked_lm.row_limit.max_tokens[False] = Ablation(ablation), n_tokens
            assert_close(scoring(ids, scored, gates, corrupted), masked_lm(ids, scored, gates, corrupted))
    assert not scoring._passes and not scoring.failed


@settings(deadline=None, max_examples=20)
@given(k=st.integers(1, 3), positions=st.integers(1, 4), half=st.booleans(), seed=st.integers(0, 99))
def test_the_fused_kl_and_its_gradient_are_those_of_the_eager_one(
    k: int, positions: int, half: bool, seed: int
) -> None:
    generator, dtype = torch.Generator().manual_seed(seed), torch.bfloat16 if half else torch.float32
    full, masked = (3 * torch.randn(shape, generator=generator) for shape in ((positions, 17), (k, positions, 17)))
    full, masked = full.to(dtype), masked.to(dtype)
    kl, gradient = kl_and_gradient(full, masked)
    expected_kl, expected = kl_in_place(full, masked.clone(), 1.0, True)
    assert expected is not None and gradient.dtype == expected.dtype == dtype
    assert_close(kl, expected_kl, atol=1e-6, rtol=1e-5)
    assert_close(gradient, expected, atol=1e-6, rtol=1e-2 if half else 1e-5)


def test_a_compiled_kl_takes_the_place_of_an_eager_one_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "MIN_FUSED_LOGITS", 3 * 4 * 17)
    monkeypatch.setattr(objective, "CHUNK_LOGITS", 3 * 2 * 17)  # the logits of all chunks count
    fused, runs = CompiledKL("Model"), list[int]()
    compiles: Any = torch.compile

    def counted(function: Any, **settings: Any) -> Any:
        run = compiles(function, **settings)
        return lambda *logits: runs.append(len(logits[1])) or run(*logits)

    monkeypatch.setattr(torch, "compile", counted)
    unembed: Any = torch.nn.Linear(5, 17).requires_grad_(False)
    full, masked = torch.randn(4, 5), torch.randn(3, 4, 5)
    expected = kl_with_gradient(full, masked, unembed)
    unembed.fused_kl = fused
    for found, one in zip(kl_with_gradient(full, masked, unembed), expected, strict=True):
        assert_close(found, one, atol=1e-6, rtol=1e-5)
    kl_with_gradient(full, masked[:2], unembed)  # too few logits
    kl_with_gradient(full, masked, unembed, 2.0)  # of other probabilities
    chunked_kl(full, masked, unembed)  # without a gradient
    assert runs == [3, 3]


def kl_with_gradient(
    full: Tensor, masked: Tensor, unembed: Any, inverse_temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    leaf = masked.clone().requires_grad_()
    kl = chunked_kl(full, leaf, unembed, inverse_temperature)
    return kl.detach(), torch.autograd.grad(kl.sum(), leaf)[0]


def test_a_kl_that_cannot_be_compiled_is_computed_eagerly_after_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fused, full, masked = CompiledKL("Model"), torch.randn(4, 17), torch.randn(3, 4, 17)
    errors: list[Exception] = [RuntimeError("CUDA out of memory"), ModuleNotFoundError("no triton")]

    def fails(*_: Tensor) -> tuple[Tensor, Tensor]:
        raise errors.pop(0)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    with pytest.raises(RuntimeError, match="out of memory"):  # which is mended by fewer tokens at a time
        fused(full, masked.clone())
    for _ in range(2):
        for found, expected in zip(
            fused(full, masked.clone()), kl_in_place(full, masked.clone(), 1.0, True), strict=True
        ):
            assert expected is not None and torch.equal(found, expected)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "Model cannot be compiled (no triton)" in printed


def test_the_kl_is_fused_on_a_gpu_only_and_not_if_compiling_is_off() -> None:
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda"), lm=None)
    assert isinstance(fused_kl(on_gpu, "auto"), CompiledKL) and fused_kl(on_gpu, False) is None
    assert fused_kl(MaskedLM(tiny_llama()), "auto") is None


def test_a_buffer_that_took_the_place_of_another_is_watched() -> None:
    masked_lm = MaskedLM(tiny_llama())
    steps, rotary = CompiledSteps(masked_lm), masked_lm.lm.model.rotary_emb
    run_steps(steps)
    masked_lm.to(torch.float64).to(torch.float32)  # new buffers
    for _ in range(2):
        run_steps(steps)
        before = [*steps._passes.values()]
        rotary.inv_freq.data = rotary.inv_freq.data.clone()
        run_steps(steps)
        assert len(before) == 1 and before != [*steps._passes.values()]


def test_a_fit_whose_end_fails_can_be_moved() -> None:
    class Learner(StaysOnDevice):
        moves = 0

        def _apply(self, fn: Any, recurse: bool = True) -> Any:
            self.moves += 1
            return super()._apply(fn, recurse)

    learner = Learner()
    learner.on_train_end()
    assert learner.cpu().moves == 0 and learner.cpu().moves == 1


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3_text", "olmo2", "exaone4", "glm4"])
def test_a_pass_waits_nowhere_for_the_device(name: str) -> None:
    """The profiler sees what a backward reads back; a mode that counts operations changes what `prod` does there."""
    masked_lm = MaskedLM(next(family for family in FAMILIES if family.name == name).build())
    gates = torch.rand(1, 2, masked_lm.graph.n_nodes).round().requires_grad_()
    with torch.profiler.profile() as profile:
        masked_lm(IDS, torch.arange(IDS.numel()), gates).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert "aten::mm" in names and not names & {"aten::_local_scalar_dense", "aten::nonzero"}
