"""Mistakes on the command line: one line each, nothing lost; and the help that prevents them."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Run, contents, one_line
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator

import masklearn as ml
from masklearn.cli import evaluate, train
from masklearn.cli.evaluation_texts import choose_settings
from masklearn.cli.parsing import explain
from masklearn.cli.train_cli import TrainCLI
from masklearn.cli.user_messages import user_message
from masklearn.errors import UserError


@pytest.fixture(autouse=True)
def in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.stepz", "3"], "no flag or key model.stepz. Did you mean model.steps?"),
        (["--model.step=3"], "no flag or key model.step. Did you mean model.steps?"),
        (["--data.lenght", "3"], "Did you mean data.max_length?"),
        (["--trainer.max_epoch", "3"], "Did you mean trainer.max_epochs?"),
        (["names"], "no flag or key names"),
        (["--model.steps", "many"], "model.steps"),
        (["--data.positions", "middle"], "choose from last, all, random, each, completion"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", "stepz.yaml"], "no flag or key model.stepz. Did you mean model.steps?"),
        (["--config", "broken.yaml"], "line 2"),
        (["--model.lm", "./nowhere", "--data.task", "names"], "there is no folder ./nowhere"),
        (["--model.revision", "main"], "embedded is not on the hub, so it has no revisions"),
        (
            ["--data.path", "varied.txt", "--model.lm", "./short", "--model.revision", "v1"],
            "./short is not on the hub, so it has no revisions",
        ),
        (["--model.lm", "nobody/nothing", "--data.path", "texts.jsonl"], "cannot load 'nobody/nothing'"),
        (["--data.path", "empty.jsonl"], "empty.jsonl is empty"),
        (["--data.path", "columns.csv"], "no column 'text'; it has prompt, id"),
        (["--data.path", "short.jsonl"], "shorter than two tokens"),
        (["--data.batch_size", "0"], "data.batch_size is 0; it must be at least 1"),
        (["--model.sizes", "[0]"], "model.sizes asks for 0 nodes"),
        (["--model.sizes", "[40]"], "asks for 40 nodes, but the model has 36"),
        (["--model.sizes", "[9, 9]"], "names 9 of 36 nodes twice"),
        (["--model.sizes", "[]"], "model.sizes is empty"),
        (["--model.steps", "0"], "model.steps is 0; it must be at least 1"),
        (["--model.polish_budget", "-1"], "model.polish_budget is -1.0; give a multiple of what learning costs"),
        (["--model.lr", "0"], "model.lr is 0"),
        (["--model.temperature", "[1, 0]"], "model.temperature"),
        (["--model.lr", ".nan"], "model.lr is nan"),
        (["--data.path", "varied.txt", "--model.lm", "./short"], "reads at most 3"),
        (["--trainer.strategy", "fsdp"], "every device holds the whole model. Choose --trainer.strategy ddp"),
        (["--run.shard", "9/8"], "run.shard is 9/8; give the number of this shard and of all, from 1/8 to 8/8"),
        (["--run.shard", "1/2"], "run.shard divides the groups of a run among jobs"),
        (
            ["--trainer.val_check_interval", "7", "--model.steps", "6"],
            "trainer.val_check_interval is 7, but the run has 6",
        ),
        (["--trainer.val_check_interval", "301"], "trainer.val_check_interval is 301, but the run has 300"),
        (["--trainer.accelerator", "gpu"], "trainer: "),
        (["--trainer.precision", "bf16-true"], "Choose the precision of the frozen model with --model.dtype"),
        (["--trainer.accumulate_grad_batches", "2"], "--data.batch_size"),
        (["--trainer.fast_dev_run", "true"], "--model.steps 10"),
        (["--model.graph", "edges", "--trainer.max_time", "00:01:00:00"], "trainer.max_time does not limit model.gr"),
        (["--model.graph", "positions", "--trainer.max_steps", "9"], "max_steps does not limit model.graph positions"),
        (["--run.dir", "texts.jsonl/run"], "cannot write texts.jsonl/run"),
    ],
)
def test_a_mistake_is_one_line_and_loses_nothing(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stepz.yaml").write_text("model:\n  stepz: 3\n")
    (tmp_path / "broken.yaml").write_text("model:\n  steps: [3\n")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "columns.csv").write_text("prompt,id\ndog,1\n")
    (tmp_path / "short.jsonl").write_text('{"text": "the dog"}\n' * 5 + '{"text": ""}\n')
    (tmp_path / "varied.txt").write_text("the dog runs\nthe cat runs\nthe bird runs\n")
    (tmp_path / "texts.jsonl").write_text('{"text": "the dog runs"}\n' * 5)
    if "./short" in args:
        lm = ml.load_lm()
        lm.config.max_position_embeddings = 3
        lm.save_pretrained(tmp_path / "short")
        ml.load_tokenizer().save_pretrained(tmp_path / "short")
    before = contents(tmp_path)
    assert train(args) == 2
    assert message in one_line(capsys)
    assert contents(tmp_path) == before


def test_a_message_of_the_trainer_keeps_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"is_available": True, "device_count": 1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    with pytest.raises(MisconfigurationException) as raised:
        Trainer(accelerator="gpu", devices=4, logger=False)
    message = user_message(raised.value)
    assert "You requested gpu: [0, 1, 2, 3]" in message and "only has: [0]" in message and "\n" not in message


@pytest.mark.parametrize("damage", ["missing", "cut", "text"])
def test_a_damaged_mask_file_is_one_line(
    damage: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mask.safetensors"
    content = (run.folder / "mask.safetensors").read_bytes()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"no mask")
    assert evaluate(["--mask", str(path)]) == 2
    assert f"cannot read the mask file {path}" in one_line(capsys)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--data.max_length", "24"], "--data.max_length would change which texts are held out of those that "),
        (["--data.limit", "20", "--data.positions", "all"], "--data.limit would change which texts are held out"),
        (["--dtype", "bfloat16"], "was learned in float32; the weights differ in bfloat16. Leave --dtype out"),
    ],
)
def test_flags_that_change_the_held_out_texts_or_the_weights_are_refused(
    flags: list[str], line: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(["--mask", str(run.folder / "mask.safetensors"), *flags]) == 2
    assert line in one_line(capsys)


def test_settings_of_the_texts_are_those_of_the_run_unless_flags_change_them() -> None:
    learned_on = {
        "path": "texts.jsonl",
        "dataset": None,
        "task": None,
        "split": "train",
        "limit": 90,
        "max_length": 128,
    }
    from_hub = learned_on | {"path": None, "dataset": "some/texts"}
    harmless, same_path = {"positions": "last", "batch_size": 4}, {"path": str(Path.cwd() / "texts.jsonl")}
    hub_test = {key: value for key, value in from_hub.items() if key != "limit"} | {"split": "test"}
    for own, requested, expected, are_others in (
        (learned_on, {}, learned_on, False),
        (learned_on, harmless, learned_on | harmless, False),
        (learned_on, same_path, learned_on | same_path, False),
        (learned_on, {"task": "copy"}, {"max_length": 128, "task": "copy"}, True),
        (learned_on | {"text_column": "x"}, {"task": "copy"}, {"max_length": 128, "task": "copy"}, True),
        (learned_on, {"path": "~/texts.jsonl"}, {"max_length": 128, "path": "~/texts.jsonl"}, True),
        (from_hub, {"split": "test"}, hub_test, True),
    ):
        assert choose_settings("mask", own, requested, any_split=False) == (expected, are_others)
    expected = learned_on | {"limit": 9}
    assert choose_settings("mask", learned_on, {"limit": 9}, any_split=True) == (expected, False)


def test_a_mistyped_evaluation_flag_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(["--mask", "x", "--data.pth", "y"]) == 2
    assert "no flag or key data.pth. Did you mean data.path?" in one_line(capsys)
    assert evaluate([]) == 2
    assert "mask" in one_line(capsys)


@pytest.mark.parametrize(("steps", "interval"), [([], 0.167), (["--model.steps", "40"], 40)])
def test_epochs_between_validations_may_be_null(steps: list[str], interval: float) -> None:
    """Lightning refuses null with an interval that is a share, which is the default; a run is a single epoch."""
    trainer = TrainCLI(["--trainer.check_val_every_n_epoch", "null", *steps]).trainer
    assert trainer.check_val_every_n_epoch == 1 and trainer.val_check_interval == interval


def test_other_messages_of_the_parser_are_passed_on_in_one_line() -> None:
    assert explain("Some\n  - odd complaint.", ["a"]) == "Some odd complaint. See --help"


@pytest.mark.parametrize(
    ("entry_point", "flag", "line"),
    [
        (
            train,
            "--model.budget",
            "model.budget is projectd; choose from projected, lagrangian. Did you mean projected?",
        ),
        (train, "--data.task", "data.task is projectd; choose from mixed, names, agreement, years, copy"),
        (evaluate, "--baselines", "baselines is projectd; choose from random, random-matched, inverse, norm, "),
    ],
)
def test_an_unknown_name_is_answered_with_the_names_to_choose_from(
    entry_point: Callable[[list[str]], int], flag: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = ["--mask", "m"] if entry_point is evaluate else []
    assert entry_point([*needed, flag, "projectd"]) == 2
    assert f"error: {line}" in capsys.readouterr().err


def test_a_mistake_is_named_though_the_memory_cannot_be_cleared_after_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a recording from which CUDA does not recover: Lightning clears the memory before it passes errors on."""

    def fail(error: Exception) -> Callable[..., None]:
        def raise_it(*_: object) -> None:
            raise error

        return raise_it

    monkeypatch.setattr(ml.MaskLearner, "training_step", fail(UserError("the model cannot be recorded")))
    monkeypatch.setattr(CPUAccelerator, "teardown", fail(RuntimeError("captures_underway.empty()")))
    flags = ["--data.task", "names", "--data.limit", "20", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    assert train([*flags, "--trainer.enable_progress_bar", "false"]) == 2
    assert one_line(capsys) == "error: the model cannot be recorded\n"


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train(["--help"])
    assert stop.value.code == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    flags = ["--model.sizes", "--data.path", "--run.dir", "--trainer.accelerator"]
    assert sorted(flags, key=text.index) == flags  # Lightning's many flags come last
    with pytest.raises(SystemExit):
        train(["--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    for section in ("model", "data", "run"):
        for key in config[section]:
            if section != "data" or key not in ("lm", "revision", "trust_remote_code"):  # taken from model.*
                flag = f"{section}.{key}"
                explanations = re.findall(rf"--{flag}\+? \S.*?(?= --|$)", text)
                assert any(re.search(r" [A-Z].+\((type|default|required)", words) for words in explanations), flag


def test_a_config_that_a_crash_has_emptied_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("")
    assert train(["--run.dir", str(tmp_path), "--run.resume", "true"]) == 2
    assert "config.yaml is damaged" in capsys.readouterr().err


def test_the_printed_config_is_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train(["--model.steps", "7", "--print_config"])
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["steps"] == 7
    assert config["data"]["max_length"] == 128
