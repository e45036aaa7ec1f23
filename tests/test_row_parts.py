"""Memory that runs out halves the rows of a forward; gradients, scores and runs stay what they were."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GROUPS, texts, tiny_llama
from lightning import Trainer
from torch import Tensor
from torch.testing import assert_close

import masklearn as ml
from masklearn.cli.entry_points import train
from masklearn.data import Batch
from masklearn.evaluation import measure
from masklearn.masking import MaskedLM
from masklearn.masking.row_parts import Rows, is_out_of_memory
from masklearn.models.forward_override import override_forward
from masklearn.selection.scorer import MaskScorer


class _Limited(torch.autograd.Function):
    """Runs out of memory in the backward of more than some rows."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, max_rows: int) -> Tensor:
        ctx.max_rows = max_rows
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        _require_memory(len(upstream), ctx.max_rows)
        return upstream, None


def _require_memory(rows: int, max_rows: int) -> None:
    if rows > max_rows:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@contextmanager
def memory_for(masked_lm: MaskedLM, max_rows: int, backward_rows: int = 1000) -> Iterator[None]:
    """Let the model fail on more rows than these, in the forward or only in the backward."""

    def limit(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            _require_memory(len(kwargs["input_ids"]), max_rows)
            output = forward(*args, **kwargs)
            output.last_hidden_state = _Limited.apply(output.last_hidden_state, backward_rows)
            return output

        return run

    with override_forward(masked_lm.layout.body, limit):
        yield


def inputs() -> tuple[Batch, Tensor]:
    batch = next(iter(ml_data().loader("train")))
    return batch, torch.rand(4, len(batch.input_ids), 36, generator=torch.Generator().manual_seed(0))


def ml_data() -> ml.MaskData:
    data = ml.MaskData(task="mixed", limit=30, batch_size=5)
    data.setup("fit")
    return data


@pytest.mark.parametrize("indices", [False, True], ids=["boolean", "indices"])
@pytest.mark.parametrize("max_rows", [1, 3, 12])
def test_a_forward_in_parts_has_the_same_output_and_gradient(
    max_rows: int, indices: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    masked_lm, (batch, gates) = MaskedLM(ml.load_lm()), inputs()
    scored = batch.positions if indices else batch.scored
    found = []
    for limit in (1000, max_rows):
        leaf = gates.clone().requires_grad_()
        with memory_for(masked_lm, limit):
            hidden = masked_lm(batch.input_ids, scored, leaf)
            weights = torch.linspace(-1, 1, hidden.numel()).view_as(hidden)
            found.append((hidden.detach(), *torch.autograd.grad((hidden * weights).sum(), leaf)))
    for expected, other in zip(*found, strict=True):
        assert_close(other, expected, atol=1e-4, rtol=1e-4)
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.startswith("Memory ran out: learning goes on with") for line in lines)


def test_other_errors_and_single_rows_are_not_tried_again() -> None:
    masked_lm, (batch, gates) = MaskedLM(ml.load_lm()), inputs()
    with memory_for(masked_lm, 0), pytest.raises(torch.OutOfMemoryError):
        masked_lm(batch.input_ids, batch.scored, gates)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"))


def test_parts_hold_every_row_once() -> None:
    gates = torch.arange(12.0).view(3, 4, 1)
    rows = Rows(torch.zeros(4, 5, dtype=torch.long), torch.ones(4, 5, dtype=torch.bool), gates)
    for max_tokens in (1, 7, 10, 20, 39, 59, 60):
        parts = rows.split(max_tokens)
        kept = torch.cat([torch.cat([part.gates for part in inputs if part.gates is not None], 1) for inputs in parts])
        assert torch.equal(kept, gates)
        assert all(part.n_tokens <= max(5, max_tokens) for inputs in parts for part in inputs)


@pytest.mark.parametrize("max_rows", [1, 3])
def test_scores_gradients_and_metrics_stay_the_same(max_rows: int) -> None:
    masked_lm = MaskedLM(tiny_llama())
    scorer, n_nodes = MaskScorer(masked_lm, texts(), GROUPS), masked_lm.graph.n_nodes
    masks = torch.rand(6, 3, n_nodes, generator=torch.Generator().manual_seed(0)) > 0.4
    several = [batch._replace(group=torch.zeros_like(batch.group)) for batch in texts()]
    expected = scorer(masks), scorer.gradient(masks[0]), measure(masked_lm, masks[:, :1], several)[1]
    with memory_for(masked_lm, max_rows):
        found = scorer(masks), scorer.gradient(masks[0]), measure(masked_lm, masks[:, :1], several)[1]
    for other, one in zip(found, expected, strict=True):
        assert_close(other, one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("limits", [(7, 1000), (1000, 7)], ids=["forward", "backward"])
def test_a_run_that_runs_out_of_memory_learns_the_same_gates(
    limits: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    learned, logged = [], []
    for max_rows in ((1000, 1000), limits):
        learner, data = ml.MaskLearner(sizes=[4, 13], steps=4, draws=4, polish=0), ml_data()
        trainer = Trainer(
            accelerator="cpu", max_steps=4, logger=False, enable_checkpointing=False, log_every_n_steps=2,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        )  # fmt: skip
        learner.load()
        with memory_for(learner.masked_lm, *max_rows):
            trainer.fit(learner, datamodule=data)
        learned.append(learner.bank.log_odds.detach())
        logged.append(trainer.logged_metrics)
    assert_close(learned[1], learned[0], atol=1e-3, rtol=1e-3)
    for name, value in logged[0].items():
        assert_close(logged[1][name], value, atol=1e-3, rtol=1e-3)
    # 20 rows, then 10, then 5; a shorter text has more rows at as many tokens
    assert capsys.readouterr().out.count("Memory ran out: learning") in (2, 3)


def test_a_device_that_fails_leaves_a_run_that_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    flags = ["--data.task", "names", "--data.limit", "24", "--model.steps", "4", "--model.polish", "0"]
    flags += ["--model.sizes", "[8]", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    step = ml.MaskLearner.training_step

    def failing(learner: ml.MaskLearner, *args: Any) -> Tensor:
        if learner.global_step == 2:
            raise RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA")
        return step(learner, *args)

    with monkeypatch.context() as patched:
        patched.setattr(ml.MaskLearner, "training_step", failing)
        assert train([*flags, "--run.dir", "run"]) == 2
    error = capsys.readouterr().err
    assert "the device failed (CUDA error: unspecified launch failure)" in error and "--run.resume true" in error
    assert train(["--config", "run/config.yaml", "--run.resume", "true"]) == 0
    assert (tmp_path / "run" / "mask.safetensors").is_file()


def test_others_free_their_memory_when_what_failed_is_gone(masked_lm: MaskedLM) -> None:
    """The error's traceback holds what has failed, so that nothing would be free before."""
    failed, seen = list[weakref.ref[Tensor]](), list[bool]()

    class Holder:
        def forget(self) -> None:
            seen.append(failed[0]() is None)

    holder, limit = Holder(), masked_lm.row_limit
    limit.holders.add(holder)

    def work() -> int:
        if failed:
            return 1
        activations = torch.zeros(3)
        failed.append(weakref.ref(activations))
        limit.ran_whole(2, 8, True)
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert limit.retry(work) == 1
    assert seen == [True]
