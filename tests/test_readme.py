"""The README is short, its table of flags is true, and the configs run, in small."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Run
from documents import DOCUMENTS, IN_SMALL, README, lay_out_desk

from masklearn.cli import train
from masklearn.tiny import MODEL_FOLDER

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
MAX_WORDS = 1000
"""Words of the README, as `wc -w` counts them."""


@pytest.fixture
def desk(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    return lay_out_desk(tmp_path, run, monkeypatch)


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= MAX_WORDS


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
@pytest.mark.usefixtures("undrawn")
def test_every_config_runs(config: Path, desk: Path) -> None:
    texts = {"stories.yaml": "prompts.jsonl", "inputs.yaml": "prompts.jsonl", "mib.yaml": "ioi.jsonl"}.get(config.name)
    model = ["--model.lm", str(MODEL_FOLDER), "--data.path", texts] if texts else []
    assert train(["--config", str(config), *model, *IN_SMALL, "--run.dir", "small"]) == 0
    requested, written = yaml.safe_load(config.read_text()), yaml.safe_load((desk / "small/config.yaml").read_text())
    assert written["model"]["sizes"] == requested["model"]["sizes"]
    assert f"--config configs/{config.name}" in config.read_text()


def test_defaults_in_the_tables_of_flags_are_the_defaults(capsys: pytest.CaptureFixture[str], desk: Path) -> None:
    with pytest.raises(SystemExit):
        train(["--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    text = "\n".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    found = re.findall(r"^\| `--(\w+)\.(\w+)` \|.*\| `([^`]+)` \|$", text, flags=re.M)
    assert ("model", "polish", "4") in found
    for section, key, default in found:
        if (section, key) != ("run", "dir"):  # set when the run begins
            assert config[section][key] == yaml.safe_load(default), f"--{section}.{key}"


def test_the_real_model_with_real_texts(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    model, texts = stories / "models" / "stories260k", stories / "data" / "stories.jsonl"
    args = ["--model.lm", str(model), "--data.path", str(texts), "--model.sizes", "[5,9,15,22,30]"]
    assert train([*args, *IN_SMALL, "--run.dir", str(tmp_path / "run")]) == 0
    sizes = json.loads((tmp_path / "run" / "metrics.json").read_text())["sizes"]
    assert [row["s"] for row in sizes] == [5, 9, 15, 22, 30]
    assert all(row["full_cross_entropy"] < 2 for row in sizes)  # a model that knows its texts
