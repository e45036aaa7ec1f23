"""The cost of a run: counted by hand, estimated without a trace."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import GROUPS, SMALL, Run, texts, tiny_gpt2, tiny_llama
from lightning import Callback, Trainer
from torch import Tensor
from torch.testing import assert_close

import masklearn as ml
from masklearn import evaluation
from masklearn.ablation import Ablation
from masklearn.cli import cost_probe, train
from masklearn.cli.cost_table import PhaseCost, compared_costs, cost_table, duration
from masklearn.data.batching import StepSampler
from masklearn.gates import top
from masklearn.mask_file import Mask, ModelId
from masklearn.masking import CompiledSteps, MaskedLM, compiled, gated
from masklearn.masking import memory as masking_memory
from masklearn.training import cost, memory
from masklearn.training.cost import PhaseClock, learning_tokens, peak_memory
from masklearn.training.probe import seconds_per_scored_token

SHORT = [*SMALL, "--trainer.enable_progress_bar", "false", "--trainer.logger", "false", "--model.steps", "6"]
SHORT += ["--model.sizes", "[18]"]
pytestmark = pytest.mark.usefixtures("undrawn")


def bank(lm: MaskedLM, sizes: list[int]) -> Mask:
    """Random masks of three groups."""
    scores = torch.rand(3, len(sizes), lm.graph.n_nodes, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor(sizes)
    return Mask(top(scores, counts), scores, counts, lm.graph, ModelId("m", None, "f"), ("a", "b", "c"))


def batches() -> list[Any]:
    """Four texts of three groups, numbered from 0."""
    index = {group: i for i, group in enumerate(GROUPS)}
    return [b._replace(group=torch.tensor([index[g] for g in b.group.tolist()])) for b in texts()]


# --- counting ---------------------------------------------------------------------------------------------------------


def test_a_phase_within_another_stops_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 10.0, 13.0, 20.0, 100.0, 101.0])
    monkeypatch.setattr(cost.time, "monotonic", lambda: next(now))
    clock = PhaseClock()
    with clock.time("learning"), clock.time("polish"):
        pass
    with clock.time("evaluation"):
        pass
    assert clock.seconds == {"learning": 10.0 + 7.0, "choice": 0.0, "polish": 3.0, "evaluation": 1.0, "probe": 0.0}


def test_tokens_of_learning_are_those_of_the_texts_that_steps_get() -> None:
    data = ml.MaskData(task="mixed", limit=12, scope="input")
    data.setup()
    plan = data.block_plan(5, 3)
    lengths = [len(ids) for ids in data.parts["train"].ids]
    steps = list(StepSampler(data.train_indices_by_group, lengths, plan, seed=0))
    expected = sum(3 * 2 * lengths[text] for step in steps for text in step)  # two rows of each text; a backward is two
    found = learning_tokens(data, plan, 2, [group for block in plan.blocks for group in block])
    assert found == pytest.approx(expected)


def test_a_peak_is_seen_though_it_is_gone_at_the_end() -> None:
    with peak_memory(torch.device("cpu")) as low:
        pass
    with peak_memory(torch.device("cpu")) as high:
        block = torch.ones(2**26)  # 256 MiB
        for _ in range(5):
            block.mul_(1.0)
        del block
    assert high[0] > low[0] + 2**27


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_runs_as_many_subgraphs_as_it_is_said_to_and_the_full_model_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm, rows, full = MaskedLM(tiny_llama()), [0], [0]
    forward, run_full = MaskedLM.forward, MaskedLM.full

    def counted(self: MaskedLM, input_ids: Tensor, scored: Tensor, gates: Tensor, *args: Any) -> Tensor:
        rows[0] += len(gates) * len(input_ids)
        return forward(self, input_ids, scored, gates, *args)

    def counted_full(self: MaskedLM, input_ids: Tensor, scored: Tensor) -> Tensor:
        full[0] += len(input_ids)
        return run_full(self, input_ids, scored)

    monkeypatch.setattr(MaskedLM, "forward", counted)
    monkeypatch.setattr(MaskedLM, "full", counted_full)
    evaluation.evaluate(lm, bank(lm, [2, 9]), batches())
    assert full[0] == 4
    assert rows[0] + full[0] == 4 * evaluation.subgraphs_evaluated(2, with_answers=False) == 4 * (2 * 21 + 1)


def test_kinds_measured_together_are_as_measured_alone() -> None:
    lm = MaskedLM(tiny_llama())
    generator = torch.Generator().manual_seed(3)
    kinds = [torch.rand(k, 3, lm.graph.n_nodes, generator=generator) > 0.4 for k in (70, 3)]  # more than one forward
    rows, by_group = evaluation.measure(lm, kinds, batches())
    alone = [evaluation.measure(lm, kind, batches()) for kind in kinds]
    for row, expected in zip(rows, alone[0][0] + alone[1][0], strict=True):
        assert row == pytest.approx(expected, abs=1e-6)
    assert_close(by_group, torch.cat([of_kind for _, of_kind in alone], 1))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_prints_its_cost_before_and_after(run: Run) -> None:
    before, after = run.output.index("Expected cost, from 4 steps"), run.output.index("Time: learning")
    assert before < run.output.index("Discretising masks") < after
    for phase in ("learning", "polish", "evaluation"):
        assert re.search(rf"^ *{phase} +(<= )?[\d.]+ ?[kMG]? +.*GiB$", run.output, re.MULTILINE)
        measured = run.metrics["cost"][phase]
        assert measured["tokens"] > 0 and measured["estimated_seconds"] > 0 and measured["seconds"] >= 0
    assert re.search(r"Expected end: \d\d:\d\d:\d\d, in ", run.output)


def test_an_estimate_is_printed_and_nothing_is_written(
    in_an_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train([*SHORT, "--run.estimate", "true"]) == 0
    printed = capsys.readouterr().out
    assert "Expected cost, from 4 steps" in printed and "Discretising" not in printed
    assert list(in_an_empty_folder.iterdir()) == []
    assert train([*SHORT, "--run.estimate", "true", "--run.resume", "true"]) == 2
    capsys.readouterr()
    assert train([*SHORT, "--run.estimate", "true", "--trainer.max_steps", "2"]) == 2
    assert "before its cost was measured, by --trainer.max_steps. Leave it out" in capsys.readouterr().err


def test_a_process_expects_to_make_the_masks_of_its_own_blocks(
    in_an_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the blocks are half of the scored tokens; without polish these are those of discretisation."""
    flags = ["--model.scope", "input", "--data.positions", "last", "--data.limit", "8", "--model.block", "2"]
    flags += ["--model.sizes", "[9]", "--model.steps", "5", "--model.polish", "0", "--trainer.logger", "false"]

    def tokens(*others: str) -> float:
        assert train([*flags, *others]) == 0
        ((number, unit),) = re.findall(
            r"^ *discretisation +(?:<= )?([\d.]+) (k?)", capsys.readouterr().out, re.MULTILINE
        )
        return float(number) * (1000 if unit else 1)

    shards = [tokens("--run.dir", "shards", "--run.shard", f"{i}/2") for i in (1, 2)]
    assert sum(shards) == pytest.approx(tokens("--run.dir", "whole"), rel=0.02)


