"""Compiled steps give the results of eager ones, on few shapes, and a model that cannot be compiled runs eagerly."""

from typing import Any

import pytest
import torch
from conftest import tiny_llama
from families import FAMILIES
from lightning import Trainer
from torch import Tensor
from torch.testing import assert_close

import masklearn as ml
from masklearn.ablation import Ablation
from masklearn.masking import CompiledSteps, MaskedLM, compiled, compiling_pays
from masklearn.masking.compiled import CompiledScoring, padded_length


@pytest.fixture(autouse=True)
def quick_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")


def outcome(run: Any, ids: Tensor, gates: Tensor, corrupted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    leaf = gates.clone().requires_grad_()
    hidden = run(ids, torch.ones_like(ids, dtype=torch.bool), leaf, corrupted)
    weights = torch.linspace(-1, 1, hidden.shape[-1])
    return hidden.detach(), torch.autograd.grad((hidden * weights).sum(), leaf)[0]


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
