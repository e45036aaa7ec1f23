"""The cost of a run as text, and as it is kept in `metrics.json`."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from masklearn.evaluation import aligned, phase_title
from masklearn.training.cost import Phase

LEGEND = "Forwards are counted in tokens; a backward counts as two forwards."
DAY = 24 * 3600


class PhaseCost(NamedTuple):
    """What a phase is expected to cost."""

    tokens: float
    """Tokens that are scored: a forward counts one for each token, a backward two."""
    seconds: float
    memory: int
    """Peak memory in bytes: that allocated on a GPU, or that of the process."""


def cost_table(
    costs: Mapping[Phase, PhaseCost],
    left: float,
    source: str,
    note: str = "",
    unlimited: bool = False,
    polishes: bool = True,
) -> str:
    """The expected cost of a run and its end.

    Args:
        costs: By phase.
        left: Seconds that are left.
        source: What this is estimated from, in words.
        note: Further lines, if any.
        unlimited: Whether polish has no limit.
        polishes: Whether there is polish at all.
    """
    lines = [["", "forwards", "time", "memory"]]
    for phase, cost in costs.items():
        at_most = "<= " if phase == "polish" and polishes and not unlimited else ""
        title, memory = phase_title(phase, polishes), f"{cost.memory / 2**30:.1f} GiB"
        lines.append([title, f"{at_most}{_count(cost.tokens)}", f"{at_most}{duration(cost.seconds)}", memory])
    end = time.localtime(time.time() + left)
    clock = time.strftime("%H:%M:%S" if left < DAY else "%Y-%m-%d %H:%M", end)
    head = f"Expected cost, from {source}. {LEGEND}"
    tail = f"Expected end: {clock}, in {duration(left)}"
    return "\n".join(["", head, aligned(lines), *([note] if note else []), tail])


def actual_costs(costs: Mapping[Phase, PhaseCost], seconds: Mapping[Phase, float]) -> dict[str, dict[str, Any]]:
    """The expected and the actual cost by phase, as JSON.

    Args:
        costs: The expected cost.
        seconds: What the phases took.
    """
    return {
        phase: {
            "tokens": round(cost.tokens),
            "memory": cost.memory,
            "estimated_seconds": round(cost.seconds, 1),
            "seconds": round(seconds[phase], 1),
        }
        for phase, cost in costs.items()
    }


def compared_costs(described: Mapping[str, Mapping[str, Any]], polishes: bool = True) -> str:
    """One line: what every phase took, and what was expected; `polishes` says whether there was polish at all."""
    parts = [
        f"{phase_title(phase, polishes)} {duration(cost['seconds'])} ({duration(cost['estimated_seconds'])} expected)"
        for phase, cost in described.items()
    ]
    return f"Time: {', '.join(parts)}"


def duration(seconds: float) -> str:
    """Such as `0.4 s`, `12 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _count(tokens: float) -> str:
    """Such as `820`, `64 k` or `1.2 M`."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if tokens >= factor:
            return f"{tokens / factor:.3g}{unit}"
    return f"{tokens:.0f}"
