"""`learn` from Python; a plain trainer; and machines of other kinds."""

import itertools
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import torch
from api_settings import FAST, TEXTS
from conftest import ROOT, Run, refused
from lightning import Trainer

import masklearn as ml
from masklearn.api.texts import as_data
from masklearn.cli import evaluate, train
from masklearn.cli.evaluate_command import _each_mask_appended


@pytest.fixture(scope="module")
def bank() -> ml.LearnedBank:
    return ml.learn(ml.load_lm(), TEXTS, **FAST)


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])


# --- one call ---------------------------------------------------------------------------------------------------------


def test_learning_gives_masks_and_metrics(bank: ml.LearnedBank) -> None:
    assert bank.sizes == [4, 18] and bank.mask.mask.sum(-1).tolist() == [[4, 18]]
    assert len(bank.nodes(4)) == 4 and set(bank.nodes(4)) <= set(bank.mask.graph.names)
    assert bank.metrics.index.tolist() == [4, 18]
    assert bank.metrics[["kl", "random kl_mean"]].to_numpy().min() > 0
    assert bank.mask.model.lm == "embedded" and bank.mask.config["model"]["steps"] == 4
    full = bank.lm(input_ids=torch.arange(3, 9)[None]).logits
    with bank.gated(4) as lm:
        assert not torch.allclose(lm(input_ids=torch.arange(3, 9)[None]).logits, full)


def test_the_command_line_learns_the_same_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS), encoding="utf-8")
    flags = ["--model.sizes", "[4, 0.5]", "--model.steps", "4", "--model.polish", "0", "--trainer.logger", "false"]
    assert train([*flags, "--data.path", str(file), "--run.dir", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Run: {tmp_path / 'run'}"
    from_file = ml.Mask.load(tmp_path / "run")
    bank = ml.learn(texts=TEXTS, **FAST)
    assert torch.equal(bank.mask.mask, from_file.mask)
    assert bank.metrics["kl"].tolist() == pytest.approx([row["kl"] for row in from_file.metrics])


def test_what_a_notebook_shows(bank: ml.LearnedBank, tmp_path: Path) -> None:
    html = bank._repr_html_()
    assert f"{bank.metrics['kl'][4]:.3f}" in html and "data:image/png" in html and "<script" not in html
    png, size = bank.plot()._repr_png_()
    assert png.startswith(b"\x89PNG") and size["width"] > 300
    page = bank.report(tmp_path / "out.html").read_text(encoding="utf-8")
    assert all(name in page for name in bank.nodes(18)) and "http:" not in page and "https:" not in page
    assert repr(bank).count("\n") >= 4
    assert ml.UserError("one line")._render_traceback_() == ["UserError: one line"]


def test_masks_of_single_texts(tmp_path: Path) -> None:
    texts = datasets.Dataset.from_dict({"text": TEXTS[:3]})
    with torch.no_grad():
        bank = ml.learn("embedded", texts, scope="input", positions="last", **FAST)
        assert not torch.is_grad_enabled()  # as the caller has set it
    assert len(bank.groups) == 3 and len(bank.by_group) == 6
    assert bank.plot() is not None
    others = ml.MaskData(texts=TEXTS[3:6], scope="input", positions="last")
    for texts in (TEXTS, others):
        assert "single texts" in refused(lambda texts=texts: ml.evaluate(bank, texts))
    assert "no group" in refused(lambda: bank.select(4, 9))


def test_texts_of_every_kind_are_the_same_texts(tmp_path: Path) -> None:
    rows = [{"text": text, "kind": "a"} for text in TEXTS[:3]]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS[:3]), encoding="utf-8")
    in_memory: list[Any] = [
        TEXTS[:3], tuple(TEXTS[:3]), iter(TEXTS[:3]), rows, pd.DataFrame(rows), pd.Series(TEXTS[:3]),
        datasets.Dataset.from_list(rows),
    ]  # fmt: skip
    data = [as_data(file, "embedded", None, {}), *(ml.MaskData(texts=texts) for texts in in_memory)]
    assert [[text.text for text in texts.source.read()[0]] for texts in data] == [TEXTS[:3]] * 8
    assert len(as_data(TEXTS, "embedded", None, {"limit": 2}).source.read()) == 2
    endless = ml.MaskData(texts=itertools.cycle(TEXTS[:3]), limit=4)
    assert [text.text for text in endless.source.read()[0]] == [*TEXTS[:3], TEXTS[0]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"stps": 3}, "Did you mean steps"),
        ({"texts": 3}, "type int"),
        ({"texts": [1, 2]}, "text 1"),
        ({"texts": []}, "no text"),
        ({"texts": {"text": TEXTS}}, "a mapping"),
        ({"texts": datasets.DatasetDict({"a": datasets.Dataset.from_dict({"text": TEXTS})})}, "texts['a']"),
        ({"texts": datasets.DatasetDict()}, "it has none"),
        ({"texts": iter(TEXTS), "limit": -1}, "limit is -1"),
        ({"texts": pd.DataFrame(TEXTS)}, "no column 'text'; it has 0"),
        ({"texts": TEXTS, "path": "a.txt"}, "Remove one"),
        ({"lm": torch.nn.Linear(1, 1)}, "Linear"),
        ({"texts": TEXTS, "sizes": 4}, 'for example "[4]"'),
    ],
)
def test_mistakes_are_one_clear_line(arguments: dict[str, Any], words: str) -> None:
    assert words in refused(lambda: ml.learn(**arguments))


