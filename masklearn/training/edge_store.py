"""Edges chosen so far, text by text: a stopped run goes on with the next text."""

from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor

from masklearn.edges import Choose, Importance
from masklearn.training.block_store import BlockStore


def stored(choose: Choose, store: BlockStore) -> Choose:
    """A choice that keeps its results in a store, and takes from it those of an earlier process.

    Args:
        choose: From a text and its importances to the edges kept. Called with the texts of the bank, in order.
        store: One block for every text.
    """
    numbers = count()

    def choose_or_read(input_ids: Tensor, found: Importance) -> Sequence[Tensor]:
        text = next(numbers)
        if text not in store:
            kept = choose(input_ids, found)
            lengths = torch.tensor([len(edges) for edges in kept])
            store.put(text, [text], {"edges": torch.cat(list(kept))[None], "lengths": lengths[None]})
        read = store.get(text)
        return read["edges"][0].split(read["lengths"][0].tolist())

    return choose_or_read
