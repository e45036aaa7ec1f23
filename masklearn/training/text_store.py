"""Subgraphs of single texts chosen so far: a stopped run goes on with the next text."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import TypeVar

import torch
from torch import Tensor

from masklearn.training.block_store import BlockStore

Known = TypeVar("Known")
"""What is known of a text before the choice: its graph, or its graph and importances."""


def stored(
    choose: Callable[[Tensor, Known], Sequence[Tensor]], store: BlockStore
) -> Callable[[Tensor, Known], Sequence[Tensor]]:
    """A choice that keeps its results in a store, and takes from it those of an earlier process.

    Args:
        choose: From a text and what is known of it to what is kept. Called with the texts of the bank, in order.
        store: One block for every text.
    """
    numbers = count()

    def choose_or_read(input_ids: Tensor, known: Known) -> Sequence[Tensor]:
        text = next(numbers)
        if text not in store:
            kept = choose(input_ids, known)
            lengths = torch.tensor([len(ids) for ids in kept])
            store.put(text, [text], {"kept": torch.cat(list(kept))[None], "lengths": lengths[None]})
        read = store.get(text)
        return read["kept"][0].split(read["lengths"][0].tolist())

    return choose_or_read
