"""Transfer: what masks do on other texts, at other lengths, and in other checkpoints of their model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import torch

from masklearn.data import Batch
from masklearn.data.digests import batches_digest, digest
from masklearn.evidence.bench import Bench
from masklearn.evidence.kept_parts import KeptPart
from masklearn.evidence.text_scores import score_texts
from masklearn.masking import MaskedLM
from masklearn.selection.baselines import matched_masks

N_RANDOM = 10
"""Random subgraphs with as many heads and MLPs, for comparison."""
OWN, GROUP, TEXTS, RUN, LENGTH, CHECKPOINT = "own texts", "group", "texts", "run", "length", "checkpoint"
"""What differs from the run: nothing, the group of the texts, the texts, the texts and their run, the length, or the
model's weights."""
Table = list[dict[str, Any]]
"""Rows of a table, by column."""


@dataclass(frozen=True)
class OtherTexts:
    """Texts that the masks were not learned on."""

    what: str
    """`TEXTS` or `RUN`."""
    name: str
    batches: Sequence[Batch]

    @cached_property
    def digest(self) -> str:
        """A hash of them and of their name."""
        return digest(f"{self.what} {self.name} {batches_digest(self.batches)}".encode())


@dataclass(frozen=True)
class Checkpoint:
    """Another checkpoint of the model; its weights are in memory only while it is used."""

    name: str
    fingerprint: str
    load: Callable[[], MaskedLM]

    @property
    def digest(self) -> str:
        """A hash of its weights and of its name."""
        return digest(f"{self.name} {self.fingerprint}".encode())


def transfer_rows(
    bench: Bench, group: int, what: str, name: str, batches: Sequence[Batch], masked_lm: MaskedLM | None = None
) -> Table:
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


def transfer_table(bench: Bench, others: Sequence[OtherTexts], checkpoints: Sequence[Checkpoint]) -> Table:
    """The transfer of every group's masks.

    Args:
        bench: The bank.
        others: Other texts.
        checkpoints: Other checkpoints of the model.
    """
    return [row for part in transfer_parts(bench, others, checkpoints) for row in part()]


def transfer_parts(bench: Bench, others: Sequence[OtherTexts], checkpoints: Sequence[Checkpoint]) -> list[KeptPart]:
    """The parts of the `transfer_table`, each some of its rows."""
    found = list[KeptPart]()
    for g in range(len(bench.mask.groups)):
        found.append(partial(bench.kept.part, f"transfer-{g}", partial(_within, bench, g)))
        for other in others:
            compute = partial(transfer_rows, bench, g, other.what, other.name, other.batches)
            found.append(partial(bench.kept.part, f"transfer-{g}-{other.digest}", compute))
    return [*found, *(partial(_to_checkpoint, bench, checkpoint) for checkpoint in checkpoints)]


def _to_checkpoint(bench: Bench, checkpoint: Checkpoint) -> Table:
    """The transfer of every group's masks to a checkpoint."""
    load, rows = cache(checkpoint.load), Table()  # once for all groups, and not at all if their parts are kept
    for g in range(len(bench.mask.groups)):
        compute = partial(_in_checkpoint, bench, g, checkpoint.name, load)
        rows += bench.kept.part(f"transfer-{g}-{checkpoint.digest}", compute)
    return rows


def _in_checkpoint(bench: Bench, group: int, name: str, load: Callable[[], MaskedLM]) -> Table:
    return transfer_rows(bench, group, CHECKPOINT, name, bench.texts(group), load())


def _within(bench: Bench, group: int) -> Table:
    """A group's masks on the run's own texts: the group's, those of other groups, and the group's by length."""
    rows = transfer_rows(bench, group, OWN, bench.mask.groups[group], bench.texts(group))
    for other, name in enumerate(bench.mask.groups):
        if other != group:
            rows += transfer_rows(bench, group, GROUP, name, bench.texts(other))
    for name, texts in length_texts(bench, group).items():
        rows += transfer_rows(bench, group, LENGTH, name, texts)
    return rows


def transfer_matrix(tables: Mapping[str, Table]) -> Table:
    """The KL of every run's masks on the texts of every run.

    Args:
        tables: The transfer tables of some runs that were crossed, by the run's name.

    Returns:
        A row for each mask and texts. `own_kl` is the KL of the mask of that size that was learned on these texts, None
        if there is none, and `over_own` the KL over it.
    """
    rows = [row for name, table in tables.items() for row in _matrix_rows(name, table)]
    own = {(row["texts"], row["s"]): row["kl"] for row in rows if row["mask"] == row["texts"]}
    for row in rows:
        kl = own.get((row["texts"], row["s"]))
        row |= {"own_kl": kl, "over_own": row["kl"] / kl if kl else None}
    return rows


def _matrix_rows(run: str, table: Table) -> Iterator[dict[str, Any]]:
    groups = list(dict.fromkeys(row["group"] for row in table))
    for row in table:
        mask = run_texts(run, row["group"], groups)
        texts = {OWN: mask, GROUP: run_texts(run, row["name"], groups), RUN: row["name"]}.get(row["what"])
        if texts is not None:
            kl = {name: row[name] for name in ("kl", "random_kl", "recovered")}
            yield {"mask": mask, "s": row["s"], "texts": texts, "n_texts": row["texts"], **kl}


def run_texts(run: str, group: str, groups: Sequence[str]) -> str:
    """The name of a run's texts of one group, in the matrix."""
    return run if len(groups) == 1 else f"{run}: {group}"
