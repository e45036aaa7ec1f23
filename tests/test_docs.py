"""The documentation holds: its commands and Python run, in small, and what it says of the code is true of the code."""

import re
import runpy
import shutil
from pathlib import Path

import draw_architecture as architecture
import pytest
import torch
from conftest import ROOT, Run
from documents import DOCUMENTS, FEW_STEPS, IN_SMALL, blocks, commands, lay_out_desk
from jsonargparse import auto_cli

from masklearn.cli import evaluate, export, train
from masklearn.tiny import train as trainer

PAGES = [*DOCUMENTS, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", ROOT / "benchmarks" / "README.md"]
COMMANDS = {" ".join(command): command for document in DOCUMENTS for command in commands(document)}
OTHER_COMMANDS = [
    pytest.param(command, id=f"{document.stem}: {' '.join(command)}")
    for document in PAGES
    for command in commands(document, ("-m", "benchmarks/"))
]
FEW_PARTS = ("--plan.steps=2", "--plan.polish_budget=0.01", "--plan.bootstraps=2", "--plan.halves=0", "--plan.draws=60")
"""Flags that keep evidence short."""
WITH_PYTHON = [document for document in DOCUMENTS if blocks(document, "python")]


@pytest.fixture
def desk(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    return lay_out_desk(tmp_path, run, monkeypatch)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_of_the_documents_runs(command: list[str], desk: Path, request: pytest.FixtureRequest) -> None:
    entry_point, *args = command
    for mask in (Path(arg) for arg in args if arg.endswith("mask.safetensors")):
        if not mask.parent.is_dir():
            shutil.copytree(desk / "runs" / "my-run", mask.parent)
    if entry_point == "evaluate.py":
        small = [*FEW_PARTS] if "--evidence" in args else []
        assert evaluate([*args, *small]) == 0
    elif entry_point == "export.py":
        assert export(args) == 0
    else:
        request.getfixturevalue("undrawn")
        fewer = ["--data.limit", "2"] if {"edges", "positions"} & set(args) else []
        few = FEW_STEPS if "--model.graph" in args else IN_SMALL
        assert train([*args, *([] if "--run.resume" in args else [*few, *fewer])]) == 0


@pytest.mark.parametrize("command", OTHER_COMMANDS)
def test_flags_of_other_scripts_exist(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    script = ROOT / command[0]
    main = trainer.train if command[0] == "-m" else runpy.run_path(str(script))["main"]
    with pytest.raises(SystemExit) as done:
        auto_cli(main, args=[*command[2 if command[0] == "-m" else 1 :], "--print_config"])
    assert done.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("document", WITH_PYTHON, ids=lambda path: path.name)
def test_the_python_of_a_document_runs(document: Path, desk: Path) -> None:
    names: dict = {}
    for code in blocks(document, "python"):
        exec(code, names)
    assert names["logits"].shape[:2] == next(
        names[text].shape if isinstance(names[text], torch.Tensor) else names[text]["input_ids"].shape
        for text in ("clean", "tokens")
        if text in names
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_paths_in_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:masklearn|tests|benchmarks|docs|configs)/[\w/.-]+\.\w+)`", text)
    paths += re.findall(r"python ((?:tests|benchmarks|docs)/\w+\.py)", text)
    links = [link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) if "://" not in link]
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert missing + [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_sections_that_a_page_links_to_exist(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        target = (page.parent / link if link else page).read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.*)$", target, flags=re.M)
        assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, anchor


def test_the_architecture_is_that_of_the_code() -> None:
    """After a change of files or imports: `python docs/draw_architecture.py`."""
    assert architecture.picture() == (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert architecture.page() == (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_picture_has_every_folder_once() -> None:
    regenerated = [part for parts in architecture.FLOORS.values() for part in parts]
    assert sorted(regenerated) == sorted({architecture.part_of(name) for name in architecture.modules()})


def test_the_flow_names_what_its_files_define() -> None:
    rows = re.findall(r"^\| \d+ \| (.*?) \| (.*?) \|", (ROOT / "docs" / "architecture.md").read_text(), flags=re.M)
    assert len(rows) > 15
    for files, names in rows:
        code = "".join((ROOT / file).read_text() for file in re.findall(r"`([^`]+)`", files))
        for name in re.findall(r"`([^`]+)`", names):
            assert re.search(rf"^(def|class) {name}\b", code, flags=re.M), f"{name} in {files}"
