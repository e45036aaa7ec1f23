"""Evidence on the command line: what is kept, what is crossed with what, and what is refused."""

import csv
import json
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, one_line, tiny_llama
from torch import Tensor

import masklearn as ml
from masklearn.cli import evaluate, evidence_command, train
from masklearn.cli.evidence_command import MATRIX_PAGE, run_names
from masklearn.data import MaskData
from masklearn.evidence import bench, completeness, transfer
from masklearn.evidence.rediscovery import Rediscoverer
from masklearn.evidence.text_scores import score_texts
from masklearn.evidence.transfer import transfer_matrix
from masklearn.evidence.verdicts import CLAIMS
from masklearn.mask_file import ModelId
from masklearn.masking import MaskedLM
from masklearn.models import load_lm
from masklearn.tiny import tasks


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])


QUICK = [
    *("--plan.seeds", "2", "--plan.bootstraps", "2", "--plan.halves", "0", "--plan.draws", "60", "--plan.texts", "4"),
    *("--plan.steps", "2", "--plan.polish_budget", "0.01", "--plan.pairs", "3", "--plan.transfer", "[copy]"),
]


def test_evidence_of_a_run_is_written_and_resumed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["--mask", str(run.folder / "mask.safetensors"), "--evidence", "true", "--out", str(tmp_path), *QUICK]
    assert evaluate(command) == 0
    found = json.loads((tmp_path / "evidence.json").read_text())
    by_claim = {(row["claim"], row["s"]): row for row in found["tables"]["verdicts"]}
    assert {s for _, s in by_claim} == {4, 18, 30}
    assert by_claim["equivalent", 4]["verdict"] == "not tested"
    assert "at least" in by_claim["equivalent", 4]["measured"]  # how many texts there must be
    assert {row["source"] for row in found["tables"]["stability"]} == {"seed", "bootstrap"}
    learned = {"shuffled texts", "untrained model", "another task: mixed"}  # the task whatever plan.transfer says
    assert {row["control"] for row in found["tables"]["controls"]} > learned
    assert any("paraphrases" in gap for gap in found["not_tested"])
    page = (tmp_path / "report.html").read_text()
    assert found["summary"].split(".")[0] in page
    tables = {path.name: path.read_bytes() for path in (tmp_path / "tables").glob("*.csv")}
    assert {"verdicts.csv", "tests.csv", "transfer.csv"} <= {*tables}

    def computed_again(*args: object) -> None:
        raise AssertionError("what is kept is not computed again")

    for owner, name in (
        (Rediscoverer, "_learn"), (bench, "score_texts"), (completeness, "kl_between"), (transfer, "score_texts"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, computed_again)
    assert evaluate(command) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "tables").glob("*.csv")} == tables
    few = [*command, "--plan.parts", "[tests,transfer]"]
    assert evaluate(few) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "tables").glob("*.csv")} == tables
    again = json.loads((tmp_path / "evidence.json").read_text())
    assert (again["tables"], again["summary"], again["facts"]) == (found["tables"], found["summary"], found["facts"])
    assert sorted(again["not_tested"]) == sorted(found["not_tested"])
    with pytest.raises(AssertionError, match="not computed again"):  # another setting of the tests
        evaluate([*command, "--plan.draws", "61"])


def saved(folder: Path, bank: ml.Mask, n_sizes: int, **data: str) -> str:
    """A bank of the first sizes of another, on other texts if these are given, saved as a run does."""
    sizes = bank.sizes[:n_sizes]
    config = bank.config | {
        "model": bank.config["model"] | {"sizes": sizes.tolist()},
        "data": data or bank.config["data"],
    }
    fewer = {"mask": bank.mask[:, :n_sizes], "scores": bank.scores[:, :n_sizes], "sizes": sizes}
    replace(bank, config=config, **fewer).save(folder / "mask.safetensors")
    return str(folder)