def test_what_is_timed_ran_once_before() -> None:
    """The first forward of a shape allocates its memory; if it is compiled, it even records a CUDA graph."""
    shapes: list[torch.Size] = []

    class Probe(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            masked_lm = pl_module.masked_lm
            forward = masked_lm.forward

            def recorded(input_ids: Tensor, scored: Tensor, gates: Tensor, *others: Any) -> Tensor:
                shapes.append(gates.shape)
                return forward(input_ids, scored, gates, *others)

            masked_lm.forward = pl_module.score_rows = recorded  # not compiled
            assert all(seconds > 0 for seconds in seconds_per_scored_token(pl_module, 500))

    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, callbacks=[Probe()],
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    data = ml.MaskData(task="names", positions="last", limit=20, batch_size=4)
    trainer.fit(ml.MaskLearner(sizes=[4, 18], steps=1, polish=1), datamodule=data)
    once = len(shapes) // 2
    assert once > 2 and shapes[:once] == shapes[once:]


def test_compiling_counts_once_and_not_as_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock on which a step takes a second, and compiling a shape fifty."""
    clock, step, shapes = [0.0], ml.MaskLearner.training_step, list[torch.Size]()
    for module in (cost_probe, compiled):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def tick(*args: Any) -> Any:
        clock[0] += 1
        return step(*args)

    def compile_slowly(steps: CompiledSteps, ablation: Ablation, args: tuple[Tensor, ...]) -> Any:
        clock[0] += 50
        shapes.append(args[0].shape)

        def run(input_ids: Tensor, gates: Tensor, *_: Tensor) -> Tensor:
            with gated(steps.masked_lm.lm, gates, ablation, steps.masked_lm.layout):
                return steps.masked_lm.layout.hidden(input_ids)

        return run

    monkeypatch.setattr(ml.MaskLearner, "training_step", tick)
    monkeypatch.setattr(CompiledSteps, "_compile", compile_slowly)
    probe, at_the_probe = cost_probe.CostProbe(stop=True), list[int]()
    monkeypatch.setattr(probe, "_cost_of_polish", lambda *_: at_the_probe.append(len(shapes)) or PhaseCost(0, 0, 0))
    learner = ml.MaskLearner(sizes=[4, 18], steps=20, compile=True, draws=1)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[probe], enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, max_steps=20,
    )  # fmt: skip
    trainer.fit(learner, datamodule=ml.MaskData(task="mixed", limit=40, batch_size=1))
    assert at_the_probe[0] > 1  # some of them in the steps that are timed; texts differ in length
    assert probe.costs["learning"].seconds - 50 * at_the_probe[0] == pytest.approx(20, rel=0.4)


def test_memory_is_that_of_the_peak() -> None:
    """What is freed counts."""
    device = torch.device("cpu")
    before = cost.memory_so_far(device)
    torch.ones(before // 4 + 2**25)  # of four bytes: more than the peak so far, and freed at once
    assert cost.memory_so_far(device) > before + 2**26


def test_the_probe_leaves_no_trace_in_the_masks(in_an_empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train([*SHORT, "--run.dir", "probed"]) == 0
    monkeypatch.setattr(cost_probe.CostProbe, "on_train_batch_end", lambda *_: None)
    assert train([*SHORT, "--run.dir", "unprobed"]) == 0
    probed, unprobed = (Path(name, "mask.safetensors").read_bytes() for name in ("probed", "unprobed"))
    assert probed == unprobed
    assert json.loads(Path("unprobed/metrics.json").read_text())["cost"] == {}
    assert json.loads(Path("probed/metrics.json").read_text())["cost"]


def test_an_estimate_says_what_would_fit_into_memory(
    in_an_empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("masklearn.training.probe.free_everywhere", lambda masked_lm: 2**20)
    assert train([*SHORT, "--run.estimate", "true", "--model.draws", "4"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not fit into memory" in line
    length = int(re.search(r"--data.max_length (\d+)", line)[1])  # pyright: ignore[reportOptionalSubscript]
    per_row = memory.bytes_per_row(MaskedLM(ml.load_lm()), length)
    assert 4 * per_row <= memory.ACTIVATION_SHARE * 2**20
    assert not (in_an_empty_folder / "runs").exists()


def test_every_phase_after_learning_has_a_bar(run: Run) -> None:
    for phase in ("Polish", "Evaluation"):
        assert re.search(rf"{phase}: 100%", run.output)


def test_durations_and_the_table_read_well() -> None:
    assert [duration(s) for s in (0.42, 59.4, 61, 7500)] == ["0.4 s", "59 s", "1 min 01 s", "2 h 05 min"]
    costs = {"learning": PhaseCost(64_000, 12, 2**30), "polish": PhaseCost(1.28e6, 30, 2**31)}
    table = cost_table(costs, 40, "4 steps")  # pyright: ignore[reportArgumentType]
    assert "learning       64 k     12 s  1.0 GiB\n  polish  <= 1.28 M  <= 30 s  2.0 GiB" in table


def test_without_polish_its_phase_is_named_after_what_is_left_of_it() -> None:
    costs = {"polish": PhaseCost(1.28e6, 30, 2**31)}
    table = cost_table(costs, 40, "4 steps", polishes=False)  # pyright: ignore[reportArgumentType]
    assert "discretisation    1.28 M  30 s  2.0 GiB" in table
    seconds = {"polish": {"seconds": 2.0, "estimated_seconds": 3.0}}
    assert compared_costs(seconds, polishes=False) == "Time: discretisation 2.0 s (3.0 s expected)"
    assert compared_costs(seconds) == "Time: polish 2.0 s (3.0 s expected)"


def test_the_probe_of_memory_reads_no_more_tokens_than_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a token beyond the table of positions ends the process. The peak before the probe is not forgotten."""
    peaks = [9000]
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: peaks[-1])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: peaks.append(1000 + 5 * 8 * 64))
    masked_lm = MaskedLM(tiny_gpt2())
    assert masked_lm.layout.context == 64
    assert masking_memory._measured_bytes_per_token(masked_lm) == 5
    assert masking_memory.peak_bytes(masked_lm.device) == 9000
    masking_memory._earlier_peaks.clear()
