"""Tokens per second, peak memory and texts traced per minute, for GPT-2 small, a 1B and an 8B Llama shape on a GPU.

Without a GPU the script runs on tiny models on the CPU, to show that it works. Those numbers say nothing about a GPU.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from overhead import measure
from setting import quiet_trainer
from shapes import GPT2_SMALL, LLAMA_1B, LLAMA_8B, build, save, write_texts
from timing import machine, now, write_results

import masklearn as ml
from masklearn.models import DTypeName

SHAPES: dict[str, dict[str, Any]] = {"GPT-2 small": GPT2_SMALL, "Llama 1B": LLAMA_1B, "Llama 8B": LLAMA_8B}
CPU_SIZES = {"vocab_size": 512, "n_embd": 96, "hidden_size": 64, "intermediate_size": 128}
"""Sizes that replace those of a shape on a CPU; the number of layers is reduced as well."""


def texts_per_minute(shape: dict[str, Any], layers: int | None, n: int, tokens: int, dtype: DTypeName) -> float:
    """Measure how many texts a minute get their own masks at twelve sizes, everything after loading included."""
    with tempfile.TemporaryDirectory() as folder:
        lm = save(build(shape, layers, getattr(torch, dtype)), Path(folder) / "lm")
        path = write_texts(Path(folder) / "texts.jsonl", n, tokens + 8)
        data = ml.MaskData(path=path, lm=lm, max_length=tokens, positions="last", scope="input")
        learner = ml.MaskLearner(lm, dtype=dtype, sizes="log:12", scope="input")
        learner.load()
        start = now()
        quiet_trainer().fit(learner, datamodule=data)
        learner.discretize()
        return 60 * n / (now() - start)


def main(
    texts: int = 16, draws: int = 4, tokens: int = 128, steps: int = 20, traced: int = 32, out: Path | None = None
) -> None:
    """Measure every shape.

    Args:
        texts: Texts in a step.
        draws: Rows for each text.
        tokens: Tokens in a row.
        steps: Steps to time.
        traced: Texts that get masks of their own in the second measurement.
        out: JSON file to write.
    """
    has_gpu = torch.cuda.is_available()
    dtype: DTypeName = "bfloat16" if has_gpu else "float32"
    print(machine() + ("" if has_gpu else "\nNOT RUN ON A GPU: tiny models on the CPU, to show that the script works"))
    if not has_gpu:
        texts, draws, tokens, steps, traced = 2, 2, 16, 5, 2
    results: dict[str, Any] = {"gpu": has_gpu, "dtype": dtype, "when": time.strftime("%Y-%m-%d")}
    for name, full_shape in SHAPES.items():
        shape = full_shape if has_gpu else full_shape | {k: v for k, v in CPU_SIZES.items() if k in full_shape}
        layers = None if has_gpu else 2
        if has_gpu:
            torch.cuda.reset_peak_memory_stats()
        row: dict[str, Any] = measure(shape, layers, texts, draws, tokens, steps, dtype)
        rows = row["rows"] * tokens
        row |= {"tokens_per_s": rows / row["ours"], "bare_tokens_per_s": rows / row["theirs"]}
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30 if has_gpu else None
        row["texts_per_minute"] = texts_per_minute(shape, layers, traced, tokens, dtype)
        results[name] = row
        print(
            f"{name}: {row['tokens_per_s']:.0f} tokens/s, bare {row['bare_tokens_per_s']:.0f}; "
            f"peak {row['peak_gib'] or 0:.1f} GiB; {row['texts_per_minute']:.0f} texts a minute",
            flush=True,
        )
    write_results(results, out)


if __name__ == "__main__":
    torch.manual_seed(0)
    auto_cli(main)
