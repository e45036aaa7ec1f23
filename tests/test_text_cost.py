"""What runs on single texts cost: their memory by the tokens of a text, and the estimate before a run."""

import sys
from pathlib import Path

import pytest
from conftest import one_line, refused, tiny_llama

from masklearn.cli import train
from masklearn.cli.text_methods import TEXT_METHODS
from masklearn.edges import EdgeGraph
from masklearn.shares import TextUnit
from masklearn.training.text_memory import SEARCH_BYTES, STEP_BYTES, TextMemory

QUIET = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]


def test_memory_is_the_polynomial_of_the_probed_rows_and_the_units_by_hand() -> None:
    memory = TextMemory.probed(lambda t: 100 + 20 * t + 3 * t * t, lambda t: 5 * t, n_sizes=2)
    assert memory.row == pytest.approx((100, 20, 3))
    of_units = 5 * 50 * (SEARCH_BYTES + 2 * STEP_BYTES)
    assert memory(50) == pytest.approx(2 * (100 + 1000 + 7500) + of_units)


@pytest.mark.parametrize("unit", ["edges", "positions"])
def test_the_memory_of_a_longer_text_is_foretold_by_short_ones(unit: TextUnit) -> None:
    """What a forward of one size keeps, measured at three lengths, against a fourth."""
    method = TEXT_METHODS[unit].load(tiny_llama(), 48)
    memory = method.memory(1)
    foretold = memory(48) - memory.n_units(48) * (SEARCH_BYTES + STEP_BYTES)
    assert foretold == pytest.approx(method.row_bytes(48), rel=0.1)
    # attention keeps T x T weights of every head and layer, which edges gate; positions need none of them
    assert (memory.row[2] > 4 * 3 * 4 * 2) == (unit == "edges")


def test_texts_that_do_not_fit_are_refused_with_a_length_that_fits() -> None:
    memory = TEXT_METHODS["edges"].load(tiny_llama(), 10).memory(3)
    memory.require(10, memory(10), "edges")
    message = refused(lambda: memory.require(60, memory(33), "edges"))
    assert f"a text of 60 tokens, with {EdgeGraph.count(3, 4, 60):,} edges" in message
    assert "--data.max_length 33." in message
    assert "--data.max_length 1." in refused(lambda: memory.require(60, 0, "edges"))


@pytest.fixture
def _own_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning warns if the process has arguments of its own."""
    monkeypatch.setattr(sys, "argv", ["train.py"])


@pytest.mark.usefixtures("_own_command_line")
@pytest.mark.parametrize(
    ("graph", "method", "tokens"),
    [
        ("positions", "learned", 2 * 18 * (3 * 20 + 2 + 1)),
        ("edges", "learned", 2 * 18 * (3 * 20 + 2 + 1)),
        ("edges", "s-trace", 18),
    ],
)
def test_an_estimate_is_printed_and_nothing_is_written(
    graph: str, method: str, tokens: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three texts of six tokens; two sizes, 20 steps with their backwards, checks before, after 10 and at the end."""
    flags = ["--model.graph", graph, "--model.method", method, "--model.sizes", "[0.1, 0.5]", "--model.steps", "20"]
    flags += ["--data.limit", "3", "--data.max_length", "6", "--data.truncation", "left", *QUIET]
    assert train([*flags, "--run.dir", str(tmp_path / "run"), "--run.estimate", "true"]) == 0
    output = capsys.readouterr().out
    (line,) = (line.split() for line in output.splitlines() if line.strip().startswith("choice"))
    assert float(line[1]) * (1000 if line[2] == "k" else 1) == pytest.approx(tokens, rel=0.01)
    assert ("Learning the longest text, of 6 tokens" in output) == (method == "learned")
    assert "Expected end" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_own_command_line")
def test_a_run_whose_texts_do_not_fit_does_not_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masklearn.cli.text_run.free_bytes", lambda _: 10**5)
    flags = ["--model.graph", "positions", "--data.limit", "3", "--run.dir", str(tmp_path / "run"), *QUIET]
    assert train(flags) == 2
    assert "--data.max_length" in one_line(capsys)
    assert not (tmp_path / "run").exists()
