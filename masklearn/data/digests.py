"""Hashes of texts and of other contents, to notice that they have changed."""

import hashlib
from collections.abc import Sequence

from masklearn.data.batching import Batch
from masklearn.data.datamodule import MaskData

DIGEST_LENGTH = 16
"""Hexadecimal digits of a digest."""


def digest(*contents: bytes) -> str:
    """A hash of some contents."""
    whole = hashlib.sha256()
    for content in contents:
        whole.update(hashlib.sha256(content).digest())
    return whole.hexdigest()[:DIGEST_LENGTH]


def texts_digest(data: MaskData) -> str:
    """A hash of all texts in tokens, with their splits, their groups and what is scored of them."""
    texts = (
        repr((name, *row)).encode()
        for name, split in sorted(data.parts.items())
        for row in zip(split.encoded, split.groups, strict=True)
    )
    return digest(data.positions.encode(), repr(data.groups.names).encode(), *texts)


def batches_digest(batches: Sequence[Batch]) -> str:
    """A hash of some batches."""
    return digest(*(tensor.numpy().tobytes() for batch in batches for tensor in batch if tensor is not None))
