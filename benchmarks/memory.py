"""Peak memory of training with a vocabulary of 128k, and of the objective as the number of rows grows."""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch
from jsonargparse import auto_cli
from setting import quiet_trainer
from shapes import LLAMA_1B, build, save, write_texts
from timing import machine, write_results

import masklearn as ml
from masklearn.objective import chunked_kl

GIB = 2**30


def peak_gib() -> float:
    """Return the peak resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def training(rows: int, tokens: int, layers: int) -> float:
    """Return the peak memory of two training steps above that of the loaded model, in GiB."""
    with tempfile.TemporaryDirectory() as folder:
        lm = save(build(LLAMA_1B, layers), Path(folder) / "lm")
        path = write_texts(Path(folder) / "texts.jsonl", 3 * rows, tokens + 8)
        data = ml.MaskData(path=path, lm=lm, batch_size=rows, max_length=tokens)
        learner = ml.MaskLearner(lm, sizes=[0.25], steps=2, draws=1, polish=0)
        learner.load()
        learner.masked_lm.full(torch.ones(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool))
        before = psutil.Process().memory_info().rss / GIB
        quiet_trainer().fit(learner, datamodule=data)
    return peak_gib() - before


def objective(rows: int, tokens: int) -> float:
    """Return the peak memory of the KL and its gradient above that of its inputs, in GiB."""
    weight = torch.randn(LLAMA_1B["vocab_size"], 64)
    full, masked = torch.randn(tokens, 64), torch.randn(rows, tokens, 64, requires_grad=True)
    before = psutil.Process().memory_info().rss / GIB
    chunked_kl(full, masked, lambda hidden: hidden @ weight.T).sum().backward()
    return peak_gib() - before


def main(rows: int = 8, tokens: int = 512, layers: int = 2, part: str | None = None, out: Path | None = None) -> None:
    """Measure peak memory, each number in a separate process.

    Args:
        rows: Rows in a step.
        tokens: Tokens in a row, all scored.
        layers: Number of layers of the 1B Llama shape.
        part: Measure only this, in this process: training or objective.
        out: JSON file to write.
    """
    if part:
        print(training(rows, tokens, layers) if part == "training" else objective(rows, tokens))
        return
    print(machine())
    logits_gib = rows * tokens * LLAMA_1B["vocab_size"] * 4 / GIB
    results: dict[str, Any] = {"logits": logits_gib, "training": in_subprocess("training", rows, tokens, layers)}
    print(f"Llama 1B reduced to {layers} layers, {rows} x {tokens} scored tokens: all logits take {logits_gib:.2f} GiB")
    print(f"training takes {results['training']:.2f} GiB above the model")
    results["objective"] = {n: in_subprocess("objective", n, tokens, layers) for n in (2, 8, 32)}
    print("the objective takes " + ", ".join(f"{gib:.2f} GiB for {n} rows" for n, gib in results["objective"].items()))
    write_results(results, out)


def in_subprocess(part: str, rows: int, tokens: int, layers: int) -> float:
    """Run this script for one part in a new process, and return its peak memory in GiB."""
    flags = {"part": part, "rows": rows, "tokens": tokens, "layers": layers}
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in flags.items())]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


if __name__ == "__main__":
    torch.manual_seed(0)
    auto_cli(main)
