"""Transfer: what masks do on other texts, at other lengths, and in other checkpoints of their model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from masklearn.data import Batch, MaskData
from masklearn.evidence.bench import Bench
from masklearn.evidence.text_scores import score_texts
from masklearn.masking import MaskedLM
from masklearn.selection.baselines import matched_masks

N_RANDOM = 10
"""Random subgraphs with as many heads and MLPs, for comparison."""
TEXTS, LENGTH, CHECKPOINT = "texts", "length", "checkpoint"
"""What differs from the run."""


def transfer_rows(
    bench: Bench, group: int, what: str, name: str, batches: Sequence[Batch], masked_lm: MaskedLM | None = None
) -> list[dict[str, Any]]:
    """The KL of a group's masks on other texts, beside that on its own and that of random masks; a row for each size.

    Args:
        bench: The bank.
        group: Index of the group.
        what: What differs from the run.
        name: The name of these texts, or of this checkpoint.
        batches: The texts.
        masked_lm: Another checkpoint of the model; by default the run's.
    """
    masks = bench.mask.mask[group]
    random = matched_masks(N_RANDOM, masks[:, None], bench.mask.graph, bench.plan.seed)[:, :, 0].flatten(0, 1)
    lm, both = masked_lm or bench.masked_lm, torch.cat([masks, random])
    found = score_texts(lm, both, batches, bench.bar, f"Transfer: {name}")
    kl, random_kl = found.mean_kl[: len(masks)], found.mean_kl[len(masks) :].view(N_RANDOM, -1)
    return [
        {
            "group": bench.mask.groups[group], "s": s, "what": what, "name": name, "texts": found.kl.shape[1],
            "kl": float(kl[i]), "random_kl": float(random_kl[:, i].mean()),
            "recovered": 1 - float(kl[i] / random_kl[:, i].mean()),
        }
        for i, s in enumerate(bench.mask.sizes.tolist())
    ]  # fmt: skip


def length_texts(bench: Bench, group: int) -> dict[str, list[Batch]]:
    """The shorter and the longer half of a group's held-out texts; empty if all texts are equally long."""
    texts, batches = list[tuple[int, Batch]](), bench.texts(group)
    for batch in batches:
        lengths = batch.real.sum(1)
        eye = torch.eye(len(lengths), dtype=torch.bool)
        texts += [(int(length), batch.select(kept)) for length, kept in zip(lengths, eye, strict=True)]
    middle = sorted(length for length, _ in texts)[len(texts) // 2]
    halves = {
        f"shorter than {middle} tokens": [text for length, text in texts if length < middle],
        f"{middle} tokens and more": [text for length, text in texts if length >= middle],
    }
    return halves if all(halves.values()) else {}


def transfer_table(
    bench: Bench, others: Mapping[str, MaskData], checkpoints: Mapping[str, MaskedLM]
) -> list[dict[str, Any]]:
    """The transfer of every group's masks.

    Args:
        bench: The bank.
        others: Other texts by name.
        checkpoints: Other checkpoints of the model by name.
    """
    rows = list[dict[str, Any]]()
    for g, group in enumerate(bench.mask.groups):
        rows += transfer_rows(bench, g, TEXTS, f"{group} (its own)", bench.texts(g))
        for other, other_group in enumerate(bench.mask.groups):
            if other != g:
                rows += transfer_rows(bench, g, TEXTS, other_group, bench.texts(other))
        for name, data in others.items():
            texts = list(data.loader("all", max_texts=bench.plan.texts, by_length=True))
            rows += transfer_rows(bench, g, TEXTS, name, texts)
        for name, texts in length_texts(bench, g).items():
            rows += transfer_rows(bench, g, LENGTH, name, texts)
        for name, masked_lm in checkpoints.items():
            rows += transfer_rows(bench, g, CHECKPOINT, name, bench.texts(g), masked_lm)
    return rows
