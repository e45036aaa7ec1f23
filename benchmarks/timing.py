"""Alternating timing of two things, and the ratio of their times with its quartiles."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def now() -> float:
    """Return the wall-clock time in seconds, after all work queued on the GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], Any]) -> float:
    """Return the wall-clock time of one call, in seconds."""
    start = now()
    work()
    return now() - start


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Return median and quartiles of the ratios of alternating times, and the median of each side."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "ratio": middle,
        "low": low,
        "high": high,
        "ours": statistics.median(ours),
        "theirs": statistics.median(theirs),
    }


def format_ratio(found: dict[str, float]) -> str:
    """Format what `ratio` returns, for printing."""
    return "{ratio:.3f} ({low:.3f} to {high:.3f}; {ours:.3f} s over {theirs:.3f} s)".format(**found)


def machine() -> str:
    """Describe the machine: processor, GPU or threads, and torch version."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads, no GPU"
    return f"{platform.machine()}, {device}, torch {torch.__version__}"


def write_results(results: dict[str, Any], out: Path | None) -> None:
    """Write results as JSON, with the machine that they were measured on; nothing if `out` is None."""
    if out:
        out.write_text(json.dumps({"machine": machine()} | results, indent=2))
        print(f"Written: {out}")


def read_results(paths: Sequence[Path] | None) -> list[dict[str, Any]]:
    """Read results that `write_results` has written."""
    return [json.loads(path.read_text()) for path in paths or ()]
