"""The commands from the command line: runs, evaluations, resuming."""

import json
import re
import shutil
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, SMALL, Run, contents, one_line

import masklearn as ml
from masklearn import evaluation
from masklearn.cli import evaluate, evaluate_bank, train
from masklearn.data.digests import texts_digest
from masklearn.training import learner


@pytest.fixture(autouse=True)
def in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)


FIGURES = ("overview", "masks", "curve")

# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_writes_every_file_of_the_contract(run: Run) -> None:
    for name in ("config.yaml", "mask.safetensors", "metrics.json", "checkpoints/last.ckpt", "figures/masks.png"):
        assert (run.folder / name).stat().st_size > 0
    assert (run.folder / "checkpoints/last.ckpt").stat().st_size < 200_000
    for name in ("mask.safetensors", "metrics.json", "report.html", *(f"figures/{f}.png" for f in FIGURES)):
        assert str(run.folder / name) in run.output
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert config["run"]["dir"] == str(run.folder)
    assert config["data"]["limit"] == 24
    assert config["model"]["steps"] == 60


def test_the_printed_table_shows_the_measured_values(run: Run) -> None:
    sizes = run.metrics["sizes"]
    assert [row["s"] for row in sizes] == [4, 18, 30]
    for row in sizes:
        assert row["heads"] + row["mlps"] == row["s"]
        assert row["fraction"] == row["s"] / 36
        assert row["controls"]["random"]["n"] >= 5
        assert f"{row['kl']:.3f}" in run.output
        assert row["cross_entropy"] is None  # the scored token is a name, and the text ends before it
    assert sizes[2]["kl"] < sizes[2]["controls"]["random"]["kl_mean"]
    assert run.metrics["seconds"] > 0
    assert run.metrics["model"]["n_nodes"] == 36
    for size, expected in run.metrics["expected_sizes"].items():
        assert expected == pytest.approx(int(size), abs=0.5)
    assert "NaN" not in (run.folder / "metrics.json").read_text()


def test_progress_bars_reach_their_end(run: Run) -> None:
    for bar, steps in (("Epoch 0", 60), ("Polish", 9)):  # three masks: each alone, then downwards, then upwards
        assert re.search(rf"{bar}: 100%.* {steps}/{steps} ", run.output)
    assert "Validation" not in run.output


def test_the_mask_can_be_used_from_python(run: Run) -> None:
    lm, tokenizer = ml.load_lm(), ml.load_tokenizer()
    mask = ml.Mask.load(run.folder / "mask.safetensors")
    with ml.gated(lm, mask.select(s=30)):
        logits = lm(**tokenizer("mary and john went to", return_tensors="pt", return_token_type_ids=False)).logits
    assert logits.shape == (1, 6, lm.config.vocab_size)
    assert mask.metrics == run.metrics["sizes"]


