"""The same bytes from the same config and seed, whatever else differs."""

from faults.bench import Bench, Fault, failed
from faults.processes import whole


def whatever_workers(bench: Bench, times: int) -> Fault:
    """In other folders, with processes that put batches together ahead of time."""
    fault = Fault("other folders, 0 to 3 `--data.workers`: bytes of mask.safetensors")
    for i in range(times):
        with bench.folder() as folder:
            ended = whole([*bench.begin(folder), "--data.workers", str(i % 4)])
            fault.scorer(failed(ended) if ended.code else "", *bench.differences(folder))
    return fault
