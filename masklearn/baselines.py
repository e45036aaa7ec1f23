"""Other ways to choose a subgraph, for a learned mask to stand beside."""

import torch
from torch import Tensor


def random_masks(n: int, sizes: Tensor, n_nodes: int, seed: int = 0) -> Tensor:
    """Subgraphs drawn uniformly among all of each size.

    Args:
        n: How many of each size.
        sizes: Node counts, shape (sizes,).
        n_nodes: Nodes to draw from.
        seed: The same seed draws the same subgraphs.

    Returns:
        Boolean, shape (n, sizes, nodes).
    """
    generator = torch.Generator().manual_seed(seed)
    rank = torch.rand((n, len(sizes), n_nodes), generator=generator).argsort(-1).argsort(-1)
    return rank < sizes[:, None]
