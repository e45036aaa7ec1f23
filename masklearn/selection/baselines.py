"""Baselines: other ways to choose subgraphs, for comparison with learned masks."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from masklearn.gates import top
from masklearn.graph import NodeGraph
from masklearn.mask_file import Mask
from masklearn.progress import ProgressBar, no_bar
from masklearn.selection.attribution import attribution, integrated_gradients, norm, single_ablation
from masklearn.selection.scorer import MaskScorer
from masklearn.selection.search import exhaustive, greedy, swap

Score = Literal["norm", "attribution", "integrated-gradients", "single-ablation"]
"""Baselines that keep the nodes with the highest scores."""
Search = Literal["greedy", "greedy-forward", "swap", "exhaustive"]
"""Baselines that search for the subgraph with the lowest KL."""
Control = Literal["random", "random-matched"]
"""Random subgraphs."""
Complement = Literal["inverse"]
"""The nodes that a learned mask closes."""
Baseline = Literal[Control, Complement, Score, Search]
CONTROLS: tuple[Control, ...] = get_args(Control)
UNGUIDED: tuple[Baseline, ...] = (*CONTROLS, *get_args(Complement))
"""Baselines that need no text."""
N_RANDOM_MASKS = 10
"""Random subgraphs of every size that a learned mask is compared with."""


def subgraphs(name: Baseline, mask: Mask, scorer: MaskScorer | None = None, bar: ProgressBar = no_bar) -> Tensor:
    """A baseline's subgraphs for all groups and sizes of a bank.

    Args:
        name: `random`: drawn uniformly from all subgraphs of the size. `random-matched`: drawn uniformly from those
            with as many heads and as many MLPs as the learned mask. `inverse`: all nodes but the learned ones, so not
            of the size. `norm`: the largest shares of the residual stream, a node-level analogue of the s-Trace edge
            importance. `attribution`, `integrated-gradients`, `single-ablation`: the highest scores of the functions
            in `attribution`. `greedy`, `greedy-forward`, `exhaustive`: see `search`. `swap`: local search from the
            subgraphs that `greedy` finds.
        mask: The learned bank.
        scorer: Scores masks of all groups of the bank, on text that no result is reported on. The baselines in
            `UNGUIDED` need none.
        bar: Shows the progress of searches.

    Returns:
        Boolean, shape (draws, sizes, groups, nodes); only random baselines have more than one draw.

    Raises:
        ValueError: If the baseline needs a scorer and there is none.
    """
    sizes, n_nodes = mask.sizes.tolist(), mask.graph.n_nodes
    if name == "random":
        return random_masks(N_RANDOM_MASKS, mask.sizes, n_nodes)[:, :, None].expand(-1, -1, len(mask.groups), -1)
    if name == "random-matched":
        return matched_masks(N_RANDOM_MASKS, mask.mask.transpose(0, 1), mask.graph)
    if name == "inverse":
        return ~mask.mask.transpose(0, 1)[None]
    if scorer is None:
        raise ValueError(f"the baseline {name} needs a MaskScorer")
    if name in SCORE_FUNCTIONS:
        return top(SCORE_FUNCTIONS[name](scorer)[None, None], mask.sizes.to(scorer.device)[:, None])
    searches: dict[str, Callable[[], Tensor]] = {
        "greedy": lambda: greedy(scorer, sizes, n_nodes, bar=bar),
        "greedy-forward": lambda: greedy(scorer, sizes, n_nodes, forward=True, bar=bar),
        "swap": lambda: swap(scorer, greedy(scorer, sizes, n_nodes, bar=bar), bar),
        "exhaustive": lambda: exhaustive(scorer, sizes, n_nodes, bar),
    }
    return searches[name]()[None]


def random_masks(n: int, sizes: Tensor, n_nodes: int, seed: int = 0) -> Tensor:
    """Subgraphs drawn uniformly from all subgraphs of each size.

    Args:
        n: Subgraphs of each size.
        sizes: Node counts, shape (sizes,).
        n_nodes: Nodes of the graph.
        seed: The same seed draws the same subgraphs.

    Returns:
        Boolean, shape (n, sizes, nodes).
    """
    generator = torch.Generator().manual_seed(seed)
    return top(torch.rand((n, len(sizes), n_nodes), generator=generator), sizes)


def matched_masks(n: int, masks: Tensor, graph: NodeGraph, seed: int = 0) -> Tensor:
    """Subgraphs drawn uniformly from those with as many heads and as many MLPs as given masks.

    A mask can do better than `random_masks` by its number of MLPs alone; this baseline has the same number.

    Args:
        n: Subgraphs for each mask.
        masks: Boolean, shape (sizes, groups, nodes).
        graph: Tells heads from MLPs.
        seed: The same seed draws the same subgraphs.

    Returns:
        Boolean, shape (n, sizes, groups, nodes).
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(size_masks: Tensor) -> Tensor:
        n_heads, n_mlps = graph.count(size_masks)
        rank = graph.by_layer(torch.rand(size_masks.shape, generator=generator))
        heads = top(rank[..., :-1].flatten(-2), n_heads).unflatten(-1, (graph.n_layers, -1))
        return torch.cat([heads, top(rank[..., -1], n_mlps).unsqueeze(-1)], -1).flatten(-2)

    # One size at a time: ranks take 16 bytes a node, too much memory for all sizes of many thousand groups at once
    return torch.stack([draw(size_masks) for _ in range(n) for size_masks in masks.cpu()]).unflatten(0, (n, -1))


SCORE_FUNCTIONS: dict[str, Callable[[MaskScorer], Tensor]] = {
    "norm": norm,
    "attribution": attribution,
    "integrated-gradients": integrated_gradients,
    "single-ablation": lambda scorer: single_ablation(scorer, scorer.masked_lm.graph.n_nodes),
}
"""Scores of all nodes, shape (groups, nodes), by baseline."""
