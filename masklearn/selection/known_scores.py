"""What is known already of the masks that a search scores again."""

from collections.abc import Callable

import torch
from torch import Tensor


class KnownScores:
    """KLs and gradients of the discrete masks of one group that have been scored so far."""

    def __init__(self) -> None:
        self._kl = dict[bytes, Tensor]()
        self._gradients = dict[tuple[bytes, float], Tensor]()

    def kl(self, masks: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
        """The KL of masks (K, 1, nodes), shape (K, 1); `score` finds that of those that are not known."""
        keys = _keys(masks)
        index_of_new = {key: i for i, key in reversed([*enumerate(keys)]) if key not in self._kl}
        if index_of_new:
            new = score(masks[[*index_of_new.values()]])
            self._kl |= dict(zip(index_of_new, new, strict=True))
        return torch.stack([self._kl[key] for key in keys])

    def gradient(self, mask: Tensor, inverse_temperature: float, find: Callable[[], Tensor]) -> Tensor:
        """The gradient at a mask, both of shape (1, nodes); `find` finds it if it is not known."""
        key = _keys(mask[None])[0], inverse_temperature
        if key not in self._gradients:
            self._gradients[key] = find()
        return self._gradients[key]


def _keys(masks: Tensor) -> list[bytes]:
    """One key for each mask of shape (K, 1, nodes)."""
    return [mask.tobytes() for mask in masks[:, 0].bool().cpu().numpy()]
