"""Traces texts in one process for a long time: do memory, open files and the rate stay what they are?

python benchmarks/soak.py --minutes 30

Memory is what the process has in use: after each round garbage is collected, and the allocator returns what is free.
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

TEXTS = 8
"""Texts that are traced in a round."""
WARM_UP = 0.1
"""Share of the rounds that is left out of the slopes: caches fill."""


def trace(setting: Setting, seed: int) -> None:
    """Learn masks for some texts, each its own, and use one."""
    data = setting.data(scope="input", limit=TEXTS, positions="last", seed=seed)
    learner = ml.MaskLearner(lm=setting.lm, scope="input", sizes="log:6", steps=10, polish=1, seed=seed)
    quiet_trainer().fit(learner, datamodule=data)
    mask = learner.discretize()
    tokens = torch.tensor([data.parts["all"].ids[0]])
    with ml.gated(learner.masked_lm.lm, mask[0].select(s=mask.sizes.tolist()[0])):
        learner.masked_lm.lm(input_ids=tokens)


def in_use(process: psutil.Process) -> float:
    """MiB that are resident once garbage is collected and, with glibc, nothing that is free is resident."""
    gc.collect()
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    return process.memory_info().rss / 2**20


def slope(hours: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """What a value gains an hour by least squares, and the standard error of that."""
    fit, covariance = np.polyfit(hours, values, 1, cov=True)
    return float(fit[0]), float(covariance[0, 0] ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", type=Path, help="file to write what was measured to, as JSON")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    process, setting, began = psutil.Process(), Setting(task="names", lm="embedded"), time.monotonic()
    rounds: list[tuple[float, float, int, float]] = []
    while time.monotonic() - began < 60 * flags.minutes:
        busy = time.process_time()
        trace(setting, len(rounds))
        rate = TEXTS / (time.process_time() - busy)  # of the processor's time, as others may use the machine
        rounds.append(((time.monotonic() - began) / 3600, in_use(process), process.num_fds(), rate))
    hours, memory, files, rate = np.array(rounds[int(WARM_UP * len(rounds)) :]).T
    measured: dict[str, float] = {"rounds": len(rounds), "texts": TEXTS * len(rounds), "minutes": flags.minutes}
    for name, values in {"memory_mib": memory, "open_files": files, "texts_per_cpu_second": rate}.items():
        gain, error = slope(hours, values)
        measured |= {f"{name}_first": values[0], f"{name}_last": values[-1], f"{name}_per_hour": gain}
        measured[f"{name}_per_hour_error"] = error
        print(f"{name}: {values[0]:.4g} at first, {values[-1]:.4g} at last, {gain:+.3g} ± {error:.2g} an hour")
    print(f"{measured['texts']:.0f} texts in {flags.minutes:g} minutes")
    if flags.out:
        flags.out.write_text(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
