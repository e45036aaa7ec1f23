"""How busy are 64 devices that learn masks of 10,000 single texts? A simulation with the measured cost of a block.

Blocks of a few texts are learned and polished here, at several lengths; that gives the cost of a block by its length,
and how far blocks of one length differ. Then 10,000 texts are cut into blocks and dealt to devices in three ways.
"""

import heapq
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli
from setting import quiet_trainer
from shapes import write_texts
from timing import write_results

import masklearn as ml

IN_ORDER, BY_LENGTH, ONE_BY_ONE = "in order", "dealt by length", "taken one by one, longest first"
MEDIAN_LENGTH, LENGTH_SPREAD, MAX_LENGTH = 128, 0.6, 1024
"""Tokens of the simulated texts: log-normal, with this median and standard deviation of the logarithm, truncated."""


def measure(lengths: Sequence[int], n_blocks: int, n_texts: int, steps: int) -> dict[int, list[float]]:
    """Processor seconds of learning and polishing a block of `n_texts` texts, by length; several blocks of each."""
    found: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = write_texts(Path(folder) / "texts.jsonl", n_blocks * n_texts, max(lengths) + 8)
        for length in lengths:
            for block in range(n_blocks):
                split = f"train[{block * n_texts}:{(block + 1) * n_texts}]"
                settings: dict[str, Any] = {"max_length": length, "truncation": "left", "scope": "input"}
                data = ml.MaskData(path=path, split=split, positions="last", **settings)
                learner = ml.MaskLearner(scope="input", sizes=[0.1, 0.35, 0.75], steps=steps)
                trainer = quiet_trainer(accelerator="cpu")
                start = time.process_time()
                trainer.fit(learner, datamodule=data)
                learner.discretize()
                found.setdefault(length, []).append(time.process_time() - start)
    return found


def cost_model(measured: dict[int, list[float]], n_texts: int) -> tuple[float, float, float]:
    """Fixed cost of a text, its cost by token, and the spread of blocks: standard deviation of the logarithm."""
    lengths = [length for length, blocks in measured.items() for _ in blocks]
    slope, fixed = np.polyfit(lengths, [cost / n_texts for blocks in measured.values() for cost in blocks], 1)
    ratios = [math.log(cost / statistics.mean(blocks)) for blocks in measured.values() for cost in blocks]
    return max(0.0, float(fixed)), max(0.0, float(slope)), statistics.pstdev(ratios)


def deal(estimates: Sequence[float], costs: Sequence[float], speeds: Sequence[float], how: str) -> list[float]:
    """The time at which every device is done.

    Args:
        estimates: The cost of every block as its length foretells it, in the order of the texts.
        costs: What the blocks really cost.
        speeds: The speed of every device; blocks that are dealt at the start are dealt as if all were equal.
        how: In which way blocks are dealt. A run takes them one by one.
    """
    n_devices = len(speeds)
    blocks = range(len(costs)) if how == IN_ORDER else sorted(range(len(costs)), key=lambda i: -estimates[i])
    done = [0.0] * n_devices
    if how == IN_ORDER:
        for index, block in enumerate(blocks):
            done[index % n_devices] += costs[block] / speeds[index % n_devices]
        return done
    expected = [(0.0, device) for device in range(n_devices)]  # one by one: the time that has really passed
    for block in blocks:
        so_far, device = heapq.heappop(expected)
        done[device] += costs[block] / speeds[device]
        heapq.heappush(expected, (done[device] if how == ONE_BY_ONE else so_far + estimates[block], device))
    return done


def utilisation(done: Sequence[float]) -> float:
    """Share of the time until the last device is done in which devices work."""
    return sum(done) / (len(done) * max(done))


def simulate(
    cost: tuple[float, float, float], n_inputs: int, speeds: Sequence[float], n_texts: int, seed: int
) -> dict[str, list[float]]:
    """Every device's time, by the way of dealing; blocks have `n_texts` texts."""
    fixed, slope, spread = cost
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(math.log(MEDIAN_LENGTH), LENGTH_SPREAD, n_inputs)).clip(8, MAX_LENGTH)
    found: dict[str, list[float]] = {}
    for how in (IN_ORDER, BY_LENGTH, ONE_BY_ONE):
        ordered = lengths if how == IN_ORDER else np.sort(lengths)
        blocks = [ordered[start : start + n_texts] for start in range(0, n_inputs, n_texts)]
        # a block is padded to its longest text
        estimates = [len(block) * (fixed + slope * block.max()) for block in blocks]
        costs = [estimate * math.exp(rng.normal(0, spread)) for estimate in estimates]
        found[how] = deal(estimates, costs, speeds, how)
    return found


def draw(times: dict[str, list[float]], out: Path) -> None:
    """Draw how long every device works, sorted, for every way of dealing."""
    import matplotlib.pyplot as plt  # only where a figure is asked for

    longest = max(max(done) for done in times.values())
    figure, axes = plt.subplots(1, len(times), figsize=(9, 2.6), sharey=True, layout="constrained")
    for panel, (how, done) in zip(axes, times.items(), strict=True):
        panel.bar(range(len(done)), [value / longest for value in sorted(done, reverse=True)], width=1.0)
        panel.set_title(f"{how}\n{utilisation(done):.0%} busy", fontsize=9)
        panel.set_xlabel("device")
    axes[0].set_ylabel("time (longest = 1)")
    figure.savefig(out, dpi=120)
    print(f"Drawn: {out}")


def main(
    lengths: list[int] = [16, 32, 48],  # noqa: B006
    n_blocks: int = 4,
    measured_texts: int = 4,
    steps: int = 20,
    n_inputs: int = 10_000,
    n_devices: int = 64,
    block: int = 16,
    seeds: int = 5,
    out: Path | None = None,
    figure: Path | None = None,
) -> None:
    """Measure blocks of the embedded model on one thread, then simulate.

    Args:
        lengths: Tokens of the measured texts.
        n_blocks: Blocks that are measured at every length.
        measured_texts: Texts of a measured block.
        steps: Optimiser steps of a measured block.
        n_inputs: Texts of the simulated run.
        n_devices: Devices of the simulated run.
        block: Texts of a simulated block in the figure; other sizes are printed beside it.
        seeds: Simulated runs of which the mean is printed.
        out: JSON file to write.
        figure: Image file to draw.
    """
    measured = measure(lengths, n_blocks, measured_texts, steps)
    cost = cost_model(measured, measured_texts)
    print(f"A text costs {cost[0]:.3f} s and {1000 * cost[1]:.3f} ms a token; spread of blocks {cost[2]:.1%}")
    rows: dict[str, dict[str, float]] = {}
    of_speeds = {"": [1.0] * n_devices, ", half of the devices half as fast": [1.0, 0.5] * (n_devices // 2)}
    for note, speeds in of_speeds.items():
        for size in sorted({64, 32, block, 8}, reverse=True):
            runs = [simulate(cost, n_inputs, speeds, size, seed) for seed in range(seeds)]
            row = {how: statistics.mean(utilisation(run[how]) for run in runs) for how in runs[0]}
            rows[f"{size}{note}"] = row
            print(f"blocks of {size:2}{note}: " + "; ".join(f"{how} {share:.1%}" for how, share in row.items()))
    results = {"measured": measured, "fixed_seconds": cost[0], "seconds_per_token": cost[1], "spread": cost[2]}
    write_results(results | {"utilisation": rows}, out)
    if figure:
        draw(simulate(cost, n_inputs, of_speeds[""], block, 0), figure)


if __name__ == "__main__":
    auto_cli(main)
