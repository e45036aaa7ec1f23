"""Long runs are told which precision is faster on their processor."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL
from torch import Tensor

from masklearn.cli import half_precision, train

OF_NODES = [*SMALL, "--trainer.logger", "false", "--model.steps", "6", "--model.sizes", "[18]"]
OF_EDGES = [
    *("--model.graph", "edges", "--model.method", "learned", "--data.positions", "last", "--data.limit", "2"),
    *("--data.task", "names", "--model.steps", "1", "--model.sizes", "[0.1]", "--trainer.logger", "false"),
]


def test_an_estimate_tells_a_long_run_of_a_faster_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, where it is long and wide, and products in the other precision take two thirds of the time or less."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)

    def times_told(flags: list[str], worth_seconds: float, factor: float, dtype: str, min_width: int = 1) -> int:
        monkeypatch.setattr(half_precision, "MIN_WIDTH", min_width)
        monkeypatch.setattr(half_precision, "WORTH_SECONDS", worth_seconds)
        monkeypatch.setattr(half_precision, "speed_up", lambda width, dtype=None: factor)
        assert train([*flags, "--run.estimate", "true", "--model.dtype", dtype]) == 0
        printed = capsys.readouterr().out
        slower = "4.0 times as fast in float32 as in bfloat16. --model.dtype float32"
        return printed.count(f"{factor} times as fast in bfloat16. --model.dtype bfloat16") + printed.count(slower)

    assert times_told(OF_NODES, 1e9, 2.2, "float32") == 0
    assert times_told(OF_NODES, 0, 1.4, "float32") == 0
    assert times_told(OF_NODES, 0, 2.2, "bfloat16") == 0
    assert times_told(OF_NODES, 0, 2.2, "float32", min_width=512) == 0
    assert times_told(OF_NODES, 0, 2.2, "float32") == 1
    assert times_told(OF_EDGES, 0, 2.2, "float32") == 1
    assert times_told(OF_NODES, 0, 0.25, "float32") == 0
    assert times_told(OF_NODES, 0, 0.25, "bfloat16") == 1


def test_the_speed_of_products_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock on which a product in float32 takes two seconds, and one in bfloat16 one."""
    clock = SimpleNamespace(now=0.0)

    def product(rows: Tensor, weight: Tensor) -> None:
        clock.now += 2 if rows.dtype == torch.float32 else 1

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(half_precision, "time", SimpleNamespace(monotonic=lambda: clock.now))
    assert half_precision.speed_up(8) == 2