def test_evaluation_reproduces_the_numbers_from_the_mask_file_alone(run: Run, tmp_path: Path) -> None:
    copy = shutil.copy(run.folder / "mask.safetensors", tmp_path / "copy.safetensors")
    assert evaluate(["--mask", str(copy), "--out", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["sizes"]
    for row, expected in zip(rows, run.metrics["sizes"], strict=True):
        assert flat(row) == pytest.approx(flat(expected), abs=1e-5)


def flat(row: dict) -> dict:
    """The numbers of a row, those of the random baseline and of the references of faithfulness among them."""
    numbers = row | row["controls"]["random"]
    for name, found in row.get("references", {}).items():
        numbers |= {f"{name} {metric}": value for metric, value in found.items()}
    return {key: value for key, value in numbers.items() if isinstance(value, int | float)}


def test_evaluation_on_other_data_and_of_several_masks(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    texts = tmp_path / "other.txt"
    texts.write_text("\n".join(f"the {noun} near the dogs" for noun in ("dog", "cat", "bird", "king", "poet")))
    mask = str(run.folder / "mask.safetensors")
    assert evaluate(["--mask", mask, "--mask", mask, "--data.path", str(texts), "--out", str(tmp_path)]) == 0
    first, second = json.loads((tmp_path / "metrics.json").read_text())
    assert first == second
    assert first["sizes"] != run.metrics["sizes"]
    assert first["text"].startswith("all 5 texts of ")
    assert capsys.readouterr().out.count("random KL") == 2


def test_baselines_are_chosen_on_the_texts_that_the_mask_was_learned_on(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So the same subgraphs are evaluated on the mask's own texts and on others."""
    mask, names = str(run.folder / "mask.safetensors"), ["norm", "integrated-gradients", "random-matched"]
    flags = ["--mask", mask, "--baselines", json.dumps(names)]
    assert evaluate([*flags, "--out", str(tmp_path / "own")]) == 0
    assert "integrated-gradients KL" in capsys.readouterr().out
    assert evaluate([*flags, "--data.task", "copy", "--data.limit", "20", "--out", str(tmp_path / "other")]) == 0
    own, other = (json.loads((tmp_path / name / "metrics.json").read_text())["sizes"] for name in ("own", "other"))
    for row, other_row in zip(own, other, strict=True):
        assert list(row["controls"]) == list(other_row["controls"]) == names
        assert row["controls"]["norm"]["kl"] != other_row["controls"]["norm"]["kl"]
        assert row["controls"]["random-matched"]["n"] == 10
        assert row["kl"] < row["controls"]["random-matched"]["kl_mean"]
    assert own[1]["kl"] < own[1]["controls"]["norm"]["kl"]


def test_constants_and_baselines_come_from_the_training_texts_whatever_is_evaluated(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a smaller limit, other texts would be the training texts."""
    used: list[str] = []
    fit, choose = evaluate_bank._ablation, evaluate_bank.bank_scorer
    monkeypatch.setattr(evaluate_bank, "_ablation", lambda *args: (used.append(texts_digest(args[3])), fit(*args))[1])
    monkeypatch.setattr(
        evaluate_bank, "bank_scorer", lambda *args: (used.append(texts_digest(args[2])), choose(*args))[1]
    )
    flags = ["--mask", str(run.folder), "--ablation", "[mean]", "--baselines", "[attribution]"]
    for others in ([], ["--part", "all", "--data.limit", "12"], ["--part", "train", "--data.seed", "5"]):
        assert evaluate([*flags, *others]) == 0
    assert len(used) == 6 and len(set(used)) == 1


def test_a_table_counts_more_than_a_thousand_heads(run: Run) -> None:
    for heads, shown in ((2560.4, "2560"), (99.96, "100"), (4.25, "4.25")):
        titles, cells = evaluation.table([run.metrics["sizes"][0] | {"heads": heads}])
        assert dict(zip(titles, cells, strict=True))["heads"] == shown


def test_an_impossible_baseline_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    mask = str(run.folder / "mask.safetensors")
    assert evaluate(["--mask", mask, "--baselines", "[gredy]"]) == 2
    assert "greedy-forward" in one_line(capsys)
    assert evaluate(["--mask", mask, "--seed", "-1"]) == 2
    assert "seed is -1; it must be at least 0" in one_line(capsys)
    assert evaluate(["--mask", mask, "--baseline_texts", "0"]) == 2
    assert "baseline_texts is 0; it must be at least 1" in one_line(capsys)
    for flags in (["--seed", "3"], ["--track", "true"], ["--baseline_texts", "3"]):  # nothing would follow them
        assert evaluate(["--mask", mask, *flags]) == 2
        assert f"leave out {flags[0]}" in one_line(capsys)
    assert evaluate(["--mask", mask, "--baselines", "[exhaustive]"]) == 2
    assert "all subgraphs of up to 20 nodes, and the model has 36" in one_line(capsys)


def test_a_mask_for_another_model_is_refused(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm = ml.load_lm()
    lm.get_input_embeddings().get_parameter("weight").add_(1)
    lm.save_pretrained(tmp_path / "other")
    ml.load_tokenizer().save_pretrained(tmp_path / "other")
    code = evaluate(["--mask", str(run.folder / "mask.safetensors"), "--lm", str(tmp_path / "other")])
    message = one_line(capsys)
    assert code == 2
    assert "learned on embedded (fingerprint" in message
    assert f"not on {tmp_path / 'other'} (fingerprint" in message


# --- a second run in the same folder ----------------------------------------------------------------------------------


def test_a_second_run_is_refused_and_changes_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run.folder)
    assert train([*SMALL, "--run.dir", str(run.folder)]) == 2
    assert "already holds a run. Choose another --run.dir, or resume it" in one_line(capsys)
    assert contents(run.folder) == before


def test_resuming_a_finished_run_prints_its_results(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run.folder)
    assert train(["--config", str(run.folder / "config.yaml"), "--run.resume", "true"]) == 0
    assert "This run is finished" in capsys.readouterr().out
    assert contents(run.folder) == before


@pytest.mark.parametrize("step", [0, 3])
def test_a_loss_that_is_not_finite_keeps_the_last_good_state(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses, steps = learner.losses, count()

    def broken(*args: Any) -> Any:
        found = losses(*args)
        return found._replace(values=found.values * (float("nan") if next(steps) == step else 1))

    monkeypatch.setattr(learner, "losses", broken)
    assert train([*SMALL, "--run.dir", "run", "--trainer.logger", "false"]) == 2
    message = one_line(capsys)
    assert f"the loss at step {step} is not finite" in message
    assert not Path("run/mask.safetensors").exists()
    last = Path("run/checkpoints/last.ckpt")
    assert (f"The last good state is kept in {last}" in message) == last.exists() == (step > 0)
    if step:
        state = torch.load(last, weights_only=True)
        assert state["global_step"] == step
        assert state["state_dict"]["bank.log_odds"].isfinite().all()


def test_a_killed_run_resumes_to_the_same_mask(run: Run, tmp_path: Path) -> None:
    """Killed as soon as its first checkpoint exists, moved to another folder, and resumed there."""
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, "--run.dir", "killed", "--trainer.logger", "false"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not Path("killed/checkpoints/last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not Path("killed/mask.safetensors").exists()
    folder = tmp_path / "other folder" / "moved"
    shutil.copytree("killed", folder)
    assert train(["--config", str(folder / "config.yaml"), "--run.resume", "true"]) == 0
    resumed, uninterrupted = (ml.Mask.load(path / "mask.safetensors") for path in (folder, run.folder))
    assert torch.equal(resumed.scores, uninterrupted.scores)
    assert torch.equal(resumed.mask, uninterrupted.mask)
    assert not (folder / "wandb").exists()


def test_a_folder_that_a_flag_names_is_not_replaced_by_that_of_the_config(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new run that took its settings from the config of another one: resumed by hand, and requeued."""
    flags = ["--config", str(run.folder / "config.yaml"), "--trainer.logger", "false", "--run.dir", "own"]
    flags += ["--model.steps", "4", "--model.polish", "0"]
    before = contents(run.folder)
    assert train([*flags, "--run.resume", "true"]) == 2
    assert "there is no run in own" in one_line(capsys)
    assert train([*flags, "--trainer.max_steps", "2"]) == 2
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert train(flags) == 0
    assert ml.Mask.load("own/mask.safetensors").config["model"]["steps"] == 4
    assert contents(run.folder) == before


def test_a_config_of_ones_own_beside_which_no_run_is_resumes_none(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    settings = yaml.safe_load((run.folder / "config.yaml").read_text())
    Path("config.yaml").write_text(yaml.safe_dump(settings | {"run": {"dir": "runs/typo"}}))
    assert train(["--config", "config.yaml", "--run.resume", "true"]) == 2
    assert "there is no run in runs/typo" in one_line(capsys)
    assert not Path("mask.safetensors").exists()


def test_a_run_is_not_resumed_under_other_settings(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert train([*SMALL, "--model.steps", "70", "--run.dir", str(run.folder), "--run.resume", "true"]) == 2
    message = one_line(capsys)
    assert "was started with model.steps 60, not 70" in message
    assert f"python train.py --config '{run.folder / 'config.yaml'}' --run.resume true" in message


def test_existing_files_in_a_folder_are_kept(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mask.safetensors").write_text("precious")
    assert train([*SMALL, "--run.dir", "mine"]) == 2
    assert "mine already holds mask.safetensors, which is kept" in one_line(capsys)
    assert contents(tmp_path / "mine") == {"mask.safetensors": b"precious"}
    for name in ("report.html", "evidence.json", "metrics.json"):
        (tmp_path / name.replace(".", "-")).mkdir()
        (tmp_path / name.replace(".", "-") / name).write_text("precious")
    assert train([*SMALL, "--run.dir", "report-html"]) == 2
    assert "already holds report.html, which is kept" in one_line(capsys)
    assert evaluate(["--mask", str(run.folder), "--out", "evidence-json"]) == 2
    assert "evidence-json holds evidence, whose report would be replaced" in one_line(capsys)
    assert evaluate(["--mask", str(run.folder), "--evidence", "true", "--out", "metrics-json"]) == 2
    assert "metrics-json holds an evaluation, whose report would be replaced" in one_line(capsys)
    before = contents(run.folder)
    assert evaluate(["--mask", str(run.folder / "mask.safetensors"), "--out", str(run.folder)]) == 2
    assert "metrics.json already exists and is kept" in one_line(capsys)
    assert contents(run.folder) == before
    (tmp_path / "stopped").mkdir()
    shutil.copy(run.folder / "config.yaml", tmp_path / "stopped")
    assert evaluate(["--mask", str(run.folder / "mask.safetensors"), "--out", "stopped"]) == 2
    assert "stopped holds a run that is not finished" in one_line(capsys)
    assert evaluate(["--mask", str(run.folder), "--evidence", "true", "--out", str(run.folder)]) == 2
    assert "holds a run, whose report would be replaced" in one_line(capsys)
    assert contents(run.folder) == before


def test_resuming_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["--run.dir", str(tmp_path / "x"), "--run.resume", "true"]) == 2
    assert "there is no run in" in one_line(capsys)
    assert train(["--run.resume", "true"]) == 2
    assert "run.resume needs the run to resume" in one_line(capsys)
