"""Positions through the command line: a run, its resumption, its evaluation, and bad input."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import one_line
from families import BY_NAME
from wandb_file import OfflineRun

import masklearn as ml
from masklearn.cli import evaluate, train
from masklearn.evaluation import scored_text
from masklearn.positions import PositionGraph
from masklearn.shares import share_counts
from masklearn.text_bank import PositionBank, load_bank
from masklearn.training.position_learner import learn_positions

QUIET = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
POSITIONS = ["--model.graph", "positions", *QUIET]
SHARES = [0.0001, 0.1, 0.5]
SETTINGS = ["--model.steps", "3", "--model.sizes", str(SHARES), "--data.limit", "3"]
SETTINGS += ["--data.max_length", "6", "--data.truncation", "left"]
SMALL = [*POSITIONS, *SETTINGS]


@pytest.fixture(autouse=True)
def _own_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning warns if the process has arguments of its own."""
    monkeypatch.setattr(sys, "argv", ["train.py"])


def bank_in(folder: Path) -> PositionBank:
    bank = load_bank(folder / "mask.safetensors")
    assert isinstance(bank, PositionBank)
    return bank


def test_a_stopped_run_goes_on_with_the_next_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learned: list[int] = []

    def learn_two(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
        learned.append(len(learned))
        if len(learned) == 3:
            raise KeyboardInterrupt
        return learn_positions(*args, **kwargs)

    monkeypatch.setattr("masklearn.cli.text_methods.learn_positions", learn_two)
    assert train([*SMALL, "--run.dir", str(tmp_path / "run")]) != 0
    command = capsys.readouterr().err.split("Go on with: python train.py ")[1].split()
    assert train([*command, *QUIET]) == 0
    assert len(learned) == 4  # the third text alone
    assert train([*SMALL, "--run.dir", str(tmp_path / "whole")]) == 0
    resumed, whole = bank_in(tmp_path / "run"), bank_in(tmp_path / "whole")
    assert all(
        torch.equal(a, b)
        for one, other in zip(resumed.kept, whole.kept, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    assert not (tmp_path / "run" / "checkpoints" / "blocks").exists()
    _require_results(tmp_path / "whole", whole)
    printed = capsys.readouterr().out
    for written in ("mask.safetensors", "metrics.json", "figures/curve.png", "report.html"):
        assert str(tmp_path / "whole" / written) in printed
    assert evaluate(["--mask", str(tmp_path / "whole"), "--study", "false"]) == 0
    table = capsys.readouterr().out
    for row in json.loads((tmp_path / "whole" / "metrics.json").read_text())["sizes"]:
        assert f"{row['tv']:.3f}" in table


def _require_results(folder: Path, bank: PositionBank) -> None:
    """Exact sizes, the metrics of the table, and KL recomputed from the bank and the model alone."""
    rows = json.loads((folder / "metrics.json").read_text())["sizes"]
    lm = ml.load_lm()
    graph = ml.NodeGraph.of(lm)
    for by_size, n_positions, n_tokens in zip(bank.kept, bank.n_units, bank.n_tokens, strict=True):
        assert [len(ids.unique()) for ids in by_size] == share_counts(bank.shares, n_positions)
        assert n_positions == PositionGraph.count(graph, n_tokens)
    assert rows[0]["positions"] == 1
    for row in rows:
        assert {"kl", "tv", "top1"} <= row.keys()
        assert row["controls"].keys() == {"random", "inverse", "attribution", "norm"}
        assert all(row["kl"] <= row["controls"][start]["kl"] + 1e-6 for start in ("attribution", "norm"))
        assert row["head_share"] + row["mlp_share"] == pytest.approx(1)
    data = ml.MaskData(limit=3, max_length=6, truncation="left", positions="last", scope="input")
    data.prepare_data()
    data.setup()
    kl = []
    for index, kept in enumerate(bank.kept):
        seen = scored_text(data, "test", index).input_ids
        gates = torch.zeros(3, len(seen) * graph.n_nodes)
        for row, positions in zip(gates, kept, strict=True):
            row[positions] = 1
        full = lm(seen[None]).logits[0, -1].log_softmax(-1)
        with ml.gated(lm, gates.view(3, len(seen), graph.n_nodes)):
            masked = lm(seen.expand(3, -1)).logits[:, -1].log_softmax(-1)
        kl.append((full.exp() * (full - masked)).sum(-1))
    assert [row["kl"] for row in rows] == pytest.approx(torch.stack(kl).mean(0).tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.method", "s-trace"], "Choose --model.method learned"),
        (["--model.ablation", "mean"], "model.graph positions has a graph for every text"),
        (["--model.scope", "column:task"], "--model.scope input --model.ablation zero"),
        (["--model.objective", "cross-entropy"], "model.graph positions has no objective but kl"),
        (["--model.sizes", "[4, 8]"], "model.sizes asks for 4 positions"),
    ],
)
def test_settings_that_positions_cannot_follow(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train([*POSITIONS, *flags, "--data.limit", "4", "--run.dir", str(tmp_path / "run")]) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_families_whose_edges_cannot_be_gated_have_positions(tmp_path: Path) -> None:
    lm = BY_NAME["gptj"].build(vocab_size=200)
    lm.save_pretrained(tmp_path / "gptj")
    ml.load_tokenizer().save_pretrained(tmp_path / "gptj")
    flags = ["--model.lm", str(tmp_path / "gptj"), "--data.task", "names", "--run.dir", str(tmp_path / "run")]
    assert train([*SMALL, *flags]) == 0
    assert bank_in(tmp_path / "run").shares == (0.0001, 0.1, 0.5)


def test_a_run_is_logged_to_wandb(tmp_path: Path) -> None:
    quiet = ["--trainer.enable_progress_bar", "false"]
    assert train(["--model.graph", "positions", *SETTINGS, *quiet, "--run.dir", str(tmp_path / "run")]) == 0
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    tracked, rows = OfflineRun.read(folder), json.loads((tmp_path / "run" / "metrics.json").read_text())["sizes"]
    for size in ("0.0001", "0.1", "0.5"):
        assert len(tracked.column(f"train/kl/s={size}")) == 9  # three steps of three texts
        assert tracked.summary[f"test/kl/s={size}"] == pytest.approx(rows[SHARES.index(float(size))]["kl"])
    assert tracked.column("train/temperature")[:3] == pytest.approx([0.5, 0.158, 0.05], abs=1e-3)
    (path,) = tracked.column("results/path")
    assert len(json.loads((tracked.files / path).read_text())["data"]) == 3
    (picture,) = tracked.column("figures/curve/path")
    assert (tracked.files / picture).read_bytes().startswith(b"\x89PNG")
    (artifact,) = (artifact for artifact in tracked.artifacts if artifact.type == "mask")
    assert artifact.name == "positions-embedded"
    assert json.loads(artifact.metadata)["sizes"] == SHARES
