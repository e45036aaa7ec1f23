"""Texts that evaluation leaves out: those that masks were learned on, under any name, and those without masks."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from masklearn.data.datamodule import MaskData, SplitName
from masklearn.data.splits import COLUMN
from masklearn.errors import UserError, listed


def leave_out_learned(
    data: MaskData, split: SplitName, learned: Collection[int], keep: bool, keep_flag: str
) -> list[str]:
    """Leave out of a split the texts that masks were learned on, or count them.

    Args:
        data: The texts to evaluate on.
        split: The split of them.
        learned: Hashes of the texts that the masks were learned on; none if the mask file does not know.
        keep: Whether such texts stay.
        keep_flag: What the user sets to keep them, for messages.

    Returns:
        What the user should know on it, a line each.

    Raises:
        UserError: If no others are left of a group.
    """
    if not len(learned):
        return ["The mask file does not say which texts its masks were learned on, so none are left out"]
    known, whole = frozenset(learned), data.parts[split]
    if keep:
        n = sum(not known.isdisjoint(text.hashes) for text in whole.encoded)
        return [f"The masks were learned on {n} of these texts, and are evaluated on them too"] if n else []
    data.parts[split] = others = whole.without(known)
    if emptied := {*whole.groups} - {*others.groups}:
        of = f" of group {data.groups.names[min(emptied)]!r}" if len(data.groups.names) > 1 else ""
        raise UserError(
            f"{data.source}: the masks were learned on all of its texts{of}, under this or another name. Give others, "
            f"or evaluate on these all the same: {keep_flag}"
        )
    n = len(whole) - len(others)
    return (
        [f"{n} texts are left out, as the masks were learned on them; {keep_flag} evaluates on them too"] if n else []
    )


def leave_out_if_changed(data: MaskData, learned: Collection[int], keep_flag: str) -> list[str]:
    """Leave learned texts out of the test split of a run's own texts, if more have come since, which moved some there.

    The rest is as in `leave_out_learned`. Packed texts may reach from one split into another, as they did in the run.
    """
    if not len(learned) or set(learned) == set(data.learned_texts):
        return []
    return leave_out_learned(data, "test", learned, False, keep_flag)


def n_not_learned(data: MaskData, learned: Collection[int]) -> int:
    """How many of all texts are not among those that masks were learned on; 0 if the mask file does not know these."""
    known = frozenset(learned)
    return sum(known.isdisjoint(text.hashes) for text in data.parts["all"].encoded) if known else 0


def leave_out_other_groups(data: MaskData, names: Sequence[str]) -> list[str]:
    """Leave out the texts of groups that have no masks, where groups are values of a column.

    Args:
        data: The texts to evaluate on.
        names: The groups that have masks.

    Returns:
        What the user should know on it, a line each.

    Raises:
        UserError: If no group of the texts has masks.
    """
    if not data.scope.startswith(COLUMN):
        return []
    others = keep_groups(data, names)
    column = data.scope.removeprefix(COLUMN)
    if not data.groups.names:
        raise UserError(
            f"{data.source}: there are masks for the values {listed(names)} of the column {column!r}, and all of its "
            f"texts have others: {listed(others)}. Give texts with these values"
        )
    if not others:
        return []
    left_out = f"{len(others)} values of the column {column!r} have no masks, and their texts are left out"
    return [f"{left_out}: {listed(others)}"]


def keep_groups(data: MaskData, names: Collection[str]) -> list[str]:
    """Leave out the texts of groups that have none of these names; returns the names of the groups left out."""
    groups = data.groups
    kept = [i for i, name in enumerate(groups.names) if name in names]
    number = {old: new for new, old in enumerate(kept)}
    of_text = [number[group] for group in groups.of_text if group in number]
    data.groups = replace(groups, names=tuple(groups.names[i] for i in kept), of_text=of_text)
    data.parts = {split: texts.of_groups(number) for split, texts in data.parts.items()}
    return [name for name in groups.names if name not in names]
