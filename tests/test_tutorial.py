"""The tutorial runs, in small; and notebooks of the documentation are kept with their outputs."""

import json
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT

import masklearn as ml

NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))


def cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_every_cell_of_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ml, "learn", partial(ml.learn, steps=2, polish=0, progress=False), raising=False)
    monkeypatch.setattr(ml, "baselines", lambda bank, names: ml.api.baselines(bank, names[:1]), raising=False)
    names: dict = {}
    for cell in cells(ROOT / "docs" / "tutorial.ipynb"):
        exec("".join(cell["source"]).replace("limit=120", "limit=24"), names)
    assert (tmp_path / "names.html").is_file()
    assert names["crossed"].sizes == names["names"].sizes == [4, 9, 18]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_have_outputs_without_errors_or_machine_paths(notebook: Path) -> None:
    outputs = [output for cell in cells(notebook) for output in cell["outputs"]]
    assert len(outputs) >= 3
    assert not any(output["output_type"] == "error" for output in outputs)
    assert str(Path.home()) not in notebook.read_text(encoding="utf-8")
