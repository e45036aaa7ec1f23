"""Other ways to choose a subgraph, for a learned mask to stand beside, each by its name."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from masklearn.artifact import Mask
from masklearn.gates import top
from masklearn.graph import NodeGraph
from masklearn.judge import Judge
from masklearn.search import exhaustive, greedy, single_ablation, swap

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
TOP_TOKEN = 1e4
"""Sharpness at which the full model's distribution is its most probable token alone."""
PATH_STEPS = 10
"""Points at which integrated gradients look, halfway between equal parts of the way from no gate to all."""


def subgraphs(name: Baseline, mask: Mask, judge: Judge | None = None) -> Tensor:
    """Subgraphs of a bank's sizes for its groups, chosen in another way.

    Args:
        name: `random`: drawn uniformly among all of a size. `random-matched`: among those with as many heads and as
            many MLPs as the learned ones. `inverse`: all nodes but the learned ones, so not of the size. `norm`: the
            largest contributions to the residual stream (the s-Trace score; see `MaskedLM.contributions`).
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
    if judge is None:
        raise ValueError(f"{name} chooses by a judge, and none is given")
    if name in SCORE_OF:
        return top(SCORE_OF[name](judge)[None, None], mask.sizes.to(judge.device)[:, None])
    searches: dict[str, Callable[[], Tensor]] = {
        "greedy": lambda: greedy(judge, sizes, n_nodes),
        "greedy-forward": lambda: greedy(judge, sizes, n_nodes, forward=True),
        "swap": lambda: swap(judge, greedy(judge, sizes, n_nodes)),
        "exhaustive": lambda: exhaustive(judge, sizes, n_nodes),
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


def norm(judge: Judge) -> Tensor:
    """How large a part every node has in what it adds to, mean over tokens, shape (groups, nodes).

    Over those tokens of a group that a scored position sees.
    """
    total = torch.zeros(judge.n_groups, judge.masked_lm.graph.n_nodes, device=judge.device)
    tokens = torch.zeros(judge.n_groups, 1, device=judge.device)
    for piece in judge.pieces:
        seen = piece.batch.scored.flip(-1).cumsum(-1).flip(-1) > 0
        share = judge.masked_lm.contributions(piece.batch.input_ids) * seen[..., None]
        total.index_add_(0, piece.slot, share.sum(1))
        tokens.index_add_(0, piece.slot, seen.sum(1, keepdim=True).float())
    return total / tokens


def attribution(judge: Judge) -> Tensor:
    """By how much closing a node would raise the loss, to first order: shape (groups, nodes).

    The gradient in a gate that is open: of what a node puts out, times the difference to what it puts out when closed.
    The loss is the negative log-probability of the full model's most probable token, since the KL from the full model
    has no gradient there.
    """
    gates = torch.ones(judge.n_groups, judge.masked_lm.graph.n_nodes, device=judge.device)
    return -judge.gradient(gates, sharpness=TOP_TOKEN)


def integrated_gradients(judge: Judge) -> Tensor:
    """What a node takes from the KL when all gates open together, from none to all: shape (groups, nodes).

    Source: Sundararajan et al. 2017, section 3 (arXiv:1703.01365), with gates for inputs.
    """
    gates = torch.ones(judge.n_groups, judge.masked_lm.graph.n_nodes, device=judge.device)
    points = [(step + 0.5) / PATH_STEPS for step in range(PATH_STEPS)]
    return -torch.stack([judge.gradient(gates * point) for point in points]).mean(0)


SCORE_OF: dict[str, Callable[[Judge], Tensor]] = {
    "norm": norm,
    "attribution": attribution,
    "integrated-gradients": integrated_gradients,
    "single-ablation": lambda judge: single_ablation(judge, judge.masked_lm.graph.n_nodes),
}
