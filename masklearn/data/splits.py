"""Which texts share a mask, and the train, validation and test splits."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from masklearn.data.batching import evenly_spaced
from masklearn.data.encoded import Encoded
from masklearn.data.texts import Text
from masklearn.errors import UserError

HELD_OUT = 0.1
"""Fraction of a group's distinct texts that goes to the validation split, and again to the test split."""
MAX_GROUPS = 64
"""Groups that a column may make unless `max_groups` allows more."""
UNLIMITED = 10**9
"""`max_groups` where groups cost no more than their texts, as in an evaluation."""
MIN_GROUP_TEXTS = 3
"""Distinct texts that a group needs: one for each split."""
DATASET, INPUT, COLUMN = "dataset", "input", "column:"
"""The scopes; a column's name follows the last."""


def group_column(scope: str) -> str | None:
    """The column that a scope names; None if it names none.

    Raises:
        UserError: If there is no such scope.
    """
    if scope in (DATASET, INPUT):
        return None
    if scope.startswith(COLUMN) and scope != COLUMN:
        return scope.removeprefix(COLUMN)
    raise UserError(
        f"model.scope is {scope!r}; choose {DATASET} (one mask for all texts), {INPUT} (one for each text), or "
        f"{COLUMN}NAME (one for each value of a column, for example {COLUMN}language)"
    )


@dataclass(frozen=True)
class Groups:
    """Which texts share a mask."""

    names: tuple[str, ...]
    of_text: list[int]
    """Each text's group, as an index into `names`."""
    held_out: bool
    """Whether validation and test texts are held out. They are not if every text has masks of its own."""

    @classmethod
    def of_scope(cls, scope: str, texts: Sequence[Text] | Sequence[Encoded], max_groups: int | None) -> "Groups":
        """The groups that a scope makes of texts.

        Args:
            scope: `dataset`, `input` or `column:NAME`.
            texts: The texts, in the order of their source.
            max_groups: Groups that a column may make; None stands for `MAX_GROUPS`, fewer than one for each text.

        Raises:
            UserError: If a column makes more groups than that.
        """
        if scope == DATASET:
            return cls((DATASET,), [0] * len(texts), True)
        if scope == INPUT:
            return cls(tuple(text.name for text in texts), list(range(len(texts))), False)
        names = tuple(dict.fromkeys(text.group_value for text in texts))
        one_per_text = len(names) == len(texts) > 1
        if len(names) > (max_groups or MAX_GROUPS) or (one_per_text and max_groups is None):
            values = "one value per text" if one_per_text else f"{len(names)} different values in {len(texts)} texts"
            raise UserError(
                f"model.scope {scope}: the column has {values}, so that {len(names)} groups would be learned "
                f"separately, at up to {len(names)} times the cost of one. Name a column with fewer values, or "
                f"allow it with --model.max_groups {len(names)}"
            )
        index = {name: i for i, name in enumerate(names)}
        return cls(names, [index[text.group_value] for text in texts], not one_per_text)

    def split(self, contents: Sequence[str]) -> dict[str, list[int]]:
        """Indices of the texts of each split, ascending.

        Equal texts fall into the same split, and neither order nor repetition changes which: a group's distinct texts
        are ranked by a hash; the first tenth is the test split, the second tenth the validation split. A text of
        several groups is ranked in the one whose name sorts first. If nothing is held out, every split has all texts.

        Args:
            contents: The content of every text.
        """
        indices = list(range(len(contents)))
        if not self.held_out:
            return {"train": indices, "validation": indices, "test": indices}
        first_group: dict[str, str] = {}
        for content, group in zip(contents, self.of_text, strict=True):
            first_group[content] = min(self.names[group], first_group.get(content, self.names[group]))
        ranked: dict[str, list[tuple[bytes, str]]] = {name: [] for name in self.names}
        for content, name in first_group.items():
            ranked[name].append((hashlib.sha256(content.encode()).digest(), content))
        split_of: dict[str, str] = {}
        for digests in ranked.values():
            n = max(1, round(HELD_OUT * len(digests)))
            for rank, (_, content) in enumerate(sorted(digests)):
                split_of[content] = "test" if rank < n else "validation" if rank < 2 * n else "train"
        return {
            split: [i for i in indices if split_of[contents[i]] == split] for split in ("train", "validation", "test")
        }

    def capped(self, splits: dict[str, list[int]], max_test: int) -> dict[str, list[int]]:
        """The splits with at most `max_test` validation texts, and as many test texts, of all groups together.

        Those kept are evenly spread over each group, of which one stays at least. The rest is left out, also of
        training. If nothing is held out, nothing is left out.
        """
        if not self.held_out:
            return splits
        most, result = max(1, max_test // len(self.names)), dict(splits)
        for name in ("validation", "test"):
            if len(splits[name]) > max_test:
                by_group = self._by_group(splits[name])
                result[name] = sorted(i for members in by_group.values() for i in evenly_spaced(members, most))
        return result

    def _by_group(self, indices: Sequence[int]) -> dict[int, list[int]]:
        """Some texts by their group, in the order given."""
        by_group: dict[int, list[int]] = {}
        for index in indices:
            by_group.setdefault(self.of_text[index], []).append(index)
        return by_group

    def selection(self, splits: dict[str, list[int]], min_texts: int) -> list[int]:
        """Indices of the texts on which discrete masks are selected, ascending.

        These are the validation split, and training texts of every group that has fewer than `min_texts` there, evenly
        spread over the group: selection on few texts overfits them.
        """
        if not self.held_out:
            return splits["validation"]
        held_out, trained = (self._by_group(splits[name]) for name in ("validation", "train"))
        added = [
            index
            for group, of_group in trained.items()
            for index in evenly_spaced(of_group, max(0, min_texts - len(held_out.get(group, []))))
        ]
        return sorted(splits["validation"] + added)

    def shortage(self, splits: dict[str, list[int]], contents: Sequence[str], source: str) -> str:
        """What is missing, and what would do, if a group has no text in one of the splits; else empty."""
        present = [{self.of_text[i] for i in indices} for indices in splits.values()]
        for group, name in enumerate(self.names):
            if all(group in groups for groups in present):
                continue
            n = len({content for content, other in zip(contents, self.of_text, strict=True) if other == group})
            single = len(self.names) == 1
            return (
                f"{source if single else f'group {name!r} of {source}'} holds {n} different texts, but the "
                f"train, validation and test splits need one each. Give at least {MIN_GROUP_TEXTS}, or learn masks of "
                "single texts: --model.scope input"
                + ("" if single or n < MIN_GROUP_TEXTS else ". Other groups have some of its texts, and split them")
            )
        return ""
