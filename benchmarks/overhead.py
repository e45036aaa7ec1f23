"""Time of a training step compared with a bare forward and backward of the same frozen model on the same rows.

The bare pass computes logits at every position, their cross-entropy, and its gradient at the input of layer 0. The
training step is a whole Lightning step, with gates, KL, budget, optimiser and logging. Scoring masks is compared with
bare forwards of as many rows, which compute logits at every position, as many rows at once as scoring does if a GPU has
the memory; half of the heads are closed, and no MLP, since a closed MLP is not run.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from lightning import Callback, Trainer
from setting import quiet_trainer
from shapes import GPT2_SMALL, LLAMA_1B, build, write_texts
from timing import format_ratio, machine, now, ratio, seconds, write_results
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

import masklearn as ml
from masklearn.masking import CompileMode, MaskedLM, scored_together
from masklearn.masking.row_parts import CPU_FORWARD_TOKENS
from masklearn.objective import max_chunk_logits
from masklearn.selection.scorer import MaskScorer

SHAPES = {"GPT-2 small": (GPT2_SMALL, None), "Llama 1B, 4 layers": (LLAMA_1B, 4)}
"""Shapes, and the number of layers if it is reduced."""
WARM_UP_STEPS = 2
"""First steps, which are not counted."""


def bare_pass(lm: PreTrainedModel, input_ids: Tensor) -> None:
    """Run a forward and a backward without gates."""
    embedded = lm.get_input_embeddings()(input_ids).requires_grad_()
    logits = lm(inputs_embeds=embedded, use_cache=False).logits
    cross_entropy(logits.flatten(0, 1).float(), input_ids.flatten()).backward()


class AlternatingTimes(Callback):
    """Times every training step, and after each step a bare pass over as many rows."""

    def __init__(self, rows_per_text: int) -> None:
        self.rows_per_text = rows_per_text
        self.step_seconds: list[float] = []
        self.bare_seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.start = now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.step_seconds.append(now() - self.start)
        rows = batch.input_ids.repeat(self.rows_per_text, 1)
        self.bare_seconds.append(seconds(lambda: bare_pass(pl_module.masked_lm.lm, rows)))


def measure(
    lm: PreTrainedModel, data: ml.MaskData, draws: int, steps: int, compiled: CompileMode = False
) -> dict[str, Any]:
    """Return the ratio of the times of a step and of a bare pass, and both times, on the GPU if there is one."""
    learner = ml.MaskLearner(sizes="log:12", steps=steps, draws=draws, polish=0, compile=compiled)
    learner.use(MaskedLM(lm))
    times = AlternatingTimes(draws)
    quiet_trainer(max_steps=steps, callbacks=[times]).fit(learner, datamodule=data)
    found = ratio(times.step_seconds[WARM_UP_STEPS:], times.bare_seconds[WARM_UP_STEPS:])
    return {"rows": data.batch_size * draws, "tokens": data.longest_text} | found


def bare_tokens(masked_lm: MaskedLM) -> int:
    """The tokens that bare forwards run at once: as many as scoring, if their logits fit into the chunk of a GPU."""
    if masked_lm.device.type == "cpu":
        return CPU_FORWARD_TOKENS
    return min(scored_together(masked_lm), max_chunk_logits(masked_lm.device) // masked_lm.lm.config.vocab_size)


@torch.no_grad()
def measure_scoring(lm: PreTrainedModel, data: ml.MaskData, n_masks: int, repeats: int) -> dict[str, Any]:
    """Return the ratio of the times of scoring masks and of bare forwards of as many rows, and both times."""
    data.prepare_data()
    data.setup("fit")
    masked_lm = MaskedLM(lm)
    batches, graph = [*data.loader("train")], masked_lm.graph
    scorer, rows = MaskScorer(masked_lm, batches), torch.cat([batch.input_ids for batch in batches])
    masks = torch.rand(n_masks, 1, graph.n_nodes) > 0.5
    graph.by_layer(masks)[..., -1] = True
    rows, masks = rows.to(masked_lm.device), masks.to(masked_lm.device)
    rows_at_once = max(1, bare_tokens(masked_lm) // rows.shape[1])

    def bare() -> None:
        for part in rows.repeat(n_masks, 1).split(rows_at_once):
            lm(part, use_cache=False).logits.log_softmax(-1)

    times = [(seconds(lambda: scorer(masks)), seconds(bare)) for _ in range(repeats)][1:]
    found = ratio([scoring for scoring, _ in times], [forward for _, forward in times])
    return {"masks": n_masks, "rows": len(rows), "tokens": rows.shape[1]} | found


def main(
    texts: int = 4, draws: int = 4, tokens: int = 64, steps: int = 9, masks: int = 24, out: Path | None = None
) -> None:
    """Measure the overhead of a training step, and of scoring masks.

    Args:
        texts: Texts in a step.
        draws: Rows for each text.
        tokens: Tokens in a row, all scored.
        steps: Steps to run, two of them to warm up.
        masks: Masks to score.
        out: JSON file to write.
    """
    print(machine())
    results = {}
    for name, (shape, layers) in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = write_texts(Path(folder) / "texts.jsonl", 3 * texts, tokens + 8)
            data = ml.MaskData(path=path, batch_size=texts, max_length=tokens)
            lm, row = build(shape, layers), f"{name}, {texts * draws} rows of {tokens} tokens"
            results[name] = measure(lm, data, draws, steps)
            print(f"{row}: a step over a bare pass {format_ratio(results[name])}", flush=True)
            scoring = results[name]["scoring"] = measure_scoring(lm, data, masks, steps - WARM_UP_STEPS)
            print(f"{row}: scoring over bare forwards {format_ratio(scoring)}", flush=True)
    write_results(results, out)


if __name__ == "__main__":
    torch.manual_seed(0)
    auto_cli(main)
