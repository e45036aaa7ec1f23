"""The command that injects all faults and prints a table."""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from faults import disks, kills, sameness, stops, tracking
from faults.bench import SHARED, SINGLE, Bench, Fault

Trial = Callable[[Bench, int], Fault]
TRIALS: dict[str, tuple[list[str], Trial, int]] = {
    "workers": (SHARED, sameness.of_worker_counts, 4),
    "kills": (SHARED, kills.of_runs, 50),
    "polish_kills": (SHARED, kills.of_polish, 6),
    "late_kills": (SHARED, kills.after_training, 9),
    "evaluation_kills": (SHARED, kills.of_evaluation, 6),
    "sigterm": (SHARED, lambda bench, times: stops.by_signal(bench, times, signal.SIGTERM), 6),
    "sigint": (SHARED, lambda bench, times: stops.by_signal(bench, times, signal.SIGINT), 6),
    "second_interrupt": (SHARED, stops.by_second_interrupt, 4),
    "requeue": (SHARED, stops.by_requeue, 6),
    "damaged": (SHARED, disks.damaged, 9),
    "full_disk": (SHARED, disks.full, 9),
    "two_runs": (SHARED, disks.two_runs, 4),
    "tracking_start": (SHARED, tracking.at_start, 3),
    "tracking_training": (SHARED, tracking.while_training, 3),
    "tracking_end": (SHARED, tracking.at_end, 3),
    "tracking_disk": (SHARED, tracking.on_a_full_disk, 3),
    "text_kills": (SINGLE, kills.of_single_texts, 20),
    "text_late_kills": (SINGLE, kills.after_training, 3),
    "text_workers": (SINGLE, sameness.of_worker_counts, 3),
    "study_kills": (SINGLE, kills.of_evaluation, 8),
}
"""By name: the flags of the run, the fault, and the number of trials."""


def main() -> int:
    """Inject the faults asked for; 1 if a run lost more than it may, else 0."""
    parser = argparse.ArgumentParser(description="Inject faults into runs, and report what was lost.")
    parser.add_argument("--only", nargs="*", choices=[*TRIALS], help="faults to inject; all by default")
    parser.add_argument("--times", type=int, help="number of trials, instead of each fault's own")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--out", type=Path, help="file to write the table to")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    start, faults = time.monotonic(), list[Fault]()
    rows = ["| fault | times tried | held | what was lost |", "|---|---|---|---|"]
    benches: dict[str, Bench] = {}
    with tempfile.TemporaryDirectory() as work:
        for name in flags.only or TRIALS:
            settings, trial, times = TRIALS[name]
            key = "single" if settings is SINGLE else "shared"
            if key not in benches:
                benches[key] = Bench(Path(work) / key, flags.seed, settings)
                print(f"An undisturbed run takes {benches[key].seconds:.0f} s", flush=True)
            print(f"{name}, {(time.monotonic() - start) / 60:.0f} min", flush=True)
            faults.append(trial(benches[key], flags.times or times))
            rows.append(faults[-1].row())
            if flags.out:
                flags.out.write_text("\n".join(rows) + "\n")
    print("\n".join([*rows, "", *(f"{fault.name}: {note}" for fault in faults for note in fault.notes)]))
    return int(any(fault.passed < fault.trials for fault in faults))


if __name__ == "__main__":
    sys.exit(main())
