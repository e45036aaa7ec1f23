"""The texts of masks of single texts: altered, moved to another file, or changed since."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import masklearn as ml
from masklearn.cli import evaluate, train
from masklearn.cli.entry_points import own_flags
from masklearn.cli.user_messages import LESS_MEMORY
from masklearn.selection.baselines import subgraphs
from masklearn.selection.scorer import MaskScorer
from masklearn.tiny import tasks

SHORT = "anna went"
"""A text that is shorter than its pair."""


class Learned(NamedTuple):
    """A run with masks of single texts, and its file of pairs."""

    run: Path
    pairs: Path


def write_pairs(file: Path, pairs: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


def named_pairs(n: int) -> list[dict[str, str]]:
    prompts = [prompt for prompt, _ in zip(tasks.prompts("names", 1), range(n), strict=False)]
    return [{"clean": prompt.text, "corrupted": prompt.corrupted or ""} for prompt in prompts]


@pytest.fixture
def learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Learned]:
    monkeypatch.setattr("sys.argv", ["train.py"])

    def learn(*flags: str, change: Callable[[list[dict[str, str]]], None] = lambda pairs: None) -> Learned:
        pairs = named_pairs(4)
        change(pairs)
        write_pairs(tmp_path / "pairs.jsonl", pairs)
        found = Learned(tmp_path / "run", tmp_path / "pairs.jsonl")
        args = ["--data.path", str(found.pairs), "--data.positions", "last", "--model.scope", "input"]
        args += ["--trainer.logger", "false", "--run.dir", str(found.run), *flags]
        assert train(args) == 0
        return found

    return learn


NODES = ["--model.sizes", "[3, 9]", "--model.steps", "2", "--model.polish", "0"]
EDGES = ["--model.sizes", "[0.1, 0.5]", "--model.graph", "edges", "--model.method", "s-trace"]


def results(run: Path, *flags: str) -> list[dict[str, Any]]:
    out = run.parent / f"out{len(list(run.parent.iterdir()))}"
    assert evaluate(["--mask", str(run), "--study", "false", "--out", str(out), *flags]) == 0
    found = json.loads((out / "metrics.json").read_text())
    return found if isinstance(found, list) else [found]


def shorten_corrupted(pairs: list[dict[str, str]]) -> None:
    """The run leaves out row 1, whose pair has another length."""
    pairs[1]["corrupted"] = SHORT


def add_altered(pairs: list[dict[str, str]]) -> None:
    """Of the altered texts row 1 alone has another length than its pair."""
    for row, pair in enumerate(pairs):
        pair["altered"] = SHORT if row == 1 else pair["corrupted"]


@pytest.mark.parametrize(("change", "column"), [(shorten_corrupted, "corrupted"), (add_altered, "altered")])
def test_altered_texts_have_the_baselines_of_their_own_rows(
    change: Callable[..., None],
    column: str,
    learned: Callable[..., Learned],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Row 1 is missing: in the run, where it comes back with the altered column, or among the altered texts alone."""
    run, file = learned(*NODES, change=change)
    capsys.readouterr()
    _, altered = results(run, "--altered_column", column, "--baselines", "[norm]")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"Column {column}: ")]
    assert len(lines) == 1 and altered["column"] == column and [*altered["groups"]] == ["0", "2", "3"]
    mask, masked_lm = ml.Mask.load(run), ml.MaskedLM(ml.load_lm())
    data = ml.MaskData(path=str(file), positions="last", scope="input")
    data.setup("fit")
    groups = range(len(mask.groups))
    chosen = subgraphs("norm", mask, MaskScorer(masked_lm, data.loader("train", groups), groups))[0, 1]
    texts, kl = [json.loads(line)[column] for line in file.read_text().splitlines()], 0.0
    for name in altered["groups"]:
        tokens = data.load_tokenizer()(texts[int(name)], return_tensors="pt", return_token_type_ids=False)
        full = masked_lm.lm(**tokens).logits[0, -1].log_softmax(-1)
        with ml.gated(masked_lm.lm, chosen[mask.groups.index(name)]):
            masked = masked_lm.lm(**tokens).logits[0, -1].log_softmax(-1)
        kl += float((full.exp() * (full - masked)).sum()) / 3
    assert altered["sizes"][1]["controls"]["norm"]["kl"] == pytest.approx(kl, rel=1e-4)


