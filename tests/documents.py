"""The README and the guides as tests read them, and a folder in which their commands find what they name."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Run

from masklearn.tiny import MODEL_FOLDER, tasks

README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FEW_STEPS = ["--model.steps", "2", "--data.limit", "8", "--trainer.logger", "false"]
"""Flags that shorten every run."""
IN_SMALL = [*FEW_STEPS, "--model.polish", "0"]
"""Flags that make a run on the graph of nodes take a few seconds."""


def blocks(document: Path, language: str) -> list[str]:
    """The code blocks of a document in one language."""
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.S)


def commands(document: Path, scripts: tuple[str, ...] = ("train.py", "evaluate.py", "export.py")) -> list[list[str]]:
    """The calls of some scripts in a document, each once, as arguments; by default of the entry points."""
    shell = "\n".join(blocks(document, "bash")).replace("\\\n", " ").replace("&&", "\n")
    found = [shlex.split(line, comments=True)[1:] for line in shell.splitlines() if line.strip().startswith("python ")]
    return [list(command) for command in dict.fromkeys(map(tuple, found)) if command[0].startswith(scripts)]


def lay_out_desk(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the models, texts and runs that the documents name."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(run.folder, tmp_path / "runs" / "my-run")
    for name in ("PATH_OR_HUB_ID", "gpt2", "large", "stories260k"):
        (tmp_path / name).symlink_to(MODEL_FOLDER)
    for name, seed in (("prompts.jsonl", 1), ("other.jsonl", 2), ("stories.jsonl", 3)):
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
    mib = [
        {
            "prompt": pair["clean"],
            "metadata": {
                "indirect_object": pair["answer"][1:],
                "subject": pair["wrong_answer"][1:],
                "random_c": "anna",
            },
            "s2_io_flip_counterfactual": {"prompt": pair["corrupted"]},
        }
        for pair in pairs
    ]
    for name in ("ioi.jsonl", "ioi-test.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in mib))
    answered = [{"prompt": pair["clean"], "completion": pair["answer"]} for pair in pairs]
    (tmp_path / "prompts-and-answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answered))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    chats = [{"prompt": pair["clean"], "completion": pair["answer"]} for pair in pairs]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return tmp_path
