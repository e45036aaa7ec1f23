"""Controls that a mask must beat: what the same sizes, the same search, or other texts and weights give."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from masklearn.errors import UserError
from masklearn.evidence.bench import Bench
from masklearn.evidence.intervals import mean_interval
from masklearn.evidence.rediscovery import Rediscoverer, Variant, shuffled_variant
from masklearn.gates import top
from masklearn.mask_file import Mask
from masklearn.masking import MaskedLM
from masklearn.models import require_plain
from masklearn.selection.attribution import single_ablation
from masklearn.selection.baselines import matched_masks
from masklearn.selection.polish import polish

RANDOM, POLISHED, RANKS = "random-matched", "polished random", "single-ablation ranks"
SHUFFLED, UNTRAINED, OTHER = "shuffled texts", "untrained model", "another task"
N_RANDOM = 10
"""Random subgraphs whose mean KL is a control."""
BEATEN, NOT_BEATEN = "beaten", "not beaten"


def untrained_like(masked_lm: MaskedLM, seed: int) -> MaskedLM:
    """A model of the same shape with the random weights that its training would start from."""
    lm = masked_lm.lm
    require_plain(lm, "the control of an untrained model")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = type(lm)(lm.config)
    nn.Module.to(fresh, lm.device, lm.dtype)
    return MaskedLM(fresh.eval().requires_grad_(False))


def learned_controls(
    bench: Bench, again: Rediscoverer, others: Mapping[str, Variant]
) -> tuple[dict[str, Mask], dict[str, str]]:
    """Masks that the same search finds on shuffled texts, on an untrained model, and on other tasks.

    Args:
        bench: The bank.
        again: Learns masks.
        others: Rediscoveries on other tasks, by the task's name.

    Returns:
        The masks by the control's name, and why others could not be learned.
    """
    untrained = Variant("untrained", 1, lambda data: data, bench.plan.seed)
    find: dict[str, Callable[[], Mask]] = {
        SHUFFLED: lambda: again.find(shuffled_variant(bench.plan)),
        UNTRAINED: lambda: again.find(untrained, untrained_like(bench.masked_lm, bench.plan.seed)),
    }
    for task, variant in others.items():
        find[f"{OTHER}: {task}"] = lambda variant=variant: again.find(variant)
    found, missing = dict[str, Mask](), dict[str, str]()
    for name, learn in bench.bar(find.items(), "Controls", total=len(find)):
        try:
            found[name] = learn()
        except UserError as error:
            missing[name] = str(error)
    return found, missing


def control_masks(bench: Bench, group: int, learned: Mapping[str, Mask], budget: float) -> dict[str, Tensor]:
    """The masks of all controls of a group, boolean of shape (draws, sizes, nodes) each.

    Args:
        bench: The bank.
        group: Index of the group.
        learned: Masks that were learned as controls.
        budget: Tokens that the polish of random masks may score.
    """
    own, graph, seed = bench.mask.mask[group][:, None], bench.mask.graph, bench.plan.seed
    scorer = bench.scorer(group)
    random = matched_masks(N_RANDOM, own, graph, seed + 1)[:, :, 0]
    noise = torch.rand(own.shape, generator=torch.Generator().manual_seed(seed)).to(scorer.device)
    rounds = bench.mask.config.get("model", {}).get("polish") or 1
    polished, _ = polish(scorer, random[0][:, None].to(scorer.device), noise, rounds, budget=budget)
    ranks = top(single_ablation(scorer, graph.n_nodes)[:1], bench.mask.sizes.to(scorer.device)[:, None])
    masks = {RANDOM: random, POLISHED: polished[None, :, 0], RANKS: ranks.view(1, *own[:, 0].shape)}
    masks |= {name: mask.mask[min(group, len(mask.mask) - 1)][None] for name, mask in learned.items()}
    others = {f"{OTHER}: {name}": bench.mask.mask[g][None] for g, name in enumerate(bench.mask.groups) if g != group}
    return {name: mask.cpu() for name, mask in (masks | others).items()}


def control_table(bench: Bench, group: int, masks: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """The KL of every control on held-out texts beside that of the bank's masks; a row for each size and control.

    A control is beaten if its KL minus the mask's is positive, by a 95 % bootstrap interval over texts.
    """
    blocks = [bench.mask.mask[group], *(mask.flatten(0, 1) for mask in masks.values())]
    own, *results = bench.scores(group, blocks, "Controls on texts")
    rows = list[dict[str, Any]]()
    for i, s in enumerate(bench.mask.sizes.tolist()):
        for (name, mask), result in zip(masks.items(), results, strict=True):
            kl = result.kl.view(*mask.shape[:2], -1)[:, i].mean(0)  # of each text
            difference, low, high = mean_interval(kl - own.kl[i], bench.plan.seed)
            verdict = BEATEN if low > 0 else NOT_BEATEN
            same = bool((mask[:, i] == bench.mask.mask[group, i]).all())
            rows.append({
                "group": bench.mask.groups[group], "s": s, "control": name, "kl": float(kl.mean()),
                "run_kl": float(own.mean_kl[i]), "difference": difference, "low": low, "high": high,
                "verdict": verdict, "note": "the same nodes" if same else "",
            })  # fmt: skip
    return rows
