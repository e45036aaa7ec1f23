"""Controls that a mask must beat: what the same sizes, the same search, or other texts and weights give."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from masklearn.errors import UserError, WriteError
from masklearn.evidence.bench import Bench
from masklearn.evidence.rediscovery import BOOTSTRAP, SEED, Rediscoverer, Variant, shuffled_variant, variants
from masklearn.gates import top
from masklearn.mask_file import Mask
from masklearn.masking import MaskedLM
from masklearn.models import require_plain
from masklearn.selection.attribution import single_ablation
from masklearn.selection.baselines import matched_masks
from masklearn.selection.polish import polish
from masklearn.training.settings import default_steps

RANDOM, POLISHED, RANKS = "random-matched", "polished random", "single-ablation ranks"
SHUFFLED, UNTRAINED, OTHER, OTHER_RUN = "shuffled texts", "untrained model", "another task", "another run"
N_RANDOM = 10
"""Random subgraphs whose mean KL is a control."""


def untrained_like(masked_lm: MaskedLM, seed: int) -> MaskedLM:
    """A model of the same shape with the random weights that its training would start from."""
    lm = masked_lm.lm
    require_plain(lm, "the control of an untrained model")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = type(lm)(lm.config)
    nn.Module.to(fresh, lm.device, lm.dtype)
    return MaskedLM(fresh.eval().requires_grad_(False))


def control_searches(bench: Bench, again: Rediscoverer, others: Mapping[str, Variant]) -> dict[str, Callable[[], Mask]]:
    """The same search on shuffled texts, on an untrained model, and on other tasks, by the control's name.

    Args:
        bench: The bank.
        again: Learns masks.
        others: Rediscoveries on other tasks, by the task's name.
    """
    untrained = Variant("untrained", 1, lambda data: data, bench.plan.seed)
    searches: dict[str, Callable[[], Mask]] = {
        SHUFFLED: lambda: again.find(shuffled_variant(bench.plan)),
        UNTRAINED: lambda: again.find(untrained, untrained_like(bench.masked_lm, bench.plan.seed)),
    }
    return searches | {f"{OTHER}: {task}": partial(again.find, variant) for task, variant in others.items()}


def learned_controls(
    bench: Bench, again: Rediscoverer, others: Mapping[str, Variant]
) -> tuple[dict[str, Mask], dict[str, str]]:
    """Masks that `control_searches` find, by the control's name, and why others could not be learned."""
    found, missing = dict[str, Mask](), dict[str, str]()
    for name, learn in bench.bar(list(control_searches(bench, again, others).items()), "Controls"):
        try:
            found[name] = learn()
        except WriteError:
            raise
        except UserError as error:
            missing[name] = str(error)
    return found, missing


def masks_of_equal_budget(bench: Bench, again: Rediscoverer) -> list[Mask]:
    """Masks that were learned again on the run's texts and model, with the budget of learned controls.

    They are those of other seeds, or without these those of bootstraps; none if stability has not been gathered.
    """
    plan = replace(bench.plan, halves=0)  # they learn from fewer texts
    for source in (SEED, BOOTSTRAP):
        found = [v for v in variants(plan, bench.data, None) if v.source == source and again.is_kept(v)]
        if found:
            return [again.find(variant) for variant in found]
    return []


def search_shares(again: Rediscoverer) -> tuple[float, float]:
    """The tokens that the search of a control may score, as shares of those of the run's search.

    Returns:
        Of a learned control, and of a polished random mask; 0 if the polish of the run had no limit.
    """
    of_run, settings, budget = again.mask.config.get("model", {}), again.settings(0), again.plan.polish_budget
    steps = of_run.get("steps") or default_steps(False, again.mask.graph.n_nodes)
    polish_of_run = of_run.get("polish_budget", 2.0) if of_run.get("polish", 1) else 0.0
    if polish_of_run is None:
        return 0.0, 0.0
    learning = settings["steps"] / steps / (1 + polish_of_run)
    return learning * (1 + budget * bool(of_run.get("polish", 1))), learning * budget


def unlearned_controls(bench: Bench, group: int, tokens: float) -> dict[str, Tensor]:
    """The masks of all controls of a group that need no learning, boolean of shape (draws, sizes, nodes) each.

    Args:
        bench: The bank.
        group: Index of the group.
        tokens: Tokens that the polish of random masks may score.
    """
    own, graph, seed = bench.mask.mask[group][:, None], bench.mask.graph, bench.plan.seed
    scorer = bench.scorer(group)
    random = matched_masks(N_RANDOM, own, graph, seed + 1)[:, :, 0]
    noise = torch.rand(own.shape, generator=torch.Generator().manual_seed(seed)).to(scorer.device)
    rounds = bench.mask.config.get("model", {}).get("polish") or 1
    polished, _ = polish(scorer, random[0][:, None].to(scorer.device), noise, rounds, budget=tokens)
    ranks = top(single_ablation(scorer, graph.n_nodes)[:1], bench.mask.sizes.to(scorer.device)[:, None])
    masks = {RANDOM: random, POLISHED: polished[None, :, 0], RANKS: ranks.view(1, *own[:, 0].shape)}
    others = {f"{OTHER}: {name}": bench.mask.mask[g][None] for g, name in enumerate(bench.mask.groups) if g != group}
    return {name: mask.cpu() for name, mask in (masks | others).items()}
