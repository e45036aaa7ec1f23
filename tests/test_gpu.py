"""Runs on a GPU: every ablation, scope, resuming, evaluation and study, in bfloat16 and float32; about three minutes.

    pytest -m gpu -n 0

Without a GPU they are skipped. `MASKLEARN_TEST_ACCELERATOR=cpu` runs the same tests on the CPU.
"""

import gc
import json
import os
from pathlib import Path

import pytest
import torch
from families import BY_NAME
from text_files import TEXTS

import masklearn as ml
from masklearn import objective
from masklearn.ablation import ABLATIONS
from masklearn.cli import train_cli
from masklearn.cli.checkpoints import checkpoint_step
from masklearn.cli.entry_points import evaluate, train
from masklearn.masking import CompiledSteps, MaskedLM

ACCELERATOR = os.environ.get("MASKLEARN_TEST_ACCELERATOR", "gpu")
DTYPES = ("float32", "bfloat16")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ACCELERATOR == "gpu" and not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore"),
]
RUN = [
    *("--trainer.accelerator", ACCELERATOR, "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"),
    *("--model.sizes", "[4, 34]", "--model.steps", "6", "--model.polish", "1", "--model.polish_budget", "0.5"),
]
NAMES = ["--data.task", "names", "--data.limit", "24", "--data.positions", "last"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def metrics(folder: str) -> list[dict[str, float]]:
    return json.loads(Path(folder, "metrics.json").read_text())["sizes"]


def require_equal_stages(folder: str, other: str) -> None:
    """The KL of the gates, and of the masks that they give before polish, is that of the other run, up to rounding."""
    runs = [json.loads(Path(name, "metrics.json").read_text())["discretisation"] for name in (folder, other)]
    for found, expected in zip(*runs, strict=True):
        for stage in ("soft", "cut"):
            assert found[stage] == pytest.approx(expected[stage], rel=0.1, abs=0.02)


def require_sound(folder: str, sizes: tuple[int, ...] = (4, 34)) -> ml.Mask:
    """Masks of exactly these sizes, with finite metrics; the larger one is closer to the full model."""
    bank, found = ml.Mask.load(folder), metrics(folder)
    assert bank.mask.sum(-1).unique(dim=0).tolist() == [list(sizes)]
    assert all(0 <= row["tv"] <= 1 and row["kl"] >= 0 for row in found)
    assert found[0]["tv"] > found[1]["tv"]  # the larger one lacks two nodes, so this holds after few steps
    return bank


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_every_ablation_and_its_evaluation(ablation: str, dtype: str) -> None:
    assert train([*RUN, *NAMES, "--model.ablation", ablation, "--model.dtype", dtype, "--run.dir", "run"]) == 0
    require_sound("run")
    assert evaluate(["--mask", "run", "--study", "false", "--out", "out"]) == 0
    for found, learned in zip(metrics("out"), metrics("run"), strict=True):
        assert found["kl"] == pytest.approx(learned["kl"], rel=0.02 if dtype == "bfloat16" else 1e-4, abs=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_of_the_values_of_a_column(dtype: str) -> None:
    rows = [{"text": text, "kind": "ab"[i % 2]} for i, text in enumerate(TEXTS * 2)]
    Path("texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--data.path", "texts.jsonl", "--model.scope", "column:kind", "--model.dtype", dtype]
    assert train([*RUN, *flags, "--run.dir", "run"]) == 0
    assert require_sound("run").groups == ("a", "b")


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_of_single_texts_and_their_study(dtype: str) -> None:
    flags = ["--data.limit", "6", "--model.scope", "input", "--model.dtype", dtype, "--run.dir", "run"]
    assert train([*RUN, *NAMES, *flags]) == 0
    require_sound("run")
    assert evaluate(["--mask", "run", "--study", "true", "--track", "false", "--out", "study"]) == 0
    assert Path("study", "report.html").is_file()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stopped_run_goes_on(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_cli, "CHECKPOINT_INTERVAL", 2)
    flags = [*RUN, *NAMES, "--model.dtype", dtype]
    assert train([*flags, "--run.dir", "whole"]) == 0
    assert train([*flags, "--trainer.max_steps", "3", "--run.dir", "run"]) == 2
    assert checkpoint_step(Path("run", "checkpoints", "last.ckpt")) == 2
    assert train(["--config", "run/config.yaml", "--run.resume", "true", "--trainer.max_steps", "-1"]) == 0
    resumed, whole = require_sound("run"), ml.Mask.load("whole")
    if ACCELERATOR == "cpu":  # sums on a GPU may be in another order
        assert torch.equal(resumed.mask, whole.mask)


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_steps_learn_like_eager_ones(dtype: str) -> None:
    if ACCELERATOR == "cpu":
        pytest.skip("compiling on a CPU takes minutes")
    for how in ("true", "false"):
        flags = ["--model.compile", how, "--model.dtype", dtype, "--run.dir", how]
        assert train([*RUN, *NAMES, *flags]) == 0
    require_equal_stages("true", "false")
    eager, graphs = require_sound("false"), require_sound("true")
    assert (eager.mask != graphs.mask).float().mean() <= 0.2


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_graphs_of_models_with_a_norm_after_the_attention(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Their gates are multiplied, and the backward of torch's own product would wait for the device."""
    if ACCELERATOR == "cpu":
        pytest.skip("there are no CUDA graphs on a CPU")
    masked_lm = MaskedLM(BY_NAME[name].build().cuda())
    steps, ids = CompiledSteps(masked_lm), torch.arange(3, 19, device="cuda").view(2, 8)
    scored = torch.arange(ids.numel(), device="cuda")
    for _ in range(2):
        gates = torch.rand(3, 2, masked_lm.graph.n_nodes, device="cuda").round().requires_grad_()
        found, expected = (run(ids, scored, gates) for run in (steps, masked_lm))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        of_both = (torch.autograd.grad(hidden.square().sum(), gates)[0] for hidden in (found, expected))
        torch.testing.assert_close(*of_both, atol=1e-3, rtol=1e-3)
    assert not steps.failed and "cannot be compiled" not in capsys.readouterr().out


def test_graphs_are_recorded_while_older_ones_are_garbage() -> None:
    if ACCELERATOR == "cpu":
        pytest.skip("there are no CUDA graphs on a CPU")
    threshold = gc.get_threshold()
    gc.set_threshold(20, 2, 2)  # collects so often that every recording would meet a collection
    try:
        for folder in ("first", "second"):
            assert train([*RUN, *NAMES, "--model.compile", "true", "--run.dir", folder]) == 0
    finally:
        gc.set_threshold(*threshold)
    require_equal_stages("second", "first")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_compiled_kl_learns_like_an_eager_one(
    dtype: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if ACCELERATOR == "cpu":
        pytest.skip("the KL is compiled on a GPU only")
    monkeypatch.setattr(objective, "MIN_FUSED_LOGITS", 1)
    for how in ("auto", "false"):
        assert train([*RUN, *NAMES, "--model.compile", how, "--model.dtype", dtype, "--run.dir", how]) == 0
    assert "cannot be compiled" not in capsys.readouterr().out
    require_equal_stages("auto", "false")
    eager, fused = require_sound("false"), require_sound("auto")
    assert (eager.mask != fused.mask).float().mean() <= 0.2


@pytest.mark.parametrize("graph", ["edges", "positions"])
def test_edges_and_positions_of_single_texts(graph: str) -> None:
    flags = [*RUN[:6], *NAMES, "--data.limit", "2", "--model.graph", graph, "--model.steps", "10"]
    assert train([*flags, "--model.sizes", "[0.02, 0.9]", "--run.dir", "run"]) == 0
    found = metrics("run")
    assert found[0]["kl"] > found[1]["kl"] >= 0
    assert evaluate(["--mask", "run", "--study", "false", "--out", "out"]) == 0
    for again, learned in zip(metrics("out"), found, strict=True):
        assert again["kl"] == pytest.approx(learned["kl"], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("device_map", ["auto", "balanced"])
def test_a_model_spread_by_accelerate(device_map: str) -> None:
    pytest.importorskip("accelerate")
    assert train([*RUN, *NAMES, "--model.device_map", device_map, "--run.dir", "run"]) == 0
    require_sound("run")


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantised_weights(bits: str) -> None:
    pytest.importorskip("bitsandbytes")
    if ACCELERATOR == "cpu" and bits == "4bit":
        pytest.skip("4-bit weights have no gradient on a CPU")
    flags = ["--model.quantization", bits, "--model.dtype", "bfloat16", "--run.dir", "run"]
    assert train([*RUN, *NAMES, *flags]) == 0
    require_sound("run")
