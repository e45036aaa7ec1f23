"""Side-by-side timing: two things in turns, and the ratio of their times with its spread."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def now() -> float:
    """Seconds on the wall clock, when the device has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    began = now()
    work()
    return now() - began


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratios of times that were taken in turns."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "ratio": middle,
        "low": low,
        "high": high,
        "ours": statistics.median(ours),
        "theirs": statistics.median(theirs),
    }


def shown(found: dict[str, float]) -> str:
    return "{ratio:.3f} ({low:.3f} to {high:.3f}; {ours:.3f} s over {theirs:.3f} s)".format(**found)


def machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads, no GPU"
    return f"{platform.machine()}, {device}, torch {torch.__version__}"


def report(results: dict[str, Any], out: Path | None) -> None:
    """Write results as JSON, with the machine they are of."""
    if out:
        out.write_text(json.dumps({"machine": machine()} | results, indent=2))
        print(f"Written: {out}")
