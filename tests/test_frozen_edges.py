"""Edges under the full model's attention patterns and norms."""

import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import one_line
from edge_reference import BUILDS, LlamaReference, edge_lm, text
from families import BY_NAME
from studies import measured, resample_little

import masklearn as ml
from masklearn.cli import evaluate, train
from masklearn.cli.evaluate_text_bank import EvaluatedTexts
from masklearn.cli.study_banks import bank_names
from masklearn.density import Study
from masklearn.edges import EdgeGates, EdgeGraph, EdgeLM, FrozenText, importance
from masklearn.mask_file import ModelId
from masklearn.text_bank import PositionBank


@pytest.mark.parametrize("name", BUILDS)
def test_all_edges_open_are_the_full_model(name: str) -> None:
    model = edge_lm(BY_NAME[name].build())
    graph = model.record(text(6)).graph
    found = FrozenText.of(model, text(6)).hidden(graph.gates(graph.exists[None].float()))[0]
    assert torch.allclose(found, model.full(text(6)), atol=1e-5)


def test_frozen_streams_are_those_of_a_model_run_edge_by_edge(llama: EdgeLM) -> None:
    """Patterns and norms are kept from a first run with all edges open."""
    graph = EdgeGraph.causal(2, 4, 5)
    reference = LlamaReference(llama.layout.lm, text(5), frozen=True)
    reference.run(graph.gates(torch.ones(1, graph.n_places)))
    flat = torch.rand(4, graph.n_places, generator=torch.Generator().manual_seed(0))
    flat[1], flat[2] = (flat[1] > 0.2).float(), (flat[2] > 0.4).float()
    found = FrozenText.of(llama, text(5)).hidden(graph.gates(flat))
    for row, hidden in zip(flat, found, strict=True):
        assert torch.allclose(hidden, reference.run(graph.gates(row[None]))[0], atol=1e-5)
    assert (found - llama.hidden(text(5), graph.gates(flat))).norm(dim=-1).min() > 1e-2


@pytest.mark.parametrize("name", BUILDS)
def test_without_mlps_the_effects_of_edges_into_a_vertex_add_up(name: str) -> None:
    """Closing two heads into the last token changes the output by the sum of what closing each one does."""
    model = edge_lm(BY_NAME[name].build())
    graph = importance(model, text(5)).graph
    last = graph.gates(torch.arange(graph.n_places)[None]).attention[0, -1, :, -1]  # (heads, sources)
    closed = torch.ones(4, graph.n_places)
    closed[1:3, last[0]] = 0
    closed[2:, last[1]] = 0
    gates = graph.gates(closed)
    gates.mlp[:, -1] = 0  # the MLP of the last layer reads both
    none, first, both, second = FrozenText.of(model, text(5)).hidden(gates)
    assert torch.allclose(none - both, (none - first) + (none - second), atol=1e-5)
    none, first, both, second = model.hidden(text(5), gates)
    assert (none - both - (none - first) - (none - second)).norm() > 1e-4


def test_a_frozen_model_is_left_as_it_was(llama: EdgeLM) -> None:
    before = llama.full(text(5))
    graph = EdgeGraph.causal(2, 4, 5)
    FrozenText.of(llama, text(4))
    FrozenText.of(llama, text(5)).hidden(graph.gates(torch.zeros(2, graph.n_places)))
    assert torch.equal(llama.full(text(5)), before)
    assert not any("forward" in vars(module) for module in llama.layout.lm.modules())


def test_an_edge_bank_is_evaluated_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    quiet = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    flags = ["--model.graph", "edges", "--model.method", "s-trace", "--model.sizes", "[0.02, 1.0]"]
    flags += ["--data.task", "names", "--data.limit", "2", "--run.dir", str(tmp_path / "run"), *quiet]
    assert train(flags) == 0
    both = ["--edges", "[recomputed, frozen]", "--keep_residual", "true", "--study", "false"]
    assert evaluate(["--mask", str(tmp_path / "run"), *both, "--out", str(tmp_path / "both")]) == 0
    found = {one["edges"]: one for one in json.loads((tmp_path / "both" / "metrics.json").read_text())}
    assert all(f"patterns and norms {mode}, controls with all residual" in one["text"] for mode, one in found.items())
    assert [one["keep_residual"] for one in found.values()] == [True, True]
    small, whole = ([found[mode]["sizes"][i]["kl"] for mode in found] for i in (0, 1))
    assert abs(small[0] - small[1]) > 1e-3
    assert max(whole) < 1e-5
    studies: list[Study] = []

    def keep(out: Path, study: Study, config: object) -> tuple[list[Path], Path]:
        studies.append(study)
        return [], out

    monkeypatch.setattr("masklearn.cli.study_command.draw_study", keep)
    assert evaluate(["--mask", str(tmp_path / "run"), "--track", "false", "--out", str(tmp_path / "study")]) == 0
    assert sorted(studies[0].tables["thoughts"]["s"].unique()) == [0.02, 1.0]  # all edges are the full model


