"""Edge graphs through the command line: a run, its evaluation, a study beside other banks, and bad input."""

# pyright: reportGeneralTypeIssues=false
# (by pandas' own annotations a comparison may be anything)

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from families import BY_NAME
from studies import resample_little
from wandb_file import OfflineRun

import masklearn as ml
from masklearn.cli import evaluate, train
from masklearn.density import Study
from masklearn.edges import EdgeBank, EdgeLM, edge_counts, load_bank
from masklearn.models import Layout
from masklearn.report import curves
from masklearn.report.picker import picker_json
from masklearn.text_bank import TextBank
from masklearn.tracking.study import log_study
from masklearn.training.edge_learner import learn_edges

QUIET = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
EDGES = ["--model.graph", "edges", "--model.method", "s-trace", *QUIET]
TEXTS = ["--data.limit", "5", "--data.positions", "random", "--data.task", "names"]
SHARES = [0.01, 0.1, 0.3, 0.8]


@pytest.fixture(autouse=True)
def _own_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning warns if the process has arguments of its own."""
    monkeypatch.setattr(sys, "argv", ["train.py"])


@dataclass
class EdgeStudy:
    """A run on edges, one on positions and one on nodes of the same texts, and their study."""

    folder: Path
    output: str
    study: Study

    @property
    def bank(self) -> EdgeBank:
        bank = load_bank(self.folder / "edges" / "mask.safetensors")
        assert isinstance(bank, EdgeBank)
        return bank

    @property
    def metrics(self) -> dict:
        return json.loads((self.folder / "edges" / "metrics.json").read_text())

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / "study" / "tables" / f"{name}.csv")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> EdgeStudy:
    folder = tmp_path_factory.mktemp("edges")
    lines: list[str] = []
    studies: list[Study] = []

    def keep(out: Path, study: Study, config: object) -> tuple[list[Path], Path]:
        """In place of drawing, which takes half a minute."""
        studies.append(study)
        return [], out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])
        patch.setattr("masklearn.cli.study_command.draw_study", keep)
        resample_little(patch)
        patch.setattr("builtins.print", lambda *args, **_: lines.append(" ".join(map(str, args))))
        assert train([*EDGES, *TEXTS, "--model.sizes", str(SHARES), "--run.dir", str(folder / "edges")]) == 0
        nodes = ["--model.scope", "input", "--model.steps", "3", "--model.polish", "0", "--model.sizes", "[2, 9, 20]"]
        assert train([*nodes, *QUIET, *TEXTS, "--run.dir", str(folder / "nodes")]) == 0
        positions = ["--model.graph", "positions", "--model.steps", "1", "--model.sizes", str(SHARES)]
        assert train([*positions, *QUIET, *TEXTS, "--run.dir", str(folder / "positions")]) == 0
        masks = [
            flag
            for name in ("edges", "positions", "nodes")
            for flag in ("--mask", str(folder / name / "mask.safetensors"))
        ]
        assert evaluate([*masks, "--out", str(folder / "study"), "--track", "false"]) == 0
    return EdgeStudy(folder, "\n".join(lines), studies[0])


def test_a_run_writes_a_bank_of_exact_sizes_and_its_metrics(finished: EdgeStudy) -> None:
    bank, metrics = finished.bank, finished.metrics
    assert bank.shares == tuple(SHARES)
    assert len(bank.groups) == 5
    for by_size, n_edges in zip(bank.kept, bank.n_edges, strict=True):
        assert [len(ids.unique()) for ids in by_size] == edge_counts(SHARES, n_edges)
    assert [row["s"] for row in metrics["sizes"]] == SHARES
    assert metrics["graph"] == "edges"
    tv = [row["tv"] for row in metrics["sizes"]]
    assert tv[-1] < 0.05 < tv[0]
    assert all(row["controls"].keys() == {"random", "inverse"} for row in metrics["sizes"])
    for name, of_text in metrics["groups"].items():
        assert of_text["edges"] == bank.n_edges[bank.groups.index(name)]


def test_the_metrics_are_those_of_the_subgraphs_in_the_file(finished: EdgeStudy) -> None:
    """TV of every text and size, recomputed from the bank and the model alone."""
    bank, model = finished.bank, EdgeLM(Layout.of(ml.load_lm()))
    data = ml.MaskData(task="names", limit=5, positions="random", scope="input")
    data.prepare_data()
    data.setup()
    for index, ids in enumerate(data.parts["test"].ids):
        seen = torch.tensor(ids[:-1])
        graph = model.record(seen).graph
        hidden = torch.cat(
            [model.hidden(seen, graph.gates(graph.masks(list(bank.kept[index])))), model.full(seen)[None]]
        )
        p = model.layout.unembed(hidden).softmax(-1)
        tv = (p[:-1] - p[-1]).abs().sum(-1) / 2
        assert tv.tolist() == pytest.approx(finished.metrics["groups"][bank.groups[index]]["tv"], abs=1e-5)


def test_a_study_of_several_graphs_is_tracked(
    finished: EdgeStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B refuses a column of text and booleans."""
    log_study(tmp_path, {}, finished.study.tables, [])
    assert "tracking stops" not in capsys.readouterr().out
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    tracked = OfflineRun.read(folder)
    assert tracked.column("study/banks/nrows") == [3]


