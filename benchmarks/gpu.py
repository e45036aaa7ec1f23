"""Everything there is to measure on one GPU, in at most eight minutes, most important first.

The rows: the time of a step over a bare forward and backward; eager and compiled steps of SmolLM2; masks of single
texts; the command, with and without graphs; and twelve shared sizes of an 8B model. Models are made on the device with
random weights, unless `--smollm` names the folder of the real one. Results are written after every row.
"""

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from lightning import Callback
from operations import CountedSteps, Operations
from overhead import WARM_UP_STEPS, bare_pass, measure, measure_scoring
from setting import quiet_trainer
from shapes import GPT2_SMALL, LLAMA_1B, LLAMA_8B, SMOLLM2, build, save, write_texts
from timing import machine, now, write_results
from transformers import PreTrainedModel

import masklearn as ml
from masklearn.cli.entry_points import train
from masklearn.masking import MaskedLM

TINY = {"vocab_size": 512, "n_embd": 96, "n_head": 12, "n_layer": 2, "hidden_size": 72, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 9, "num_key_value_heads": 3}  # fmt: skip
"""Sizes that replace those of a shape in a dry run."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Timed(Callback):
    """Times every training step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.start = now()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(now() - self.start)


class Benchmark:
    """The rows, and the models and texts that they use; all tiny in a dry run."""

    def __init__(self, dry: bool, smollm: str | None, texts: str | None, folder: Path) -> None:
        self.dry, self.smollm, self.texts, self.folder = dry, smollm, texts, folder
        self.dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32

    def model(self, shape: dict[str, Any]) -> PreTrainedModel:
        """A model of a shape with random weights, made on the device."""
        sizes = {name: size for name, size in TINY.items() if name in shape} if self.dry else {}
        return build(shape | sizes, dtype=self.dtype, device=DEVICE)

    def smol(self) -> PreTrainedModel:
        """SmolLM2-135M, or a model of its shape."""
        if self.smollm is None:
            return self.model(SMOLLM2)
        return ml.load_lm(self.smollm, dtype="bfloat16" if DEVICE == "cuda" else "float32", device=DEVICE)

    def data(self, n: int, tokens: int, lm: str | None = None, **settings: Any) -> ml.MaskData:
        """`n` texts of so many tokens: of the given file if there is one, otherwise of the embedded language."""
        path = self.texts or write_texts(self.folder / "texts.jsonl", n, tokens + 8)
        return ml.MaskData(path=path, lm=lm or "embedded", limit=n, max_length=tokens, **settings)

    def learn(
        self, lm: PreTrainedModel, data: ml.MaskData, callback: Callback, **settings: Any
    ) -> tuple[ml.MaskLearner, float]:
        """Learn masks of a loaded model; returns the learner and the seconds that it took."""
        learner, start = ml.MaskLearner(**settings), now()
        learner.use(MaskedLM(lm))
        quiet_trainer(callbacks=[callback], accelerator=DEVICE).fit(learner, datamodule=data)
        return learner, now() - start

    def overhead(self, shape: dict[str, Any], texts: int, steps: int = 14) -> dict[str, Any]:
        """A step with four rows for each text, over a bare pass; and what a step computes beyond it.

        The step is eager, and under `default` as it is by default: compiled if that pays.
        """
        lm, tokens = self.model(shape), 16 if self.dry else 128
        found, default = (
            measure(lm, self.data(3 * texts, tokens, batch_size=texts), 4, 5 if self.dry else steps, compiled)
            for compiled in (False, "auto")
        )
        counted, bare = CountedSteps(), Operations()
        data = self.data(3 * texts, tokens, batch_size=texts)
        self.learn(lm, data, counted, sizes="log:12", steps=WARM_UP_STEPS + 2, draws=4, polish=0, compile=False)
        lm.to(DEVICE)  # pyright: ignore[reportArgumentType]
        with bare:
            bare_pass(lm, torch.zeros(found["rows"], tokens, dtype=torch.long, device=DEVICE))
        step = counted.steps[WARM_UP_STEPS]
        return found | {
            "default": default,
            "scoring": measure_scoring(lm, data, 4 if self.dry else 16, repeats=4),
            "extra_operations": step.counts.total() - bare.counts.total(),
            "reads_back": step.n_reads_back,
        }

    def compiled(self, compile_steps: bool) -> dict[str, Any]:
        """A step of SmolLM2 on 64 rows of 64 tokens, as it is or compiled."""
        timed, data = Timed(), self.data(48, 16 if self.dry else 64, self.smollm, batch_size=16)
        settings = {"sizes": "log:12", "steps": 8 if self.dry else 40, "draws": 4, "polish": 0}
        _, seconds = self.learn(self.smol(), data, timed, compile=compile_steps, **settings)
        steps = statistics.median(timed.seconds[len(timed.seconds) // 2 :])
        return {"step": steps, "first_step": timed.seconds[0], "seconds": seconds}

    def per_input(self) -> dict[str, Any]:
        """Masks of 32 single texts at twelve sizes, scored at the last token: learning and polish."""
        data = self.data(4 if self.dry else 32, 16, self.smollm, scope="input", positions="last", truncation="left")
        return self.masks(self.smol(), data, sizes="log:12", scope="input")

    def command(self) -> dict[str, Any]:
        """The masks of `per_input` by the command, as it is and without graphs: the cost foretold, and every stage."""
        folder, found = self.folder / "command", dict[str, Any]()
        folder.mkdir(exist_ok=True)
        lm = self.smollm or save(self.model(SMOLLM2), folder / "lm")
        texts = self.texts or write_texts(folder / "texts.jsonl", 4 if self.dry else 32, 14)
        for compiled in ("auto", "false"):
            run = folder / compiled
            flags = ["--model.lm", lm, "--data.path", texts, "--model.scope", "input", "--model.sizes", "log:12"]
            flags += ["--data.positions", "last", "--data.limit", "32", "--data.max_length", "16"]
            flags += ["--data.truncation", "left", "--model.dtype", str(self.dtype).removeprefix("torch.")]
            flags += ["--trainer.accelerator", DEVICE, "--trainer.logger", "false", "--model.compile", compiled]
            flags += ["--model.steps", "4"] if self.dry else []
            if train([*flags, "--trainer.enable_progress_bar", "false", "--run.dir", str(run)]):
                raise RuntimeError("the command failed")
            metrics = json.loads((run / "metrics.json").read_text())
            found[compiled] = {"cost": metrics["cost"], "stages": metrics["discretisation"]}
        return found

    def large(self) -> dict[str, Any]:
        """Twelve sizes of an 8B shape that texts share: 300 steps and polish."""
        texts, tokens = (8, 16) if self.dry else (64, 128)
        data = self.data(texts, tokens, batch_size=2 if self.dry else 8)
        budget = {"steps": 4, "polish": 1} if self.dry else {"steps": 300, "polish_budget": 0.5}
        return self.masks(self.model(LLAMA_8B), data, sizes="log:12", **budget)

    def masks(self, lm: PreTrainedModel, data: ml.MaskData, **settings: Any) -> dict[str, Any]:
        """Learn and polish masks; everything after loading is timed."""
        timed = Timed()
        learner, learning = self.learn(lm, data, timed, **settings)
        start = now()
        learner.discretize()
        found = {"step": statistics.median(timed.seconds), "learning": learning, "polish": now() - start}
        return found | {"stages": learner.stages, "notices": learner.notices}


def rows(benchmark: Benchmark) -> dict[str, Callable[[], dict[str, Any]]]:
    """All rows by name, in the order in which they are measured."""
    few = 2 if benchmark.dry else 0
    return {
        "overhead, GPT-2 small, 64 x 128": partial(benchmark.overhead, GPT2_SMALL, few or 16),
        "overhead, Llama 1B, 64 x 128": partial(benchmark.overhead, LLAMA_1B, few or 16),
        "overhead, Llama 8B, 32 x 128": partial(benchmark.overhead, LLAMA_8B, few or 8),
        "SmolLM2, 64 x 64, eager": partial(benchmark.compiled, False),
        "SmolLM2, 64 x 64, compiled": partial(benchmark.compiled, True),
        "SmolLM2, per input, 32 texts": benchmark.per_input,
        "train.py, 32 texts": benchmark.command,
        "Llama 8B, 12 shared sizes": benchmark.large,
    }


def main(
    dry: bool = False,
    smollm: str | None = None,
    texts: str | None = None,
    minutes: float = 8.0,
    only: list[str] | None = None,
    out: Path | None = None,
) -> None:
    """Measure every row for which there is time.

    Args:
        dry: Run every row on tiny models, to test the script; the numbers mean nothing.
        smollm: Folder of SmolLM2-135M; random weights by default.
        texts: Text file; by default texts of the embedded language.
        minutes: No row begins after this time.
        only: Rows to measure, by the beginnings of their names; by default all.
        out: JSON file to write after every row.
    """
    print(machine(), flush=True)
    results: dict[str, Any] = {"dry": dry, "device": DEVICE, "smollm": smollm, "when": time.strftime("%Y-%m-%d")}
    with tempfile.TemporaryDirectory() as folder:
        start = now()
        for name, measure_row in rows(Benchmark(dry, smollm, texts, Path(folder))).items():
            if only and not name.startswith(tuple(only)):
                continue
            results[name] = _measured(measure_row) if now() - start < 60 * minutes else {"skipped": "no time left"}
            print(f"{name}: {results[name]}", flush=True)
            write_results(results, out)


def _measured(measure_row: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row with its seconds and peak memory; an error is reported in its place, so that the next rows are run."""
    start = now()
    if DEVICE == "cuda":
        gc.collect()  # a fit leaves its model on the device, and trainer and learner refer to each other
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        found = measure_row()
    except Exception as error:  # whatever happens to one row, the others are measured
        found = {"error": f"{type(error).__name__}: {error}"[:500]}
    peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else None
    return found | {"peak_gib": peak, "row_seconds": now() - start}


if __name__ == "__main__":
    torch.manual_seed(0)
    auto_cli(main)