def test_what_is_not_finite_is_a_dash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen subgraphs of few edges of a deep model: their streams can grow without bound."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    resample_little(monkeypatch)
    flags = ["--model.graph", "edges", "--model.method", "s-trace", "--model.sizes", "[0.02, 0.1, 0.5, 1.0]"]
    flags += ["--data.task", "names", "--data.limit", "2", "--run.dir", str(tmp_path / "run")]
    assert train([*flags, "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]) == 0
    finite = FrozenText.hidden

    def grown(self: FrozenText, gates: EdgeGates) -> torch.Tensor:
        few = gates.attention.flatten(1).sum(1) < 30
        return finite(self, gates).masked_fill(few[:, None], math.nan)

    monkeypatch.setattr(FrozenText, "hidden", grown)
    out = tmp_path / "study"
    command = ["--mask", str(tmp_path / "run"), "--edges", "frozen", "--out", str(out), "--track", "false"]
    assert evaluate(command) == 0
    found = json.loads((out / "metrics.json").read_text(), parse_constant=not_json)
    assert [row["kl"] is None for row in found["sizes"]] == [True, False, False, False]
    assert [group["kl"][0] for group in found["groups"].values()] == [None, None]
    page = (out / "report.html").read_text()
    assert not re.findall(r"\bnan\b", page, flags=re.I)
    assert "No density curve: outputs of subgraphs are not finite." in page
    (data,) = re.findall(r'id="picker-data">(.*?)</script>', page, flags=re.S)
    (bank,) = json.loads(data, parse_constant=not_json)
    assert [tv is None for tv in bank["inputs"][0]["tv"]] == [True, False, False, False]
    assert bank["inputs"][0]["top"][0][1::2] == [None] * 6
    findings = pd.read_csv(out / "tables" / "findings.csv")
    assert set(findings["verdict"]) == {"not known"}
    assert findings["measured"].tolist()[0] == "outputs of s-trace and random subgraphs are not finite"


def not_json(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_every_bank_of_a_study_has_a_name_of_its_own() -> None:
    def of(folder: str) -> Any:
        mask, path = measured([[1.0] * 4]).mask, Path(f"{folder}/mask.safetensors")
        return SimpleNamespace(path=path, ablation=mask.ablation, mask=mask, altered_column=None)

    assert bank_names([of(name) for name in ("x/a", "y/a", "x/a (1)")]) == ["a (2)", "a (3)", "a (1)"]


def test_a_study_names_how_banks_of_edges_were_evaluated() -> None:
    bank: Any = SimpleNamespace(
        path=Path("runs/edges/mask.safetensors"),
        ablation=ml.Ablation(),
        mask=measured([[1.0] * 4]).mask,
        altered_column=None,
    )

    def of(conditions: dict[str, Any]) -> EvaluatedTexts:
        return EvaluatedTexts(bank.path, bank.mask, bank, bank, 0, conditions)

    modes = [of({"edges": mode, "keep_residual": keep}) for mode in ("recomputed", "frozen") for keep in (False, True)]
    expected = ["edges", "edges, controls keep residuals", "edges frozen", "edges frozen, controls keep residuals"]
    assert bank_names(modes) == expected
    row = measured([[1.0] * 4], conditions=modes[3].conditions, ablation="mean").row()
    assert (row["ablation"], row["learned under"]) == ("mean", "zero")
    assert (row["patterns and norms"], row["controls keep residuals"]) == ("frozen", True)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--edges", "frozen"], "edges frozen is for banks of edges"),
        (["--keep_residual", "true"], "keep_residual is for banks of edges"),
        (["--baselines", "[greedy]"], "baselines is for masks of nodes"),
        (["--part", "train"], "part is for masks of nodes"),
        (["--baseline_texts", "3"], "Leave out --baseline_texts"),
    ],
)
def test_flags_that_a_bank_does_not_follow_are_refused(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, kept = ModelId("tiny", None, "0"), ((torch.tensor([0]),),)
    PositionBank(kept, (0.5,), (1,), (2,), ml.NodeGraph(1, 1), model, ("a",), "learned").save(tmp_path / "bank")
    assert evaluate(["--mask", str(tmp_path / "bank"), *flags]) == 2
    assert words in one_line(capsys)
