"""What a run costs: the tokens that learning and polish score, and the seconds and the memory that phases take."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import psutil
import torch

from masklearn.data import BlockPlan, MaskData
from masklearn.masking import peak_bytes, reset_peak
from masklearn.selection.discretization import masks_scored
from masklearn.training.learned_ablation import REFIT_ROWS_PER_TEXT, REFIT_STEPS
from masklearn.training.settings import LearnerSettings

Phase = Literal["learning", "choice", "polish", "evaluation", "probe"]
"""The phases of a run (choice: of the subgraphs of single texts), and the probe that estimates their cost."""
FORWARD_AND_BACKWARD = 3
"""What a token costs that is run forward and, at twice the cost, backward; a forward alone costs one."""
SAMPLING_SECONDS = 0.01
"""Time between two looks at the memory of this process."""


class PhaseClock:
    """Seconds of every phase so far. A phase within another one stops the outer one's clock."""

    def __init__(self) -> None:
        self.seconds: dict[Phase, float] = dict.fromkeys(get_args(Phase), 0.0)
        self._open: list[Phase] = []
        self._since = 0.0

    @contextmanager
    def time(self, phase: Phase) -> Iterator[None]:
        """Count the time in the context as a phase's."""
        self._book()
        self._open.append(phase)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def _book(self) -> None:
        now = time.monotonic()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Measure the peak memory of the context: that allocated on a GPU, or that of the process.

    Yields:
        A list; when the context is left, it holds the peak in bytes.
    """
    peak = list[int]()
    if device.type == "cuda":
        reset_peak(device)
        yield peak
        peak.append(torch.cuda.max_memory_allocated(device))
        return
    process, samples, done = psutil.Process(), list[int](), threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLING_SECONDS):
            samples.append(process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak.append(max([*samples, process.memory_info().rss]))


def memory_so_far(device: torch.device) -> int:
    """The peak memory of this process until now in bytes: that allocated on a GPU, or that of the process."""
    if device.type == "cuda":
        return peak_bytes(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # which Windows has not

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def tokens_by_group(data: MaskData, plan: BlockPlan) -> list[float]:
    """Tokens of the texts of every group in a step, on average; padding does not count."""
    lengths = [len(ids) for ids in data.parts["train"].ids]
    return [
        min(plan.batch_size, len(texts)) * sum(lengths[i] for i in texts) / len(texts)
        for texts in data.train_indices_by_group
    ]


def tokens_per_step(data: MaskData, plan: BlockPlan, groups: Sequence[int]) -> float:
    """Tokens of the texts in a step that learns some groups, on average; padding does not count."""
    by_group = tokens_by_group(data, plan)
    return sum(by_group[group] for group in groups)


def tokens_by_block(data: MaskData, plan: BlockPlan) -> list[float]:
    """Tokens of the texts in a step of every block, on average; padding does not count."""
    by_group = tokens_by_group(data, plan)
    return [sum(by_group[group] for group in groups) for groups in plan.blocks]


def learning_tokens(data: MaskData, plan: BlockPlan, rows_per_text: int, groups: Sequence[int]) -> float:
    """Tokens that learning scores for some groups: those of every row of every step, forward and backward."""
    return plan.steps * FORWARD_AND_BACKWARD * rows_per_text * tokens_per_step(data, plan, groups)


def discretization_tokens(
    data: MaskData, plan: BlockPlan, settings: LearnerSettings, n_sizes: int, share: float
) -> float:
    """Tokens scored for discrete masks besides polish: the KL of each stage, and the refit of learned constants.

    Args:
        data: The texts.
        plan: The blocks of the run.
        settings: The settings of the learner.
        n_sizes: Sizes of the masks.
        share: Share of all texts in the groups whose masks are made.
    """
    selection = share * sum(map(len, data.parts["selection"].ids))
    n_masks = masks_scored(settings.sampled_kl_draws, settings.restarts, n_sizes)
    if settings.ablation != "learned":
        return n_masks * selection
    texts = data.parts["train"].ids
    batch = min(data.batch_size, len(texts)) * sum(map(len, texts)) / len(texts)
    return n_masks * selection + REFIT_STEPS * FORWARD_AND_BACKWARD * min(REFIT_ROWS_PER_TEXT, n_sizes) * batch
