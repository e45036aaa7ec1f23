"""Which texts share a mask, and which of them are learned from, watched and reported on."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from masklearn.data.columns import Text
from masklearn.data.tokenization import Encoded
from masklearn.errors import UserError

HELD_OUT = 0.1
"""Share of a group's different texts that goes to the validation split, and again to the test split."""
MAX_GROUPS = 64
"""Groups that a column may make without being asked for by number."""
LEAST = 3
"""Different texts that a group needs for one each to learn from, to watch and to report on."""
DATASET, INPUT, COLUMN = "dataset", "input", "column:"


def group_column(scope: str) -> str | None:
    """The column that a scope names, if it names one.

    Raises:
        UserError: If there is no such scope.
    """
    if scope in (DATASET, INPUT):
        return None
    if scope.startswith(COLUMN) and scope != COLUMN:
        return scope.removeprefix(COLUMN)
    raise UserError(
        f"model.scope is {scope!r}; choose {DATASET} (one mask for all texts), {INPUT} (each text its own), or "
        f"{COLUMN}NAME (one for every value of a column, for example {COLUMN}language)"
    )


@dataclass(frozen=True)
class Groups:
    """Which texts share a mask."""

    names: tuple[str, ...]
    of: list[int]
    """The place among the names of every text's group."""
    held_out: bool
    """Whether texts are held out; not where every text has masks of its own."""

    @classmethod
    def of_scope(cls, scope: str, texts: Sequence[Text] | Sequence[Encoded], max_groups: int | None) -> "Groups":
        """The groups that a scope makes of texts.

        Raises:
            UserError: If a column makes more groups than expected, or gives every text a group of its own, and it was
                not said that this is meant.
        """
        if scope == DATASET:
            return cls((DATASET,), [0] * len(texts), True)
        if scope == INPUT:
            return cls(tuple(text.name for text in texts), list(range(len(texts))), False)
        names = tuple(dict.fromkeys(text.value for text in texts))
        every_own = len(names) == len(texts) > 1
        if len(names) > (max_groups or MAX_GROUPS) or (every_own and max_groups is None):
            kind = "one value per text" if every_own else f"{len(names)} different values in {len(texts)} texts"
            raise UserError(
                f"model.scope {scope}: the column holds {kind}, so that {len(names)} groups would each be learned on "
                f"their own, at up to {len(names)} times the cost of one. Name a column with fewer values, or go on "
                f"with --model.max_groups {len(names)}"
            )
        place = {name: i for i, name in enumerate(names)}
        return cls(names, [place[text.value] for text in texts], not every_own)

    def split(self, contents: Sequence[str]) -> dict[str, list[int]]:
        """Places of the texts of each split, in the order given.

        Equal texts fall into the same split, and neither order nor repetition changes where a text falls: a group's
        different texts are ranked by a hash; the first tenth is for testing, the second for validation. A text that
        several groups have falls where the first of them by name puts it. Where nothing is held out, every part has
        all texts.
        """
        everything = list(range(len(contents)))
        if not self.held_out:
            return {"train": everything, "validation": everything, "test": everything}
        first: dict[str, str] = {}
        for content, group in zip(contents, self.of, strict=True):
            first[content] = min(self.names[group], first.get(content, self.names[group]))
        digests: dict[str, list[tuple[bytes, str]]] = {name: [] for name in self.names}
        for content, name in first.items():
            digests[name].append((hashlib.sha256(content.encode()).digest(), content))
        part_of: dict[str, str] = {}
        for ranked in digests.values():
            held_out = max(1, round(HELD_OUT * len(ranked)))
            for rank, (_, content) in enumerate(sorted(ranked)):
                part_of[content] = "test" if rank < held_out else "validation" if rank < 2 * held_out else "train"
        return {
            part: [i for i in everything if part_of[contents[i]] == part] for part in ("train", "validation", "test")
        }

    def selection(self, parts: dict[str, list[int]], least: int) -> list[int]:
        """Places of the texts by which discrete masks are selected, in the order given.

        The validation split, and where a group has fewer than `least` texts in it, some of its training texts besides:
        what looks best on a handful of texts is not what is best.
        """
        if not self.held_out:
            return parts["validation"]
        count = Counter(self.of[i] for i in parts["validation"])
        more = list[int]()
        for i in parts["train"]:
            if count[self.of[i]] < least:
                count[self.of[i]] += 1
                more.append(i)
        return sorted(parts["validation"] + more)

    def require_parts(self, parts: dict[str, list[int]], contents: Sequence[str], source: str) -> None:
        """Refuse groups without a text in every split.

        Raises:
            UserError: If there is one; names it.
        """
        present = [{self.of[i] for i in part} for part in parts.values()]
        for place, name in enumerate(self.names):
            if all(place in groups for groups in present):
                continue
            n = len({content for content, group in zip(contents, self.of, strict=True) if group == place})
            alone = len(self.names) == 1
            raise UserError(
                f"{source if alone else f'group {name!r} of {source}'} holds {n} different texts; train, validation "
                f"and test take one each. Give at least {LEAST}, or learn masks for every text: --model.scope input"
                + ("" if alone or n < LEAST else ". Other groups hold the same texts, which are held out there")
            )
