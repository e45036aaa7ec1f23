"""The documentation holds: its commands and Python run, in small, and what it says of the code is true of the code."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from documents import DOCUMENTS, IN_SMALL, blocks, commands

from masklearn.cli import evaluate, train

sys.path.insert(0, str(ROOT / "docs"))

import draw_architecture as architecture

pytest_plugins = ["documents"]
COMMANDS = [
    pytest.param(command, id=f"{document.stem}: {' '.join(command)}")
    for document in DOCUMENTS
    for command in commands(document)
    if "--mask" not in command or "runs/my-run/mask.safetensors" in command
]
WITH_PYTHON = [document for document in DOCUMENTS if blocks(document, "python")]
PAGES = [*DOCUMENTS, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", ROOT / "benchmarks" / "README.md"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_documents_runs(command: list[str], desk: Path) -> None:
    entry_point, *args = command
    if entry_point == "evaluate.py":
        assert evaluate(args) == 0
    else:
        assert train([*args, *([] if "--run.resume" in args else IN_SMALL)]) == 0


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
    drawn = [part for parts in architecture.FLOORS.values() for part in parts]
    assert sorted(drawn) == sorted({architecture.part_of(name) for name in architecture.modules()})


def test_the_flow_names_what_its_files_define() -> None:
    rows = re.findall(r"^\| \d+ \| (.*?) \| (.*?) \|", (ROOT / "docs" / "architecture.md").read_text(), flags=re.M)
    assert len(rows) > 15
    for files, names in rows:
        code = "".join((ROOT / file).read_text() for file in re.findall(r"`([^`]+)`", files))
        for name in re.findall(r"`([^`]+)`", names):
            assert re.search(rf"^(def|class) {name}\b", code, flags=re.M), f"{name} in {files}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("furo", reason="the documentation's packages are not installed; pip install -e '.[docs]'")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")  # generated pages go here, not into the checkout
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "masklearn").symlink_to(ROOT / "masklearn")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(tmp_path / "docs"), str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    for page in ("index", "quality", "api/index", "api/masking"):
        assert (tmp_path / "site" / f"{page}.html").is_file()
