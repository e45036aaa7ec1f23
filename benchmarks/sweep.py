"""What twelve nested sizes cost over one, at which quality; and what ten thousand groups in a run cost over ten."""

import statistics
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from lightning import Callback, Trainer
from setting import Setting, quiet_trainer
from timing import machine, now, ratio, report, shown

import masklearn as ml
from masklearn.selection.scorer import MaskScorer
from masklearn.sizes import resolve_sizes


class StepTimes(Callback):
    """Wall-clock time of every training step, the drawing of its batch left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.began = now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seconds.append(now() - self.began)


def learn(setting: Setting, sizes: list[int], steps: int) -> tuple[float, list[float]]:
    """Seconds of training, and the KL of every mask on the test split."""
    data, learner = setting.data(limit=1000), ml.MaskLearner(setting.lm, sizes=sizes, steps=steps)
    times = StepTimes()
    quiet_trainer(callbacks=[times]).fit(learner, datamodule=data)
    masks = learner.discretize().mask.transpose(0, 1).to(learner.device)
    return sum(times.seconds), MaskScorer(learner.masked_lm, data.test_dataloader())(masks)[:, 0].tolist()


def sweep(setting: Setting, steps: int, singles: int) -> dict[str, Any]:
    """One run of twelve sizes, and runs of one of those sizes each, with the same settings otherwise."""
    n_nodes = ml.NodeGraph.of(ml.load_lm(setting.lm)).n_nodes
    sizes = resolve_sizes("log:12", n_nodes)
    chosen = sizes[3 :: max(1, 9 // singles)][:singles]
    all_seconds, all_kl = learn(setting, sizes, steps)
    rows = []
    for s in chosen:
        seconds, (kl,) = learn(setting, [s], steps)
        rows.append({"s": s, "kl": kl, "in_sweep": all_kl[sizes.index(s)], "time_ratio": all_seconds / seconds})
        format_report = "s = {s}: KL {kl:.3f} alone, {in_sweep:.3f} among twelve, in {time_ratio:.2f} of its time"
        print(format_report.format(**rows[-1]), flush=True)
    return {"sizes": sizes, "rows": rows, "time_ratio": statistics.median(row["time_ratio"] for row in rows)}


def groups(setting: Setting, many: int, turns: int, steps: int) -> dict[str, Any]:
    """Step times in runs of ten and of many groups, ten at a time in both, in turns."""
    found: dict[int, list[float]] = {10: [], many: []}
    for _ in range(turns):
        for n, medians in found.items():
            data = Setting("embedded", task="names").data(limit=n, scope="input", positions="last")
            learner, times = ml.MaskLearner(sizes="log:12", scope="input", steps=steps, block=10, polish=0), StepTimes()
            quiet_trainer(max_steps=steps, callbacks=[times]).fit(learner, datamodule=data)
            medians.append(statistics.median(times.seconds[2:]))
    return ratio(found[many], found[10])


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
        steps: Steps of a run.
        singles: Sizes to learn on their own.
        many: Groups of the larger bank.
        turns: Runs of each bank.
        out: JSON file to write.
    """
    print(f"{machine()}\n{setting}: twelve sizes beside one, {steps} steps each")
    results: dict[str, Any] = {"setting": str(setting), "sweep": sweep(setting, steps, singles)}
    print(f"Time of twelve sizes over one: {results['sweep']['time_ratio']:.2f}")
    results["groups"] = groups(setting, many, turns, steps=40)
    print(f"Step with {many} groups in the run over one with 10: {shown(results['groups'])}")
    report(results, out)


if __name__ == "__main__":
    torch.manual_seed(0)
    auto_cli(main)
