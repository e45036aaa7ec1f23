"""What a training step costs over a bare forward and backward of the same frozen model on the same rows.

Bare: logits at every position, a cross-entropy on them, and its gradient at the input of layer 0. Ours: a whole step as
Lightning takes it, with gates, divergence, budget, optimiser and logging.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from lightning import Callback, Trainer
from setting import quiet_trainer
from shapes import GPT2_SMALL, LLAMA_1B, build, save, write_texts
from timing import machine, now, ratio, report, seconds, shown
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

import masklearn as ml
from masklearn.models import DTypeName

SHAPES = {"GPT-2 small": (GPT2_SMALL, None), "Llama 1B, 4 layers": (LLAMA_1B, 4)}


def bare(lm: PreTrainedModel, input_ids: Tensor) -> None:
    embedded = lm.get_input_embeddings()(input_ids).requires_grad_()
    logits = lm(inputs_embeds=embedded, use_cache=False).logits
    cross_entropy(logits.flatten(0, 1).float(), input_ids.flatten()).backward()


class InTurns(Callback):
    """Times every training step, and a bare pass over as many rows after each."""

    def __init__(self, rows_per_text: int) -> None:
        self.rows_per_text = rows_per_text
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.began = now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ours.append(now() - self.began)
        rows = batch.input_ids.repeat(self.rows_per_text, 1)
        self.theirs.append(seconds(lambda: bare(pl_module.masked_lm.lm, rows)))


def measure(
    shape: dict[str, Any],
    layers: int | None,
    texts: int,
    draws: int,
    tokens: int,
    steps: int,
    dtype: DTypeName = "float32",
) -> dict[str, Any]:
    """The ratio of a step's time to a bare pass's, and their times, on the GPU if there is one."""
    with tempfile.TemporaryDirectory() as folder:
        lm = save(build(shape, layers, getattr(torch, dtype)), Path(folder) / "lm")
        path = write_texts(Path(folder) / "texts.jsonl", 3 * texts, tokens + 8)
        data = ml.MaskData(path=path, lm=lm, batch_size=texts, max_length=tokens)
        learner = ml.MaskLearner(lm, dtype=dtype, sizes="log:12", steps=steps, draws=draws, polish=0)
        turns = InTurns(draws)
        quiet_trainer(max_steps=steps, callbacks=[turns]).fit(learner, datamodule=data)
    return {"rows": texts * draws, "tokens": tokens} | ratio(turns.ours[2:], turns.theirs[2:])  # the first ones warm up


def main(texts: int = 4, draws: int = 4, tokens: int = 64, steps: int = 9, out: Path | None = None) -> None:
    """Measure the overhead of a training step.

    Args:
        texts: Texts of a step.
        draws: Rows of a text.
        tokens: Tokens of a row, all of them scored.
        steps: Steps to take, two of them to warm up.
        out: JSON file to write.
    """
    print(machine())
    results = {}
    for name, (shape, layers) in SHAPES.items():
        results[name] = measure(shape, layers, texts, draws, tokens, steps)
        print(
            f"{name}, {texts * draws} rows of {tokens} tokens: a step over a bare pass {shown(results[name])}",
            flush=True,
        )
    report(results, out)


if __name__ == "__main__":
    torch.manual_seed(0)
    auto_cli(main)
