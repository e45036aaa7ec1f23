"""Other ways to choose a subgraph, for a learned mask to stand beside, each by its name."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from masklearn.gates import top
from masklearn.graph import NodeGraph
from masklearn.mask_file import Mask
from masklearn.selection.attribution import attribution, integrated_gradients, norm, single_ablation
from masklearn.selection.scorer import MaskScorer
from masklearn.selection.search import exhaustive, greedy, swap

Score = Literal["norm", "attribution", "integrated-gradients", "single-ablation"]
Search = Literal["greedy", "greedy-forward", "swap", "exhaustive"]
Control = Literal["random", "random-matched"]
Rest = Literal["inverse"]
Baseline = Literal[Control, Rest, Score, Search]
CONTROLS: tuple[Control, ...] = get_args(Control)
UNGUIDED: tuple[Baseline, ...] = (*CONTROLS, *get_args(Rest))
"""Those that look at no text."""

N_RANDOM = 10
"""Random subgraphs of each size that a learned one is held against."""


def subgraphs(name: Baseline, mask: Mask, scorer: MaskScorer | None = None) -> Tensor:
    """Subgraphs of a bank's sizes for its groups, chosen in another way.

    Args:
        name: `random`: drawn uniformly among all of a size. `random-matched`: among those with as many heads and as
            many MLPs as the learned ones. `inverse`: all nodes but the learned ones, so not of the size. `norm`: the
            largest contributions to the residual stream (the s-Trace score; see `node_contributions`).
            `attribution`, `integrated-gradients`, `single-ablation`: the highest scores of the functions below.
            `greedy`, `greedy-forward`, `exhaustive`: see `search`. `swap`: local search from greedy's.
        mask: The learned bank.
        judge: Judges all groups of the bank, on texts that are not reported on; controls need none.

    Returns:
        Boolean, shape (draws, sizes, groups, nodes); there are draws of what is random only.
    """
    sizes, n_nodes = mask.sizes.tolist(), mask.graph.n_nodes
    if name == "random":
        return random_masks(N_RANDOM, mask.sizes, n_nodes)[:, :, None].expand(-1, -1, len(mask.groups), -1)
    if name == "random-matched":
        return matched_masks(N_RANDOM, mask.mask.transpose(0, 1), mask.graph)
    if name == "inverse":
        return ~mask.mask.transpose(0, 1)[None]
    if scorer is None:
        raise ValueError(f"{name} chooses by a judge, and none is given")
    if name in SCORE_OF:
        return top(SCORE_OF[name](scorer)[None, None], mask.sizes.to(scorer.device)[:, None])
    searches: dict[str, Callable[[], Tensor]] = {
        "greedy": lambda: greedy(scorer, sizes, n_nodes),
        "greedy-forward": lambda: greedy(scorer, sizes, n_nodes, forward=True),
        "swap": lambda: swap(scorer, greedy(scorer, sizes, n_nodes)),
        "exhaustive": lambda: exhaustive(scorer, sizes, n_nodes),
    }
    return searches[name]()[None]


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
    return top(torch.rand((n, len(sizes), n_nodes), generator=generator), sizes)


def matched_masks(n: int, masks: Tensor, graph: NodeGraph, seed: int = 0) -> Tensor:
    """Subgraphs drawn uniformly among those with as many heads and as many MLPs as given ones.

    What beats random subgraphs may have found out no more than that MLPs matter; this control knows that as well.

    Args:
        n: How many for each mask.
        masks: Boolean, shape (sizes, groups, nodes).
        graph: Which nodes are heads.
        seed: The same seed draws the same subgraphs.

    Returns:
        Boolean, shape (n, sizes, groups, nodes).
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(some: Tensor) -> Tensor:
        heads, mlps = graph.count(some)
        rank = graph.by_layer(torch.rand(some.shape, generator=generator))
        kept_heads = top(rank[..., :-1].flatten(-2), heads).unflatten(-1, (graph.n_layers, -1))
        return torch.cat([kept_heads, top(rank[..., -1], mlps).unsqueeze(-1)], -1).flatten(-2)

    # One size at a time: ranks take 16 bytes a node, which a bank of many thousand groups would not leave room for
    return torch.stack([draw(some) for _ in range(n) for some in masks.cpu()]).unflatten(0, (n, -1))


SCORE_OF: dict[str, Callable[[MaskScorer], Tensor]] = {
    "norm": norm,
    "attribution": attribution,
    "integrated-gradients": integrated_gradients,
    "single-ablation": lambda scorer: single_ablation(scorer, scorer.masked_lm.graph.n_nodes),
}
