"""`python export.py`: folders with their cards and tokenizers, and mistakes in one line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Run, one_line, tiny_llama

import masklearn as ml
from masklearn.cli import export


def test_the_command_writes_a_model_with_its_card(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "smaller"
    assert export(["--mask", str(run.folder / "mask.safetensors"), "--size", "0.5", "--to", "hf", str(out)]) == 0
    printed, card = capsys.readouterr().out, (out / "README.md").read_text()
    assert "it loads with trust_remote_code=True" in printed or "plain transformers loads it" in printed
    for row in ("parameters", "bytes of weights", "prefill of 87 tokens, ms", "decoding of a token, ms"):
        assert row in printed
        assert row in card
    assert "# 18 of 36 nodes of embedded" in card
    assert "base_model" not in card  # the hub refuses what is not on it
    assert "nothing stands in for them (zero ablation)" in card
    assert (out / "tokenizer.json").exists()
    assert json.loads((out / "config.json").read_text())["base_model_type"] == "llama"


def test_a_stock_folder_is_said_to_be_no_smaller(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask, out = str(run.folder / "mask.safetensors"), str(tmp_path / "stock")
    assert export(["--mask", mask, "--size", "0.5", "--stock", "true", out]) == 0
    printed = capsys.readouterr().out
    assert "no smaller and no faster" in printed
    assert "ms" not in printed.split()


def test_mistakes_are_told_in_one_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask, other = str(run.folder / "mask.safetensors"), tmp_path / "other"
    tiny_llama().save_pretrained(other)
    capsys.readouterr()  # the progress bar of a slow disk
    assert export(["smaller"]) == 2
    assert "--mask is missing" in capsys.readouterr().err
    for args, reason in (
        (["--size", "17", str(tmp_path / "out")], "no mask of 17 nodes; it has 4, 18, 30"),
        ([str(tmp_path / "out")], "--size 0.5"),
        (["--size", "18", str(tmp_path)], "already exists"),
        (["--size", "18", "--to", "onnx", str(tmp_path / "out")], "choose from hf, eap"),
        (["--size", "18"], "OUT is missing"),
        (["--to", "list", "--stock", "true", str(tmp_path / "out")], "--stock is for --to hf, and this is --to list"),
        (["--to", "eap", "--cell", "ioi_gpt2", str(tmp_path / "out")], "--cell is for --to mib"),
        (["--size", "18", "--lm", str(other), str(tmp_path / "out")], "was learned on"),
    ):
        assert export(["--mask", mask, *args]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert reason in error


def test_a_folder_gets_the_tokenizer_of_the_run(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = ml.load_tokenizer()
    tokenizer.add_tokens(["another-token"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    mask = ml.Mask.load(run.folder)
    command = ["--mask", str(tmp_path), "--size", "0.5", "--time", "false"]

    def use(folder: Path) -> None:
        data = mask.config["data"] | {"tokenizer": str(folder)}
        replace(mask, config=mask.config | {"data": data}).save(tmp_path / "mask.safetensors")

    use(tmp_path / "tokenizer")
    assert export([*command, str(tmp_path / "out")]) == 0
    assert "another-token" in (tmp_path / "out" / "tokenizer.json").read_text()
    use(tmp_path / "absent")
    capsys.readouterr()
    assert export([*command, str(tmp_path / "more")]) == 2
    assert "Give it with --tokenizer" in one_line(capsys)
    assert export([*command, "--tokenizer", str(tmp_path / "tokenizer"), str(tmp_path / "more")]) == 0
