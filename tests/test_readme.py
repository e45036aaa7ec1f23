"""The commands, code and configs of the README run, on small data."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Run

from masklearn.cli import evaluate, train
from masklearn.tiny import MODEL_FOLDER, tasks

README = (ROOT / "README.md").read_text()
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SMALL_RUN = ["--model.steps", "4", "--model.polish", "0", "--data.limit", "20", "--trainer.logger", "false"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("bash")).replace("&&", "\n").splitlines()
    python = [shlex.split(line)[1:] for line in lines if line.strip().startswith("python ")]
    return [command for command in python if "--help" not in command]


@pytest.fixture
def work_folder(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README's commands name."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(run.folder, tmp_path / "runs" / "my-run")
    (tmp_path / "PATH_OR_HUB_ID").symlink_to(MODEL_FOLDER)
    for name, seed in (("prompts.jsonl", 1), ("other.jsonl", 2)):
        texts = [text for text, _ in zip(tasks.texts(seed), range(30), strict=False)]
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pairs = [
        {
            "clean": p.text,
            "corrupted": p.corrupted,
            "answer": f" {p.answers[0]}",
            "wrong_answer": f" {p.wrong_answers[0]}",
        }
        for p, _ in zip(tasks.prompts("names", 1), range(30), strict=False)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return tmp_path


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_of_the_readme_runs(command: list[str], work_folder: Path) -> None:
    script, *args = command
    if script == "train.py":
        assert train([*args, *([] if "--run.resume" in args else SMALL_RUN)]) == 0
    else:
        assert script == "evaluate.py"
        assert evaluate(args) == 0


def test_the_python_of_the_readme_runs(work_folder: Path) -> None:
    names: dict = {}
    for code in blocks("python"):
        exec(code, names)
    assert names["logits"].shape[:2] == names["tokens"]["input_ids"].shape
    assert names["bank"][0].select(s=18).sum() == 18


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_config_runs(config: Path, work_folder: Path) -> None:
    needs_model = config.name in ("stories.yaml", "inputs.yaml")
    flags = ["--model.lm", str(MODEL_FOLDER), "--data.path", "prompts.jsonl"] if needs_model else []
    assert train(["--config", str(config), *flags, *SMALL_RUN, "--run.dir", "small"]) == 0
    given, written = (
        yaml.safe_load(config.read_text()),
        yaml.safe_load((work_folder / "small" / "config.yaml").read_text()),
    )
    assert written["model"]["sizes"] == given["model"]["sizes"]
    assert f"--config configs/{config.name}" in config.read_text()


def test_defaults_in_the_readme_are_the_defaults(capsys: pytest.CaptureFixture[str], work_folder: Path) -> None:
    with pytest.raises(SystemExit):
        train(["--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    for flag, default in re.findall(r"^\| `--(\w+\.\w+)` \|.*\| `([^`]+)` \|$", README, flags=re.M):
        section, key = flag.split(".")
        if flag not in ("run.dir", "data.task"):  # set when the run starts
            assert config[section][key] == yaml.safe_load(default), flag


def test_the_real_model_with_real_texts(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    model, texts = stories / "models" / "stories260k", stories / "data" / "stories.jsonl"
    args = ["--model.lm", str(model), "--data.path", str(texts), "--model.sizes", "[5,9,15,22,30]"]
    assert train([*args, *SMALL_RUN, "--run.dir", str(tmp_path / "run")]) == 0
    sizes = json.loads((tmp_path / "run" / "metrics.json").read_text())["sizes"]
    assert [row["s"] for row in sizes] == [5, 9, 15, 22, 30]
    assert all(row["full_cross_entropy"] < 2 for row in sizes)  # a model that knows its texts