def test_a_stopped_command_goes_on_where_it_was(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, seen = saved(tmp_path / "two", ml.Mask.load(run.folder), 2), list[int]()
    command = ["--mask", mask, "--evidence", "true", "--out", str(tmp_path), *QUICK, "--track", "false"]

    def fails_at(size: int | None) -> None:
        def chosen(lm: MaskedLM, mask: Tensor, texts: object) -> Tensor:
            if int(mask.sum()) == size:
                raise KeyboardInterrupt
            seen.append(int(mask.sum()))
            return mask

        monkeypatch.setattr(completeness, "adversary", chosen)

    fails_at(18)
    assert evaluate(command) == 2
    assert not (tmp_path / "evidence.json").exists()
    parts = {path.stem for path in (tmp_path / "parts").iterdir()}
    assert {"tests-0-4", "tests-0-18", "controls-0", "completeness-0-4"} < parts
    (tmp_path / "parts" / "tests-0-4.json").write_text("{")  # damaged
    fails_at(None)
    assert evaluate(command) == 0
    assert seen == [4, 18]


# --- transfer ---------------------------------------------------------------------------------------------------------


def row(group: str, s: int, what: str, name: str, kl: float) -> dict[str, Any]:
    """A row of a transfer table."""
    of_kl = {"kl": kl, "random_kl": 4.0, "recovered": 1 - kl / 4}
    return {"group": group, "s": s, "what": what, "name": name, "texts": 3, **of_kl}


def matrix_of(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The written matrix by mask and texts."""
    with (folder / "tables" / "transfer_matrix.csv").open() as file:
        return {(row["mask"], row["texts"]): row for row in csv.DictReader(file)}


def test_the_matrix_compares_with_the_mask_of_the_texts_by_hand() -> None:
    tables = {
        "a": [row("dataset", 2, "own texts", "dataset", 1.0), row("dataset", 2, "run", "b: x", 3.0),
              row("dataset", 2, "length", "longer", 9.0)],
        "b": [row("x", 2, "own texts", "x", 2.0), row("x", 2, "group", "y", 2.5), row("x", 2, "texts", "c.jsonl", 8.0),
              row("y", 3, "own texts", "y", 0.5), row("x", 2, "run", "a", 4.0)],
    }  # fmt: skip
    found = {
        (row["mask"], row["texts"]): (row["kl"], row["own_kl"], row["over_own"]) for row in transfer_matrix(tables)
    }
    assert found == {
        ("a", "a"): (1, 1, 1), ("a", "b: x"): (3, 2, 1.5), ("b: x", "b: x"): (2, 2, 1), ("b: x", "a"): (4, 1, 4),
        ("b: x", "b: y"): (2.5, None, None), ("b: y", "b: y"): (0.5, 0.5, 1),
    }  # fmt: skip


def test_the_matrix_takes_other_texts_with_the_name_of_a_group_for_no_group() -> None:
    """Groups of a column of tasks have the names of the embedded tasks, to which masks are transferred by default."""
    table = [row("names", 2, "own texts", "names", 1.0), row("names", 2, "group", "years", 3.0),
             row("names", 2, "texts", "names", 7.0), row("names", 2, "texts", "years", 8.0),
             row("years", 2, "own texts", "years", 2.0)]  # fmt: skip
    found = [(row["mask"], row["texts"], row["kl"], row["own_kl"]) for row in transfer_matrix({"run": table})]
    assert found == [
        ("run: names", "run: names", 1, 1), ("run: names", "run: years", 3, 2), ("run: years", "run: years", 2, 2),
    ]  # fmt: skip


def test_runs_in_folders_of_the_same_name_are_numbered() -> None:
    files = [f"{folder}/mask.safetensors" for folder in ("/a/run-3", "/b/run", "/c/run", "/d/run", "/e/run")]
    assert run_names([*files, "/f/other.safetensors"]) == ["run-3", "run", "run-2", "run-4", "run-5", "other"]


def test_several_runs_are_crossed(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run's masks are of two groups of rows, by a column of a file; the model of both is loaded once."""
    loaded = list[str]()

    def counted(name: str, *args: Any, **options: Any) -> Any:
        loaded.append(name)
        return load_lm(name, *args, **options)

    monkeypatch.setattr(evidence_command, "load_lm", counted)
    path, bank = tmp_path / "rows.jsonl", ml.Mask.load(run.folder)
    rows = [{"text": text, "kind": str(i % 2)} for i, text in enumerate(islice(tasks.texts(), 40))]
    path.write_text("\n".join(map(json.dumps, rows)))
    grouped = replace(
        bank, mask=torch.cat([bank.mask, bank.mask.flip(-1)]), scores=torch.cat([bank.scores, bank.scores.flip(-1)]),
        groups=("0", "1"), positions="all", config={"model": bank.config["model"] | {"scope": "column:kind"}},
    )  # fmt: skip
    masks = [saved(tmp_path / "one", bank, 1), saved(tmp_path / "two", grouped, 1, path=str(path))]
    command = ["--evidence", "true", "--out", str(tmp_path / "out"), *QUICK, "--track", "false"]
    parts = ["--plan.transfer", f"[{path}]", "--plan.parts", "[transfer]"]
    assert evaluate(["--mask", *masks, *command, *parts]) == 0 and loaded == ["embedded"]
    printed = capsys.readouterr().out
    assert "KL on the texts of every run" in printed and f"Written: {tmp_path / 'out' / MATRIX_PAGE}, " in printed
    assert re.search(r"Expected time: .* \(transfer [^,]*\)\n", printed)
    kept = {path.stem.split("-")[0] for path in (tmp_path / "out").glob("*/parts/*")}
    assert kept == {"transfer"} and not [*(tmp_path / "out").glob("*/rediscovered/*")]
    found = json.loads((tmp_path / "out" / "one" / "evidence.json").read_text())
    verdicts = {row["claim"]: (row["verdict"], row["measured"]) for row in found["tables"]["verdicts"]}
    assert list(verdicts) == list(CLAIMS)
    assert {*verdicts.values()} == {("not tested", "left out by --plan.parts")}
    assert "Controls: left out by --plan.parts" in found["not_tested"]
    assert not found["tables"]["controls"]
    matrix = matrix_of(tmp_path / "out")
    names = ["one", "two: 0", "two: 1"]
    assert {*matrix} == {(mask, texts) for mask in names for texts in names}
    assert float(matrix["two: 0", "two: 0"]["over_own"]) == 1
    assert "two: 1" in (tmp_path / "out" / "transfer_matrix.html").read_text()
    assert evaluate(["--mask", masks[1], *command, *parts, "--out", str(tmp_path / "out" / "two")]) == 0
    of_groups = {key: row["kl"] for key, row in matrix_of(tmp_path / "out" / "two").items()}  # of the groups of one run
    assert of_groups == {(a, b): matrix[a, b]["kl"] for a in names[1:] for b in names[1:]}
    found = json.loads((tmp_path / "out" / "two" / "evidence.json").read_text())["tables"]["transfer"]
    texts = {(row["what"], row["name"]) for row in found if row["group"] == "0" and row["what"] != "length"}
    assert texts == {("own texts", "0"), ("group", "1"), ("texts", str(path))}
    data = MaskData(str(path), scope="column:kind", max_groups=2)
    data.setup("fit")
    batches = data.loader("test", [data.groups.names.index("0")])
    kl = score_texts(MaskedLM(ml.load_lm(), bank.ablation), bank.select(4)[None], batches).mean_kl
    assert float(matrix["one", "two: 0"]["kl"]) == pytest.approx(float(kl), rel=1e-5)


def test_the_second_run_is_checked_before_the_first_takes_its_time(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_early(*args: object) -> None:
        raise AssertionError("gathered before all runs were checked")

    monkeypatch.setattr(evidence_command, "gather", too_early)
    bank = ml.Mask.load(run.folder)
    absent = replace(bank, model=ModelId(str(tmp_path / "gone"), None, bank.model.fingerprint))
    masks = [saved(tmp_path / "one", bank, 1), saved(tmp_path / "two", absent, 1)]
    capsys.readouterr()
    assert evaluate(["--mask", *masks, "--evidence", "true", "--out", str(tmp_path / "out"), *QUICK]) == 2
    assert "there is no folder" in one_line(capsys)


def test_masks_of_another_objective_or_of_every_position_have_no_evidence(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = ml.Mask.load(run.folder)
    config = mask.config | {"model": mask.config["model"] | {"objective": "logit-diff"}}
    for reason, change in ("minimise logit-diff", {"config": config}), ("several inputs", {"positions": "each"}):
        replace(mask, **change).save(tmp_path / "mask.safetensors")
        assert evaluate(["--mask", str(tmp_path), "--evidence", "true"]) == 2
        assert reason in one_line(capsys)


def test_masks_of_single_texts_have_no_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model.scope", "input", "--data.limit", "2", "--model.sizes", "[4]", "--model.steps", "2"]
    assert train([*flags, "--model.polish", "0", "--trainer.logger", "false", "--run.dir", str(tmp_path)]) == 0
    assert evaluate(["--mask", str(tmp_path / "mask.safetensors"), "--evidence", "true"]) == 2
    assert "--model.scope dataset" in capsys.readouterr().err


def test_evidence_of_one_size_and_of_a_run_whose_texts_are_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = tmp_path / "texts.jsonl", tmp_path / "run"
    source.write_text("\n".join(json.dumps({"text": text}) for text in [*islice(tasks.texts(), 8)] * 2))
    flags = ["--data.path", str(source), "--model.sizes", "[36]", "--model.steps", "2", "--model.polish", "0"]
    assert train([*flags, "--trainer.logger", "false", "--run.dir", str(folder)]) == 0
    command = ["--mask", str(folder / "mask.safetensors"), "--evidence", "true", *QUICK, "--plan.seeds", "1"]
    assert evaluate([*command, "--plan.bootstraps", "0"]) == 0
    printed = capsys.readouterr().out
    assert f"{folder / 'evidence' / 'report.html'}, {folder / 'evidence' / 'evidence.json'}, " in printed
    assert "1 of 2 held-out texts are equal to others, and left out" in printed
    found = json.loads((folder / "evidence" / "evidence.json").read_text())
    assert {row["verdict"] for row in found["tables"]["tests"]} == {"not tested"}
    source.unlink()
    capsys.readouterr()
    assert evaluate(command) == 2
    error = capsys.readouterr().err
    assert str(source) in error
    assert error.count("\n") == 1


def test_what_evidence_cannot_use_is_told_in_one_line(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = ml.Mask.load(run.folder)
    of_python = replace(bank, config=bank.config | {"data": {}, "texts": "8 texts given in Python"})
    of_python.save(tmp_path / "python" / "mask.safetensors")
    tiny_llama().save_pretrained(tmp_path / "other")
    for mask, flags, reason in (
        (run.folder, ["--data.limit", "3"], "Leave out --data.limit"),
        (run.folder, ["--baselines", "[norm]", "--ablation", "[mean]"], "does not use --ablation, --baselines. Leave"),
        (run.folder, ["--plan.transfer", "[absent.jsonl]"], "plan.transfer: absent.jsonl cannot be used"),
        (run.folder, ["--plan.transfer", "[column:kind]"], "plan.transfer: column:kind cannot be used"),
        (run.folder, ["--plan.transfer", "[text_column:french]"], "plan.transfer: text_column:french cannot be used"),
        (run.folder, ["--plan.parts", "[transfre]"], "Did you mean transfer?"),
        (run.folder, ["--plan.parts", "[]"], "plan.parts is empty"),
        (run.folder, ["--plan.parts", "[tests]"], "plan.transfer is for the part transfer"),
        (run.folder, ["--plan.paraphrase_column", "said"], "plan.paraphrase_column: said cannot be used"),
        (run.folder, ["--plan.checkpoints", "[step1000]"], "there is no folder step1000"),
        (run.folder, ["--plan.checkpoints", f"[{tmp_path / 'other'}]"], "15 nodes, and the masks 36"),
        (tmp_path / "python", [], "8 texts given in Python, which the mask file does not hold"),
    ):
        command = ["--mask", str(mask), "--evidence", "true", "--out", str(tmp_path / "out"), *QUICK, *flags]
        capsys.readouterr()
        assert evaluate(command) == 2
        assert reason in one_line(capsys)


def test_flags_of_a_plan_need_evidence(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(["--mask", str(run.folder / "mask.safetensors"), "--plan.seeds", "2"]) == 2
    assert "--evidence true" in capsys.readouterr().err
