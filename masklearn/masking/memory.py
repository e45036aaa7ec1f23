"""Memory: what is free on a device, and how many tokens a forward without gradients can run at once."""

import psutil
import torch

from masklearn.masking.masked_lm import MaskedLM

SCORING_SHARE = 0.5
"""Share of the free memory that a forward without gradients may take. The rest is for logits and for fragmentation:
rows of many lengths leave gaps that the allocator cannot use."""
CPU_SCORING_TOKENS = 2**15
"""Tokens that are scored together on a CPU, where a forward runs fewer at once: see `row_parts.CPU_FORWARD_TOKENS`."""
PROBE_ROWS, PROBE_TOKENS = 8, 128
"""Shape of the forward whose memory is measured; fewer tokens if the model reads fewer."""
_earlier_peaks = dict[torch.device, int]()  # until the peak was last reset


def free_everywhere(masked_lm: MaskedLM) -> int:
    """Bytes of memory that are free on every device on which layers of a model run."""
    return min(free_bytes(device) for device in masked_lm.devices)


def free_bytes(device: torch.device) -> int:
    """Bytes of memory that are free on a device now, those that the allocator keeps in reserve included."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def scored_together(masked_lm: MaskedLM) -> int:
    """How many tokens, over all rows, can be scored together without gradients; at least 1.

    On a GPU these are as many as a forward has memory for, from the measured memory of a small one; on several GPUs, as
    many as the fullest has memory for.
    """
    if masked_lm.device.type != "cuda":
        return CPU_SCORING_TOKENS
    masked_lm.bytes_per_token = masked_lm.bytes_per_token or _measured_bytes_per_token(masked_lm)
    return max(1, int(SCORING_SHARE * free_everywhere(masked_lm) / masked_lm.bytes_per_token))


@torch.no_grad()
def _measured_bytes_per_token(masked_lm: MaskedLM) -> float:
    """The most memory that a forward takes at any time on any device, for each of its tokens."""
    device, devices = masked_lm.device, masked_lm.devices
    n_tokens = min(PROBE_TOKENS, masked_lm.layout.context or PROBE_TOKENS)
    input_ids = torch.zeros(1, n_tokens, dtype=torch.long, device=device)
    last = torch.arange(n_tokens, device=device)[None] == n_tokens - 1
    gates = torch.ones(PROBE_ROWS, 1, masked_lm.graph.n_nodes, device=device)
    masked_lm(input_ids, last, gates, input_ids)  # libraries take their workspaces in the first forward
    before = [torch.cuda.memory_allocated(device) for device in devices]
    for device in devices:
        reset_peak(device)
    masked_lm(input_ids, last, gates, input_ids)
    taken = max(torch.cuda.max_memory_allocated(device) - b for device, b in zip(devices, before, strict=True))
    return max(1.0, taken / (PROBE_ROWS * n_tokens))


def reset_peak(device: torch.device) -> None:
    """Let torch measure the peak memory of a GPU from now on; `peak_bytes` remembers the earlier one."""
    _earlier_peaks[device] = peak_bytes(device)
    torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """The most bytes that tensors of this process have taken on a GPU at any time."""
    return max(_earlier_peaks.get(device, 0), torch.cuda.max_memory_allocated(device))
