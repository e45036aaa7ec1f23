"""Time and quality of twelve nested sizes compared with one, and step time of 10,000 groups compared with 10."""

import statistics
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from lightning import Callback, Trainer
from setting import Setting, quiet_trainer
from timing import format_ratio, machine, now, ratio, write_results

import masklearn as ml
from masklearn.selection.scorer import MaskScorer
from masklearn.sizes import resolve_sizes


class StepTimes(Callback):
    """Measures the wall-clock time of every training step, without loading its batch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.start = now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seconds.append(now() - self.start)


def learn_masks(setting: Setting, sizes: list[int], steps: int) -> tuple[float, list[float]]:
    """Return the seconds of training, and the KL of every mask on the test split."""
    data, learner = setting.data(limit=1000), ml.MaskLearner(setting.lm, sizes=sizes, steps=steps)
    times = StepTimes()
    quiet_trainer(callbacks=[times]).fit(learner, datamodule=data)
    masks = learner.discretize().mask.transpose(0, 1).to(learner.device)
    return sum(times.seconds), MaskScorer(learner.masked_lm, data.test_dataloader())(masks)[:, 0].tolist()


def sweep(setting: Setting, steps: int, singles: int) -> dict[str, Any]:
    """Compare one run of twelve sizes with runs of a single size each, with the same settings otherwise."""
    n_nodes = ml.NodeGraph.of(ml.load_lm(setting.lm)).n_nodes
    sizes = resolve_sizes("log:12", n_nodes)
    single_sizes = sizes[3 :: max(1, 9 // singles)][:singles]
    sweep_seconds, sweep_kl = learn_masks(setting, sizes, steps)
    rows = []
    for s in single_sizes:
        seconds, (kl,) = learn_masks(setting, [s], steps)
        rows.append({"s": s, "kl": kl, "in_sweep": sweep_kl[sizes.index(s)], "time_ratio": sweep_seconds / seconds})
        line = "s = {s}: KL {kl:.3f} alone, {in_sweep:.3f} among twelve, in {time_ratio:.2f} of its time"
        print(line.format(**rows[-1]), flush=True)
    return {"sizes": sizes, "rows": rows, "time_ratio": statistics.median(row["time_ratio"] for row in rows)}


def groups(setting: Setting, many: int, turns: int, steps: int) -> dict[str, Any]:
    """Compare the step times of runs with 10 and with many groups, alternately; both train 10 groups at a time."""
    median_times: dict[int, list[float]] = {10: [], many: []}
    for _ in range(turns):
        for n, medians in median_times.items():
            data = Setting("embedded", task="names").data(limit=n, scope="input", positions="last")
            learner, times = ml.MaskLearner(sizes="log:12", scope="input", steps=steps, block=10, polish=0), StepTimes()
            quiet_trainer(max_steps=steps, callbacks=[times]).fit(learner, datamodule=data)
            medians.append(statistics.median(times.seconds[2:]))
    return ratio(median_times[many], median_times[10])


def main(
    setting: Setting = Setting(),
    steps: int = 300,
    singles: int = 3,
    many: int = 10_000,
    turns: int = 5,
    out: Path | None = None,
) -> None:
    """Measure sweeps and groups.

    Args:
        setting: The model and its texts.
        steps: Training steps of a run.
        singles: Number of sizes that are also learned alone.
        many: Groups of the larger bank.
        turns: Runs with each bank.
        out: JSON file to write.
    """
    print(f"{machine()}\n{setting}: twelve sizes compared with one, {steps} steps each")
    results: dict[str, Any] = {"setting": str(setting), "sweep": sweep(setting, steps, singles)}
    print(f"Time of twelve sizes over one: {results['sweep']['time_ratio']:.2f}")
    results["groups"] = groups(setting, many, turns, steps=40)
    print(f"Step with {many} groups in the run over one with 10: {format_ratio(results['groups'])}")
    write_results(results, out)


if __name__ == "__main__":
    torch.manual_seed(0)
    auto_cli(main)
