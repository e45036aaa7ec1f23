"""Runs that go on after their texts or their model have changed, and files that have grown since."""

import json
import sys
from pathlib import Path

import pytest
from conftest import one_line
from test_learned_texts import TEXTS, write

import masklearn as ml
from masklearn.cli import evaluate, train
from masklearn.cli.run_folder import LEARNED_ON_FILE
from masklearn.data.encoded import Encoded

QUIET = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--data.workers", "0"]
NODES = ["--model.steps", "6", "--model.sizes", "[4]", "--model.polish", "0", "--data.batch_size", "2"]
NOUNS, VERBS = ("dog", "cat", "bird", "king", "cats", "dogs"), ("runs", "sings", "waits")
POSITIONS = ["--model.graph", "positions", "--model.steps", "2", "--model.sizes", "[0.5]", "--data.limit", "2"]


@pytest.fixture(autouse=True)
def _own_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning warns if the process has arguments of its own."""
    monkeypatch.setattr(sys, "argv", ["train.py"])


def stop(*args: object, **kwargs: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("flags", "stops"),
    [(NODES, "train_cli.CHECKPOINT_INTERVAL"), (POSITIONS, "text_methods.learn_positions")],
    ids=["nodes", "positions"],
)
@pytest.mark.parametrize("what", ["texts", "model"])
def test_a_run_does_not_go_on_with_something_else(
    what: str, flags: list[str], stops: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file, folder = write(tmp_path / "texts.jsonl", TEXTS), tmp_path / "run"
    flags = [*flags, *QUIET, "--data.path", file, "--run.dir", str(folder)]
    with monkeypatch.context() as patch:
        patch.setattr(f"masklearn.cli.{stops}", 2 if stops.endswith("INTERVAL") else stop)
        assert train([*flags, *(["--trainer.max_steps", "2"] if flags[0] == NODES[0] else [])]) == 2
    capsys.readouterr()
    resume = ["--config", str(folder / "config.yaml"), "--run.resume", "true", "--trainer.max_steps", "-1", *QUIET]
    if what == "texts":
        write(Path(file), ["the king sings near the dog .", *TEXTS[1:]])
    else:
        stored = json.loads((folder / LEARNED_ON_FILE).read_text())
        (folder / LEARNED_ON_FILE).write_text(json.dumps(stored | {"model": "another"}))
    assert train(resume) == 2
    assert f"the {what} of the run in {folder} changed after it was started" in one_line(capsys)
    assert not (folder / "mask.safetensors").exists()
    if what == "texts":
        write(Path(file), TEXTS)
        assert train(resume) == 0
        assert (folder / "mask.safetensors").is_file()


def test_texts_that_were_learned_on_are_not_held_out_when_their_file_has_grown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Appended texts change which are held out; those that were learned on before are left out of them."""
    file, folder = write(tmp_path / "texts.jsonl", TEXTS), tmp_path / "run"
    assert train([*NODES, *QUIET, "--data.path", file, "--run.dir", str(folder)]) == 0
    learned = set(ml.Mask.load(folder / "mask.safetensors").learned_texts.tolist())
    assert evaluate(["--mask", str(folder)]) == 0
    assert "left out" not in capsys.readouterr().out
    more = iter([f"the {noun} {verb} near the {other} ." for noun in NOUNS for verb in VERBS for other in NOUNS])
    grown, held_out, n_learned = list(TEXTS), list[Encoded](), 0
    while not n_learned:  # or this test shows nothing
        write(Path(file), grown := [*grown, next(more)])
        data = ml.MaskData(path=file)
        data.setup()
        held_out = data.parts["test"].encoded
        n_learned = sum(not learned.isdisjoint(text.hashes) for text in held_out)
    assert evaluate(["--mask", str(folder)]) == 0
    left_out = f"{n_learned} texts are left out, as the masks were learned on them"
    assert left_out in capsys.readouterr().out
    evidence = ["--evidence", "true", "--plan.parts", "[transfer]", "--plan.transfer", "[]", "--track", "false"]
    assert evaluate(["--mask", str(folder), *evidence]) == 0
    assert left_out in capsys.readouterr().out
    facts = json.loads((folder / "evidence" / "evidence.json").read_text())["facts"]
    assert facts["n_texts"] == len(held_out) - n_learned


def test_shards_of_other_texts_are_not_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, shards = write(tmp_path / "texts.jsonl", TEXTS), [tmp_path / "shard-1", tmp_path / "shard-2"]
    flags = [*NODES, *QUIET, "--data.path", file, "--data.limit", "4", "--model.scope", "input", "--model.block", "2"]
    for i, shard in enumerate(shards):
        if i:
            write(Path(file), ["the king sings near the dog .", *TEXTS[1:]])
        assert train([*flags, "--run.shard", f"{i + 1}/2", "--run.dir", str(shard)]) == 0
    capsys.readouterr()
    merge = ["--config", str(shards[1] / "config.yaml"), "--run.merge", f"[{shards[0]}]"]
    assert train(merge) == 2
    assert f"the texts of the run in {shards[0]} changed after it was started" in one_line(capsys)
    assert not (shards[1] / "mask.safetensors").exists()


def test_packed_texts_that_reach_into_the_held_out_split_stay_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = write(tmp_path / "texts.jsonl", TEXTS), tmp_path / "run"
    flags = ["--data.path", file, "--data.pack", "true", "--data.max_length", "8", "--run.dir", str(folder)]
    assert train([*NODES, *QUIET, *flags]) == 0
    learned = set(ml.Mask.load(folder / "mask.safetensors").learned_texts.tolist())
    data = ml.MaskData(path=file, pack=True, max_length=8)
    data.setup()
    assert any(not learned.isdisjoint(chunk.hashes) for chunk in data.parts["test"].encoded)
    capsys.readouterr()
    assert evaluate(["--mask", str(folder), "--out", str(tmp_path / "again")]) == 0
    assert "left out" not in capsys.readouterr().out
    of_run, again = (json.loads((path / "metrics.json").read_text()) for path in (folder, tmp_path / "again"))
    assert again["sizes"][0]["kl"] == pytest.approx(of_run["sizes"][0]["kl"])
