"""The same config and seed give the same bytes, whatever the number of workers."""

from faults.bench import Bench, Fault, failed
from faults.processes import run_to_end


def of_worker_counts(bench: Bench, times: int) -> Fault:
    """Undisturbed runs in other folders, with 0 to 3 worker processes."""
    fault = Fault("other folders, 0 to 3 `--data.workers`: bytes of mask.safetensors")
    for i in range(times):
        with bench.folder() as folder:
            ended = run_to_end([*bench.start_flags(folder), "--data.workers", str(i % 4)])
            fault.record(failed(ended) if ended.code else "", *bench.differences(folder))
    return fault
