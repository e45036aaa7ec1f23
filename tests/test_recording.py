"""CUDA graphs, with stand-ins for CUDA's functions: what is recorded, and what happens where that fails."""

import gc
import weakref
from typing import Any

import pytest
import torch
from conftest import tiny_llama
from passes import IDS, run_steps
from torch import Tensor

from masklearn.errors import UserError
from masklearn.masking import CompiledSteps, MaskedLM
from masklearn.models import Layout


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> tuple[CompiledSteps, dict[str, Any]]:
    """Steps as on a GPU, and what takes the place of CUDA's functions: `record` makes a graph of a pass."""
    steps, cuda = CompiledSteps(MaskedLM(tiny_llama())), dict[str, Any]()
    cuda |= {
        "record": lambda run, sample: run,
        "empty_cache": lambda: None,
        "stream": "main",
        "collects": [],
        "sync": [0],
    }

    def make(run: Any, sample: Any, **_: Any) -> Any:
        cuda["collects"].append(gc.isenabled())
        cuda["stream"] = "capture"
        graph = cuda["record"](run, sample)
        cuda["stream"] = "main"
        return graph

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: cuda["stream"])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: cuda.update(stream=stream))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: cuda["empty_cache"]())
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: cuda["sync"][-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: cuda["sync"].append(mode))
    steps._pool = (0, 0)
    return steps, cuda


def fail(error: Exception) -> Any:
    def raise_it(*_: Any, **__: Any) -> Any:
        raise error

    return raise_it


def test_no_garbage_is_collected_while_a_graph_is_recorded(graphs: Any) -> None:
    steps, cuda = graphs
    run_steps(steps)
    cuda["record"] = fail(RuntimeError("cannot be recorded"))
    run_steps(steps, 3)
    assert cuda["collects"] == [False, False] and gc.isenabled() and steps.failed


def test_a_pass_in_which_the_cpu_waits_for_the_gpu_is_not_recorded(
    graphs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The eager pass raises there; a recording would fail, and in some versions of torch leave CUDA unusable."""
    steps, cuda = graphs
    hidden = Layout.hidden

    def reads_back(layout: Layout, *args: Any, **kwargs: Any) -> Tensor:
        if cuda["sync"][-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return hidden(layout, *args, **kwargs)

    monkeypatch.setattr(Layout, "hidden", reads_back)
    run_steps(steps)
    assert steps.failed and not cuda["collects"]
    assert cuda["sync"] == [0, "error", 0]
    assert "LlamaForCausalLM cannot be compiled (called a synchronizing CUDA operation)" in capsys.readouterr().out


def test_a_failed_recording_leaves_the_stream_and_frees_what_was_recorded(graphs: Any) -> None:
    steps, cuda = graphs

    def in_a_cycle(run: Any, sample: Any) -> Any:
        graph: Any = lambda *args: run(*args)  # noqa: E731
        graph.itself = graph
        return graph

    cuda["record"] = in_a_cycle
    run_steps(steps)
    (graph,) = map(weakref.ref, steps._passes.values())
    cuda["record"] = fail(RuntimeError("operation not permitted when stream is capturing"))
    run_steps(steps, 3)
    assert steps.failed and cuda["stream"] == "main" and graph() is None


def test_a_failed_recording_from_which_cuda_does_not_recover_ends_the_run(graphs: Any) -> None:
    steps, cuda = graphs
    cuda["record"], cuda["empty_cache"] = fail(RuntimeError("not permitted")), fail(RuntimeError("captures_underway"))
    with pytest.raises(UserError, match=r"\(not permitted\)\. Start a new run with --model\.compile false"):
        run_steps(steps)


def test_a_graph_that_does_not_read_its_arguments_is_not_used(graphs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    steps, cuda = graphs

    def constant(run: Any, sample: Any) -> Any:
        return lambda *args: run(*sample)

    cuda["record"] = constant
    with torch.no_grad():
        steps(IDS, torch.ones_like(IDS, dtype=torch.bool), torch.rand(2, 2, steps.masked_lm.graph.n_nodes))
    assert steps.failed and "gives other results" in capsys.readouterr().out


def test_a_shape_for_which_memory_runs_out_runs_eagerly_alone(graphs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What it had taken of the memory that all graphs share is freed, and with it the other graphs."""
    steps, cuda = graphs
    run_steps(steps)
    record, cuda["record"] = cuda["record"], fail(torch.OutOfMemoryError("CUDA out of memory"))
    run_steps(steps, 3)
    assert not steps._passes
    cuda["record"] = record
    run_steps(steps)
    run_steps(steps, 3)
    assert len(steps._passes) == 1 and not steps.failed
    assert len(cuda["collects"]) == 3
    assert capsys.readouterr().out == (
        "Steps run without --model.compile: a pass of 6 rows of 8 tokens cannot be compiled (CUDA out of memory)\n"
    )


def test_memory_that_runs_out_after_a_graph_halves_the_rows(graphs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    steps, _ = graphs
    errors: list[Exception] = [torch.OutOfMemoryError("CUDA out of memory")]

    def work() -> Tensor:
        found = run_steps(steps)
        if errors:
            raise errors.pop()
        return found

    assert steps.masked_lm.row_limit.retry(work).shape == (2, 14, 24)
    assert "goes on with 16 tokens" in capsys.readouterr().out and not steps._passes
