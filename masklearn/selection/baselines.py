"""Baselines: other ways to choose subgraphs, for comparison with learned masks."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from masklearn import ranks
from masklearn.data import Batch, MaskData
from masklearn.errors import UserError, nearest
from masklearn.gates import top
from masklearn.graph import NodeGraph
from masklearn.mask_file import Mask
from masklearn.masking import MaskedLM
from masklearn.objective import ObjectiveName
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
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
CONTROLS: tuple[Control, ...] = get_args(Control)
UNGUIDED: tuple[Baseline, ...] = (*CONTROLS, *get_args(Complement))
"""Baselines that need no text."""
N_RANDOM_MASKS = 10
"""Random subgraphs of every size that a learned mask is compared with."""


def known_baselines(names: Sequence[str] | str) -> list[Baseline]:
    """One name, or several, as a list of baselines.

    Raises:
        UserError: If there is no baseline of a name; names the nearest, and all there are.
    """
    chosen = [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in BASELINES:
            match = nearest(str(name), BASELINES)
            suggestion = f"Did you mean {match}? " if match else ""
            raise UserError(f"there is no baseline {name!r}. {suggestion}Choose from {', '.join(BASELINES)}")
    return cast(list[Baseline], chosen)


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


def rank_scorer(
    masked_lm: MaskedLM,
    texts: Callable[[Sequence[int]], Iterable[Batch]],
    groups: Sequence[int],
    objective: ObjectiveName,
) -> MaskScorer | None:
    """A scorer for this rank's share of the groups or, if there is a single one, for its share of the texts.

    Args:
        masked_lm: The model, under the ablation that closed nodes get.
        texts: The texts of some groups.
        groups: Ids of all groups of a bank.
        objective: What masks are scored by.

    Returns:
        The scorer; None if there are fewer groups than ranks, and none is left for this one.
    """
    own = groups if len(groups) == 1 else ranks.share(groups)
    return MaskScorer(masked_lm, texts(own), own, objective, shared=len(groups) == 1) if own else None


def bank_scorer(masked_lm: MaskedLM, mask: Mask, learned_on: MaskData, max_texts: int) -> MaskScorer | None:
    """A scorer for this rank on training texts of a bank: see `rank_scorer`.

    Args:
        masked_lm: The model, under the ablation that closed nodes get.
        mask: The bank. Masks are scored by the objective of its run, or by KL if it is of no run.
        learned_on: The texts that it was learned on.
        max_texts: Training texts of each group, at most.
    """
    index = {name: i for i, name in enumerate(learned_on.groups.names)}
    texts = partial(learned_on.loader, "train", max_texts=max_texts)
    objective = mask.config.get("model", {}).get("objective", "kl")
    return rank_scorer(masked_lm, texts, [index[name] for name in mask.groups], objective)


def subgraphs_of_ranks(
    name: Baseline, mask: Mask, scorer: MaskScorer | None = None, bar: ProgressBar = no_bar
) -> Tensor:
    """As `subgraphs`, with the work divided among ranks; every rank must call this, with its `rank_scorer`."""
    if name in UNGUIDED or len(mask.groups) == 1 or ranks.count() == 1:
        return subgraphs(name, mask, scorer, bar)
    parts = ranks.gathered(subgraphs(name, mask, scorer, bar).cpu() if scorer else None)
    n_groups, n_sizes, n_nodes = mask.mask.shape
    found = torch.empty(1, n_sizes, n_groups, n_nodes, dtype=torch.bool)
    for rank, part in enumerate(parts):
        if part is not None:
            found[:, :, rank :: ranks.count()] = part
    return found


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