def test_a_study_draws_all_graphs_on_one_relative_axis_and_says_so(finished: EdgeStudy) -> None:
    assert "edges as shares of all edges, positions as shares of all positions" in finished.output
    assert "drawn on one relative axis" in finished.output
    assert "1 of 4 sizes are shorter than a path from a token to the output, 8 edges, in a text of" in finished.output
    (drawing,) = curves.curves_together(finished.study.measurements, finished.study.tables)
    (axes,) = drawing.figure.axes
    assert axes.get_xlabel() == "edges or positions or nodes kept (% of all, log)"
    labels = axes.get_legend_handles_labels()[1]
    assert labels == [
        "edges: s-trace, edges",
        "edges: random",
        "positions: learned, positions",
        "positions: random",
        "nodes: learned, nodes",
        "nodes: random-matched",
    ]
    banks = finished.table("banks").set_index("bank")["sizes in"]
    assert banks.to_dict() == {unit: unit for unit in ("edges", "positions", "nodes")}
    curve = finished.table("curve").set_index(["bank", "kind", "fraction"])["tv"]
    for row in finished.metrics["sizes"]:
        assert curve["edges", "s-trace", row["s"]] == pytest.approx(row["tv"])
        assert curve["edges", "inverse", row["s"]] == pytest.approx(row["controls"]["inverse"]["tv"])
        assert curve["edges", "random", row["s"]] == pytest.approx(row["controls"]["random"]["tv"])
    for measured in finished.study.measurements[:2]:  # edges and positions
        random = measured.results["random"].texts["tv"]
        assert random.shape == (4, len(SHARES), 5)
        assert random.std(0).max() > 0.01  # draws differ
    parts = finished.table("composition")
    assert parts["share"].between(0, 1).all()
    of_positions = parts[(parts["bank"] == "positions") & (parts["kind"] == "learned")]
    assert list(of_positions["part"].unique()) == ["heads", "MLPs", *(f"quarter {i}" for i in range(1, 5))]
    assert of_positions[of_positions["part"].isin(["heads", "MLPs"])].groupby("s")["share"].sum().tolist() == (
        pytest.approx([1] * len(SHARES))
    )


def test_the_picker_has_the_tokens_of_edges_and_positions(finished: EdgeStudy) -> None:
    shown = finished.study.pickable
    for measured in finished.study.measurements[:2]:
        assert isinstance(measured.mask, TextBank)
        assert [len(one.text_tokens) for one in shown[measured.name]] == list(measured.mask.n_tokens)
        for one in shown[measured.name]:
            assert "".join(one.text_tokens).endswith(one.text.strip())
    assert not any(one.text_tokens for one in shown["nodes"])
    edges, positions, nodes = json.loads(picker_json(finished.study))
    for bank in (edges, positions):
        for one in bank["inputs"]:
            assert len(one["maps"]) == len(SHARES) and one["maps"][0][0] == "listed"
    assert "maps" not in nodes["inputs"][0]


def test_densities_of_both_graphs_are_areas_over_their_own_shares(finished: EdgeStudy) -> None:
    inputs = pd.read_parquet(finished.folder / "study" / "tables" / "inputs.parquet")
    tv = pd.read_parquet(finished.folder / "study" / "tables" / "inputs_by_size.parquet")
    rows = tv[(tv["bank"] == "edges") & (tv["kind"] == "s-trace") & (tv["input"] == "2")]
    x = [*rows["fraction"].map(lambda f: torch.tensor(f).log10().item()), 0.0]
    y = [*rows["tv"], 0.0]
    area = sum((x[i + 1] - x[i]) * (y[i] + y[i + 1]) / 2 for i in range(len(x) - 1))
    found = inputs.set_index(["bank", "input"]).loc[("edges", "2")]
    assert found["density_s-trace"] == pytest.approx(area, rel=1e-4)
    path = 8 / sorted(finished.bank.n_edges)[2]  # two edges a layer, in the text of median size
    first = [share >= path for share in SHARES].index(True)
    area = sum((x[i + 1] - x[i]) * (y[i] + y[i + 1]) / 2 for i in range(first, len(x) - 1))
    assert found["normalized_density_s-trace"] == pytest.approx(area / -x[first], rel=1e-4)


