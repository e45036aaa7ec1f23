"""Evaluations that studies keep beside mask files."""

import shutil
from pathlib import Path

import pytest
import torch
from studies import resample_little
from text_files import write

from masklearn.cli import evaluate, train
from masklearn.cli.kept_evaluations import KeptEvaluations
from masklearn.cli.run_folder import EVALUATED_FOLDER
from masklearn.data import MaskData
from masklearn.evaluation import MeasuredBank, PerTextResults

RUN = ["--data.limit", "2", "--model.scope", "input", "--trainer.logger", "false", "--model.sizes"]
NODES = [*RUN, "[3, 9]", "--model.steps", "2", "--model.polish", "0"]
EDGES = [*RUN, "[0.1, 0.5]", "--model.graph", "edges", "--model.method", "s-trace", "--data.positions", "last"]


def measured(kl: float = 0.5) -> MeasuredBank:
    """One text under one mask of two nodes."""
    texts = {"kl": torch.tensor([[[kl]]]), "entropy": torch.tensor([1.5])}
    results = {"learned": PerTextResults(torch.tensor([[[[True, False]]]]), texts)}
    top = {"learned": (torch.tensor([[[7, 3]]]), torch.tensor([[[0.5, 0.25]]]))}
    return MeasuredBank([{"s": 1, "kl": kl, "ce": None}], torch.tensor([[[kl]], [[0.1]]]), results, top)


def test_what_was_measured_is_the_same_after_writing_and_reading() -> None:
    found = MeasuredBank.from_tensors(measured().to_tensors())
    assert found.rows == measured().rows
    assert found.by_group.tolist() == measured().by_group.tolist()
    assert found.results["learned"].masks.tolist() == [[[[True, False]]]]
    assert {name: values.tolist() for name, values in found.results["learned"].texts.items()} == {
        "kl": [[[0.5]]],
        "entropy": [1.5],
    }
    assert [tensor.tolist() for tensor in found.top["learned"]] == [[[[7, 3]]], [[[0.5, 0.25]]]]


def texts(folder: Path, *lines: str) -> MaskData:
    data = MaskData(path=str(write(folder / "texts.jsonl", list(lines))), scope="input")
    data.prepare_data()
    data.setup()
    return data


def test_an_evaluation_is_made_once_for_the_same_inputs(tmp_path: Path) -> None:
    """Another bank, other texts, another split and other conditions have measurements of their own."""
    data = texts(tmp_path, "mary went to the park", "john went to the school")
    others = texts(tmp_path, "mary went to the park", "john went to the park")
    kept, calls = KeptEvaluations(tmp_path / "kept", {"bank": "a"}), list[float]()

    def measure() -> MeasuredBank:
        calls.append(1)
        return measured(len(calls))

    def rows(kept: KeptEvaluations, data: MaskData = data, split: str = "test", **inputs: str) -> float:
        return kept.measured(data, split, inputs, measure)[0].rows[0]["kl"]  # pyright: ignore[reportArgumentType]

    assert [rows(kept), rows(kept)] == [1, 1]
    assert rows(KeptEvaluations(tmp_path / "kept", {"bank": "b"})) == 2
    assert rows(kept, others) == 3
    assert rows(kept, split="all") == 4
    assert rows(kept, ablation="mean") == 5
    assert [rows(kept), rows(kept, others), rows(kept, ablation="mean")] == [1, 3, 5]
    assert rows(KeptEvaluations(None, {})) == 6


@pytest.mark.parametrize("flags", [NODES, EDGES], ids=["nodes", "edges"])
def test_a_second_study_evaluates_nothing(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    resample_little(monkeypatch)
    monkeypatch.setattr("masklearn.cli.study_command.can_draw", lambda: False)
    run = tmp_path / "run"
    assert train([*flags, "--run.dir", str(run)]) == 0

    def study(name: str, *more: str) -> str:
        capsys.readouterr()
        assert evaluate(["--mask", str(run), "--track", "false", "--out", str(tmp_path / name), *more]) == 0
        return capsys.readouterr().out

    assert "Evaluated before" not in study("first")
    (file,) = (run / EVALUATED_FOLDER).iterdir()
    content = file.read_bytes()

    with monkeypatch.context() as patch:
        for name in ("evaluate", "evaluate_edges"):
            patch.delattr(f"masklearn.evaluation.{name}")
        assert str(file) in study("second")
    for first in (tmp_path / "first" / "tables").iterdir():
        assert (tmp_path / "second" / "tables" / first.name).read_bytes() == first.read_bytes()
    assert (tmp_path / "second" / "metrics.json").read_bytes() == (tmp_path / "first" / "metrics.json").read_bytes()

    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "Evaluated before" not in study("third")
    shutil.rmtree(run / EVALUATED_FOLDER)
    (run / EVALUATED_FOLDER).touch()
    assert "is not kept for other studies" in study("fourth")
