"""The table of controls: their KL beside that of the masks, and beside that of masks whose search was as long."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from masklearn.data.digests import digest
from masklearn.evidence.bench import Bench
from masklearn.evidence.controls import (
    OTHER_RUN,
    POLISHED,
    learned_controls,
    masks_of_equal_budget,
    search_shares,
    unlearned_controls,
)
from masklearn.evidence.intervals import NOT_TESTED, mean_interval, too_few_texts
from masklearn.evidence.kept_parts import KeptPart
from masklearn.evidence.rediscovery import Rediscoverer
from masklearn.evidence.sources import Sources
from masklearn.evidence.transfer import Table
from masklearn.mask_file import Mask

BEATEN, NOT_BEATEN = "beaten", "not beaten"
"""What is said of a control, if there are enough texts."""
OWN = "own"
"""The masks themselves, among the controls that need no learning."""


@dataclass(frozen=True)
class Control:
    """What a control does on the held-out texts of a group."""

    name: str
    by_size: Mapping[int, dict[str, Any]]
    """For each size `kl`, of every text, and `same`, whether its nodes are those of the mask."""
    share: float | None = None
    """Tokens that its search may score, as a share of those of the run's search; None if it has none, or a run's."""
    is_learned: bool = False
    """Whether masks that were learned again are as good a comparison."""


def control_table(bench: Bench, again: Rediscoverer, sources: Sources) -> tuple[Table, dict[str, str]]:
    """The controls of all groups, and why others could not be learned; the results of each are kept.

    Args:
        bench: The bank.
        again: Learns masks.
        sources: Other tasks and other runs.
    """
    learned, missing = learned_controls(bench, again, sources.other_tasks)
    equal, (share, polish_share) = masks_of_equal_budget(bench, again), search_shares(again)
    rows = Table()
    for g, unlearned in enumerate(unlearned_parts(bench, again)):
        own, *controls = (
            Control(name, _by_size(found), polish_share if name == POLISHED else None)
            for name, found in unlearned().items()
        )
        controls += [Control(name, _kept_kl(bench, g, _masks(bench, g, mask)), share, True)
                     for name, mask in learned.items()]  # fmt: skip
        controls += [Control(f"{OTHER_RUN}: {name}", _kept_kl(bench, g, by_size))
                     for name, by_size in sources.other_runs.items()]  # fmt: skip
        rivals = [_kept_kl(bench, g, _masks(bench, g, mask)) for mask in equal]
        rows += [
            control_row(bench, g, s, control, own, rivals)
            for s in bench.mask.sizes.tolist()
            for control in controls
            if s in control.by_size
        ]
    return rows, missing


def unlearned_parts(bench: Bench, again: Rediscoverer) -> list[KeptPart]:
    """For every group, what its masks and the controls that need no learning do, by name."""
    groups = range(len(bench.mask.groups))
    tokens = bench.plan.polish_budget * again.learning_tokens / len(groups)
    return [partial(bench.kept.part, f"controls-{g}", partial(_unlearned, bench, g, tokens)) for g in groups]


def control_row(
    bench: Bench, group: int, s: int, control: Control, own: Control, rivals: Sequence[Mapping[int, dict[str, Any]]]
) -> dict[str, Any]:
    """A control beside the mask of one size.

    It is beaten if its KL minus the mask's is positive, by a 95 % bootstrap interval over texts. One that was learned
    must also lose to the mean of masks that were learned again, whose search was as long; these are the `rivals`.
    """
    kl = torch.tensor(control.by_size[s]["kl"], dtype=torch.float64)
    own_kl = torch.tensor(own.by_size[s]["kl"], dtype=torch.float64)
    difference, low, high = mean_interval(kl - own_kl, bench.plan.seed)
    row = {
        "group": bench.mask.groups[group], "s": s, "control": control.name, "kl": float(kl.mean()),
        "run_kl": float(own_kl.mean()), "difference": difference, "low": low, "high": high,
        "verdict": BEATEN if low > 0 else NOT_BEATEN, "note": "the same nodes" if control.by_size[s]["same"] else "",
        "texts": len(kl), "search": control.share, "again": 0, "again_kl": None, "again_difference": None,
        "again_low": None, "again_high": None,
    }  # fmt: skip
    if control.is_learned and rivals:
        again_kl = torch.tensor([rival[s]["kl"] for rival in rivals], dtype=torch.float64).mean(0)
        difference = (kl - again_kl).round(decimals=12)  # a mean of equal numbers is not quite that number
        names = ("again_difference", "again_low", "again_high")
        row |= dict(zip(names, mean_interval(difference, bench.plan.seed), strict=True))
        row |= {"again": len(rivals), "again_kl": float(again_kl.mean())}
        row["verdict"] = row["verdict"] if row["again_low"] > 0 else NOT_BEATEN
    return row | ({"verdict": NOT_TESTED} if too_few_texts(len(kl)) else {})


def _unlearned(bench: Bench, group: int, tokens: float) -> dict[str, Table]:
    """The KL of every text for the masks themselves, and for the controls that need no learning."""
    sizes = bench.mask.sizes.tolist()
    named = {OWN: bench.mask.mask[group][None]} | unlearned_controls(bench, group, tokens)
    by_size = [{s: mask[:, i] for i, s in enumerate(sizes)} for mask in named.values()]
    return dict(zip(named, _kl_of_texts(bench, group, by_size), strict=True))


def _masks(bench: Bench, group: int, mask: Mask) -> dict[int, Tensor]:
    """The masks of a bank for a group, by size; of one with a single group, that group's."""
    of_group = mask.mask[min(group, len(mask.mask) - 1)]
    return {s: of_group[i][None] for i, s in enumerate(bench.mask.sizes.tolist())}


def _kept_kl(bench: Bench, group: int, by_size: Mapping[int, Tensor]) -> Mapping[int, dict[str, Any]]:
    """The KL of every text, by size, computed once for these masks."""
    of_masks = digest(*(f"{s}".encode() + mask.numpy().tobytes() for s, mask in by_size.items()))

    def compute() -> Table:
        (found,) = _kl_of_texts(bench, group, [by_size])
        return found

    return _by_size(bench.kept.part(f"controls-{group}-{of_masks}", compute))


def _kl_of_texts(bench: Bench, group: int, controls: Sequence[Mapping[int, Tensor]]) -> list[Table]:
    """The KL of every text, mean over draws, for each control a row for each of its sizes."""
    results = iter(bench.scores(group, [mask for one in controls for mask in one.values()], "Controls on texts"))
    return [
        [
            {"s": s, "kl": next(results).kl.mean(0).tolist(), "same": bool((mask == bench.mask_of(group, s)).all())}
            for s, mask in by_size.items()
        ]
        for by_size in controls
    ]


def _by_size(rows: Table) -> dict[int, dict[str, Any]]:
    return {row["s"]: row for row in rows}