def test_a_finished_edge_run_is_not_repeated(finished: EdgeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    config = finished.folder / "edges" / "config.yaml"
    assert train(["--config", str(config), "--run.resume", "true"]) == 0
    assert "This run is finished" in capsys.readouterr().out


def test_a_run_that_learns_edges_is_compared_with_s_trace(tmp_path: Path) -> None:
    flags = ["--model.graph", "edges", "--model.method", "learned", "--model.steps", "11", "--data.limit", "2"]
    sizes = ["--model.sizes", "[0.05, 0.3]", "--data.max_length", "7", "--data.truncation", "left"]
    assert train([*flags, *sizes, *QUIET, "--run.dir", str(tmp_path / "run")]) == 0
    for row in json.loads((tmp_path / "run" / "metrics.json").read_text())["sizes"]:
        assert row["kl"] <= row["controls"]["s-trace"]["kl"] + 1e-6
    bank = load_bank(tmp_path / "run" / "mask.safetensors")
    assert isinstance(bank, EdgeBank)
    assert bank.method == "learned"


def test_a_stopped_run_goes_on_with_the_next_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model.graph", "edges", "--model.method", "learned", "--model.steps", "2", "--data.limit", "3"]
    flags += ["--model.sizes", "[0.05, 0.3]", "--data.max_length", "6", "--data.truncation", "left", *QUIET]
    learned: list[int] = []

    def learn_two(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
        learned.append(len(learned))
        if len(learned) == 3:
            raise KeyboardInterrupt
        return learn_edges(*args, **kwargs)

    monkeypatch.setattr("masklearn.cli.text_methods.learn_edges", learn_two)
    assert train([*flags, "--run.dir", str(tmp_path / "run")]) != 0
    command = capsys.readouterr().err.split("Go on with: python train.py ")[1].split()
    assert train([*command, *QUIET]) == 0
    assert len(learned) == 4  # the third text alone
    assert train([*flags, "--run.dir", str(tmp_path / "whole")]) == 0
    resumed, whole = (load_bank(tmp_path / name) for name in ("run", "whole"))
    assert all(
        torch.equal(a, b)
        for one, other in zip(resumed.kept, whole.kept, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    assert not (tmp_path / "run" / "checkpoints" / "blocks").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.method", "s-trace"], "model.method is s-trace, which does not exist for model.graph nodes"),
        ([*EDGES, "--model.ablation", "mean"], "--model.scope input --model.ablation zero"),
        ([*EDGES, "--model.scope", "column:task"], "not scope column:task"),
        ([*EDGES, "--model.sizes", "[4, 8]"], "model.sizes asks for 4 edges"),
        ([*EDGES, "--model.polish", "7"], "model.polish is for masks of nodes"),
        ([*EDGES, "--model.gates", "mean-field"], "Leave out --model.gates, or --model.graph"),
    ],
)
def test_settings_that_edges_cannot_follow(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train([*flags, "--data.limit", "4", "--run.dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_learner_in_python_refuses_edges() -> None:
    with pytest.raises(ml.UserError, match="python train.py --model.graph edges"):
        ml.MaskLearner(graph="edges", scope="input").load()


def test_a_family_that_bypasses_the_interface_is_one_line(
    finished: EdgeStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = BY_NAME["gptj"].build(vocab_size=200)
    lm.save_pretrained(tmp_path / "gptj")
    ml.load_tokenizer().save_pretrained(tmp_path / "gptj")
    flags = ["--model.lm", str(tmp_path / "gptj"), "--data.task", "names", "--data.limit", "4"]
    capsys.readouterr()
    assert train([*EDGES, *flags, "--run.dir", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "does not go through transformers' attention interface" in line
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_texts_too_long_for_memory_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masklearn.edges.memory.MEMORY_SHARE", 1e-7)
    assert train([*EDGES, *TEXTS, "--run.dir", str(tmp_path / "run")]) == 2
    assert "--data.max_length" in capsys.readouterr().err


def test_an_edge_bank_is_evaluated_on_its_own_texts_only(
    finished: EdgeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = str(finished.folder / "edges" / "mask.safetensors")
    assert evaluate(["--mask", mask, "--data.task", "mixed"]) == 2
    assert "Leave out --data.*; if the file of these texts has moved" in capsys.readouterr().err
