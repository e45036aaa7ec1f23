"""The texts of a run, changed: resampled, halved, shuffled, or in other words. The test split stays as it is."""

import random
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace

from masklearn.data import MaskData
from masklearn.data.batching import SplitDataset
from masklearn.data.encoded import Encoded
from masklearn.errors import UserError

LEARNING_SPLITS = ("train", "validation", "selection")
"""Splits that masks are learned and selected on."""
RESAMPLED_SPLITS = ("train", "validation")
"""Splits that are resampled; texts for selection are chosen from these."""
MIN_HALVED_TEXTS = 15
"""Texts of which a tenth, the validation split, are two."""
MIN_SHUFFLED_TOKENS = 3
"""Texts of fewer tokens have nothing to shuffle: the first token stays, as it may be a begin token."""


def with_order(data: MaskData, seed: int) -> MaskData:
    """The same texts, in another order of training."""
    changed = _copy(data)
    changed.seed = seed
    return changed


def bootstrapped(data: MaskData, seed: int) -> MaskData:
    """Texts of each split and group drawn with replacement, as many as there are."""
    rng = random.Random(f"bootstrap/{seed}")
    return _resampled(data, lambda indices: rng.choices(indices, k=len(indices)))


def can_be_halved(data: MaskData) -> bool:
    """Whether every group that a split has texts of has at least two there."""
    n_groups = len(data.groups.names)
    splits = (data.parts[name].indices_by_group(n_groups) for name in RESAMPLED_SPLITS)
    return all(len(group) != 1 for by_group in splits for group in by_group)


def half(data: MaskData, seed: int, second: bool) -> MaskData:
    """One half of the texts of each split and group; the other half with `second`.

    Raises:
        UserError: If a group has fewer than two texts in a split.
    """
    rng = random.Random(f"half/{seed}")

    def choose(indices: Sequence[int]) -> Sequence[int]:
        shuffled = rng.sample(indices, len(indices))
        chosen = shuffled[1::2] if second else shuffled[::2]
        if not chosen:
            raise UserError(
                "plan.halves: a group has a single text in a split, which cannot be halved. Learn masks of "
                f"{MIN_HALVED_TEXTS} texts a group or more, or leave halves out: --plan.halves 0"
            )
        return sorted(chosen)

    return _resampled(data, choose)


def shuffled(data: MaskData, seed: int) -> MaskData:
    """Every text of the splits that masks are learned on with its tokens in random order, the first one excepted.

    Raises:
        UserError: If there is no text to shuffle, or if the order of completions' tokens counts.
    """
    if data.positions == "completion":
        raise UserError("prompts and completions cannot be shuffled together")
    if data.longest_text < MIN_SHUFFLED_TOKENS:
        raise UserError(f"texts of fewer than {MIN_SHUFFLED_TOKENS} tokens cannot be shuffled")

    def shuffle(text: Encoded) -> Encoded:
        rng = random.Random(f"shuffle/{seed}/{text.row}")  # the same in every split
        order = [0, *rng.sample(range(1, len(text.ids)), len(text.ids) - 1)]
        corrupted = text.corrupted and [text.corrupted[i] for i in order]
        return replace(text, ids=[text.ids[i] for i in order], corrupted=corrupted, answers=(), wrong=())

    changed = _copy(data)
    for name in LEARNING_SPLITS:
        split = data.parts[name]
        changed.parts[name] = SplitDataset([shuffle(text) for text in split.encoded], split.groups)
    return changed


def in_other_words(data: MaskData, paraphrased: MaskData) -> MaskData:
    """The rows of the learning splits as another column words them.

    Raises:
        UserError: If the other column lacks a row.
    """
    text_of = {text.row: text for text in paraphrased.parts["all"].encoded}
    changed = _copy(data)
    for name in LEARNING_SPLITS:
        split = data.parts[name]
        if lacking := [text.row for text in split.encoded if text.row not in text_of]:
            raise UserError(f"plan.paraphrase_column: row {lacking[0]} has no text there. Give every row one")
        changed.parts[name] = SplitDataset([text_of[text.row] for text in split.encoded], split.groups)
    return changed


def _copy(data: MaskData) -> MaskData:
    changed = copy(data)
    changed.parts, changed.plan = dict(data.parts), None
    return changed


def _resampled(data: MaskData, choose: Callable[[Sequence[int]], Sequence[int]]) -> MaskData:
    """Chosen texts of the training and validation splits; of them as many are for selection as before, if they do."""
    changed, n_groups = _copy(data), len(data.groups.names)
    for name in RESAMPLED_SPLITS:
        by_group = data.parts[name].indices_by_group(n_groups)
        changed.parts[name] = _subset(data.parts[name], [i for group in by_group if group for i in choose(group)])
    train, validation = changed.parts["train"], changed.parts["validation"]
    encoded, groups = [*validation.encoded], [*validation.groups]
    before = data.parts["selection"].indices_by_group(n_groups)
    by_group, held_out = train.indices_by_group(n_groups), validation.indices_by_group(n_groups)
    for group, indices in enumerate(by_group):
        n_added = max(0, min(len(indices), len(before[group]) - len(held_out[group])))
        encoded += [train.encoded[i] for i in indices[:n_added]]
        groups += [group] * n_added
    changed.parts["selection"] = SplitDataset(encoded, groups)
    return changed


def _subset(split: SplitDataset, indices: Sequence[int]) -> SplitDataset:
    return SplitDataset([split.encoded[i] for i in indices], [split.groups[i] for i in indices])