# --- a plain trainer --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scope", ["dataset", "input"])
def test_a_plain_trainer_stops_at_the_plan(scope: str, tmp_path: Path) -> None:
    learner = ml.MaskLearner(ml.load_lm(), steps=2, polish=0, sizes=[4], scope=scope)
    data = ml.MaskData(texts=TEXTS[:12], scope=scope)
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False)
    trainer.fit(learner, datamodule=data)
    assert trainer.global_step == 2 and trainer.current_epoch <= 1
    assert learner.discretize().mask.sum(-1).unique().tolist() == [4]
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert checkpoint.stat().st_size < 200_000  # the model is not among the settings
    assert "Mask.load" in refused(lambda: ml.MaskLearner.load_from_checkpoint(checkpoint))


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "appended"),
    [
        (["--mask", "a", "b", "--out", "o"], ["--mask+", "a", "--mask+", "b", "--out", "o"]),
        (["--mask=a", "--mask", "b"], ["--mask+=a", "--mask+", "b"]),
        (["--lm", "x", "--mask", "a"], ["--lm", "x", "--mask+", "a"]),
    ],
)
def test_masks_may_follow_in_a_row(args: list[str], appended: list[str]) -> None:
    assert _each_mask_appended(args) == appended


def test_the_folder_of_a_run_and_the_home_folder_are_understood(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my-run").symlink_to(run.folder)
    assert evaluate(["--mask", "~/my-run", str(run.folder), "--out", "~/results"]) == 0
    assert (tmp_path / "results" / "metrics.json").is_file()
    assert capsys.readouterr().out.count("random KL") == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--trainer.strategy", "deepspeed"], "--trainer.strategy ddp"),
        (["--trainer.overfit_batches", "2"], "--data.limit"),
        (["--trainer.overfit_batches", "1"], "--data.limit"),
        (["--trainer.limit_train_batches", "1"], "--model.steps"),
        (["--trainer.logger", "CometLogger"], "CometLogger: Requirement"),
        (["--trainer.logger", "TensorBoardLogger"], "save_dir"),
    ],
)
def test_trainer_flags_that_cannot_work_are_one_line(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train([*flags, "--run.dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and len(error) < 300
    assert not (tmp_path / "run").exists()


def test_several_slurm_tasks_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "mine", "SLURM_JOB_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert train([]) == 2
    assert "-n 1" in capsys.readouterr().err
    assert train(["--trainer.devices", "3", "--trainer.strategy", "ddp"]) == 2
    assert "has 2 tasks, but --trainer.devices 3 on --trainer.num_nodes 1 makes 3" in capsys.readouterr().err


# --- other machines ---------------------------------------------------------------------------------------------------


def test_a_terminal_without_our_characters_and_a_system_without_the_signal(run: Run) -> None:
    """Windows has no SIGUSR1, and an old terminal no plus-minus sign."""
    code = (
        "import signal, sys; del signal.SIGUSR1; from masklearn.cli import evaluate, stopping; "
        "assert stopping.REQUEUE_SIGNAL is None; sys.exit(evaluate(sys.argv[1:]))"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, "--mask", str(run.folder)]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"random KL" in done.stdout and b"?" in done.stdout


def test_importing_needs_no_warning_filter() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert set(ml.__all__) <= set(dir(ml))
    assert not caught