def test_a_run_without_polish_reports_none_and_a_table_of_ablations_names_the_altered_texts(
    learned: Callable[..., Learned], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = learned(*NODES)
    page = (run.parent / "report.html" if run.is_file() else run / "report.html").read_text(encoding="utf-8")
    assert "discretisation" in page and "cut: the top s nodes." in page and "polished" not in page  # there was none
    capsys.readouterr()
    found = results(run, "--altered_column", "corrupted", "--ablation", "[zero, mean]", "--baselines", "[]")
    table = capsys.readouterr().out
    for result in found:
        column = f", column {result['column']}" if "column" in result else " "
        (line,) = [
            line for line in table.splitlines() if f"mask.safetensors{column}" in line and line.split()[-3] == "3"
        ]
        assert f"{result['sizes'][0]['kl']:.3f}" in line.split()
    assert len(found) == 4 and not found[0]["sizes"][0]["controls"]
    assert found[0]["text"].startswith("4 texts of ") and "each under its own masks, zero" in found[0]["text"]
    assert evaluate(["--mask", str(run), "--study", "false", "--altered_column", "corruptd"]) == 2
    assert "Name one with --altered_column" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [NODES, EDGES], ids=["nodes", "edges"])
def test_texts_may_move_but_not_change(
    flags: list[str], learned: Callable[..., Learned], capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = learned(*flags)
    (before,) = results(run)
    moved = file.with_name("moved.jsonl")
    shutil.move(file, moved)
    (after,) = results(run, "--data.path", str(moved))
    assert after["sizes"] == before["sizes"]
    assert evaluate(["--mask", str(run), "--data.path", str(moved), "--data.limit", "2"]) == 2
    assert "if the file of these texts has moved, give its path alone" in capsys.readouterr().err
    pairs = named_pairs(4)
    pairs[2]["clean"], pairs[2]["corrupted"] = pairs[2]["corrupted"], pairs[2]["clean"]
    write_pairs(moved, pairs)
    assert evaluate(["--mask", str(run), "--data.path", str(moved)]) == 2
    assert "they have changed since" in capsys.readouterr().err


def test_both_kinds_of_edges_are_printed(learned: Callable[..., Learned], capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = learned(*EDGES)
    capsys.readouterr()
    results(run, "--edges", "[recomputed, frozen]")
    out = capsys.readouterr().out
    assert "patterns and norms recomputed\n" in out and "patterns and norms frozen\n" in out


def test_a_bank_that_cannot_be_evaluated_is_refused_before_others_are(
    learned: Callable[..., Learned], capsys: pytest.CaptureFixture[str]
) -> None:
    edges, _ = learned(*EDGES)
    shutil.move(edges, edges.with_name("edges"))
    nodes, _ = learned(*NODES)
    capsys.readouterr()
    masks = ["--mask", str(nodes), str(edges.with_name("edges"))]
    assert evaluate([*masks, "--ablation", "[zero, mean]"]) == 2
    found = capsys.readouterr()
    assert "Leave out --altered_column and --ablation" in found.err and "First text" not in found.out
    assert evaluate([*masks, "--device_map", "auto"]) == 2
    assert "Leave out --device_map" in capsys.readouterr().err


def test_advice_names_the_flags_of_its_command() -> None:
    assert own_flags("model.lm: no. Add --model.trust_remote_code true") == "lm: no. Add --trust_remote_code true"
    assert own_flags(f"out of memory. {LESS_MEMORY}") == "out of memory. Try a smaller --data.batch_size"
    assert own_flags("Learn them with --model.sizes log:12") == "Learn them with --model.sizes log:12"
