"""Learn masks in one process for a long time: do memory, open files and throughput stay constant?

python benchmarks/soak.py --minutes 30

Memory is measured after each round, once garbage is collected and the allocator has returned free memory.
"""

import argparse
import ctypes
import gc
import json
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from setting import Setting, quiet_trainer

import masklearn as ml

TEXTS_PER_ROUND = 8
"""Texts that get masks of their own in a round."""
WARM_UP_SHARE = 0.1
"""Share of the rounds that is left out of the slopes, while caches fill."""


def learn_masks(setting: Setting, seed: int) -> None:
    """Learn masks of their own for some texts, and run the model under one of them."""
    data = setting.data(scope="input", limit=TEXTS_PER_ROUND, positions="last", seed=seed)
    learner = ml.MaskLearner(lm=setting.lm, scope="input", sizes="log:6", steps=10, polish=1, seed=seed)
    quiet_trainer().fit(learner, datamodule=data)
    mask = learner.discretize()
    tokens = torch.tensor([data.parts["all"].ids[0]])
    with ml.gated(learner.masked_lm.lm, mask[0].select(s=mask.sizes.tolist()[0])):
        learner.masked_lm.lm(input_ids=tokens)


def resident_mib(process: psutil.Process) -> float:
    """Return the resident memory in MiB, after garbage collection and, with glibc, after freed memory is returned."""
    gc.collect()
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    return process.memory_info().rss / 2**20


def slope(hours: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Return the least-squares slope of a value per hour, and its standard error."""
    fit, covariance = np.polyfit(hours, values, 1, cov=True)
    return float(fit[0]), float(covariance[0, 0] ** 0.5)


def main() -> None:
    """Run rounds for the given time, then print and write the slopes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", type=Path, help="JSON file to write the measurements to")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    process, setting, start = psutil.Process(), Setting(task="names", lm="embedded"), time.monotonic()
    rounds: list[tuple[float, float, int, float]] = []
    while time.monotonic() - start < 60 * flags.minutes:
        cpu_start = time.process_time()
        learn_masks(setting, len(rounds))
        # per CPU second, since other processes may use the machine
        rate = TEXTS_PER_ROUND / (time.process_time() - cpu_start)
        rounds.append(((time.monotonic() - start) / 3600, resident_mib(process), process.num_fds(), rate))
    hours, memory, files, rate = np.array(rounds[int(WARM_UP_SHARE * len(rounds)) :]).T
    n_texts = TEXTS_PER_ROUND * len(rounds)
    measured: dict[str, float] = {"rounds": len(rounds), "texts": n_texts, "minutes": flags.minutes}
    for name, values in {"memory_mib": memory, "open_files": files, "texts_per_cpu_second": rate}.items():
        per_hour, error = slope(hours, values)
        measured |= {f"{name}_first": values[0], f"{name}_last": values[-1], f"{name}_per_hour": per_hour}
        measured[f"{name}_per_hour_error"] = error
        print(f"{name}: {values[0]:.4g} at first, {values[-1]:.4g} at last, {per_hour:+.3g} ± {error:.2g} an hour")
    print(f"{n_texts} texts in {flags.minutes:g} minutes")
    if flags.out:
        flags.out.write_text(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
