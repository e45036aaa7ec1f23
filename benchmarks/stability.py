"""Do masks that are learned again on bootstraps of the texts agree more than those of rivals?

Every method finds its masks on the same bootstraps. MAttr runs as many steps on as many texts as learning does, without
polish; integrated gradients use all texts of a bootstrap.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jsonargparse import auto_cli
from rivals import MiniBatches, mattr
from setting import Setting, quiet_trainer
from timing import machine, now, read_results, write_results
from torch import Tensor

import masklearn as ml
from masklearn.data import MaskData
from masklearn.evidence.resampled_texts import bootstrapped
from masklearn.evidence.stability import overlap
from masklearn.gates import top
from masklearn.masking import MaskedLM
from masklearn.selection.attribution import integrated_gradients
from masklearn.selection.scorer import MaskScorer

RivalName = Literal["integrated gradients", "MAttr"]
MAX_CURVE_SIZES = 60
"""Sizes at which the KL of a rival is measured, at most, to find the one at which it is equal."""


def minibatches(masked_lm: MaskedLM, data: MaskData, batch_size: int) -> MiniBatches:
    """The training texts in random batches."""
    order = torch.randperm(len(data.parts["train"]), generator=torch.Generator().manual_seed(0)).tolist()
    split = data.parts["train"]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    collated = (data.collate([split[i] for i in indices]) for indices in batches)
    return MiniBatches([MaskScorer(masked_lm, [batch]) for batch in collated])


class Comparison:
    """The masks of every method on every bootstrap, and their KL on the same held-out texts."""

    def __init__(
        self, masked_lm: MaskedLM, data: MaskData, sizes: list[int], bootstraps: int, settings: dict[str, Any]
    ) -> None:
        self.masked_lm, self.sizes, self.settings = masked_lm, sizes, settings
        self.graph = masked_lm.graph
        self.texts = [bootstrapped(data, seed) for seed in range(bootstraps)]
        self.held_out = MaskScorer(masked_lm, data.loader("test"))
        self.rows: list[dict[str, Any]] = []

    def learned(self) -> list[float]:
        """Learn the masks of this package, and measure them, polished and not; return the KL of the polished ones."""
        start, masks, scores = now(), [], []
        for data in self.texts:
            learner = ml.MaskLearner(self.masked_lm.lm, sizes=self.sizes, **self.settings)
            quiet_trainer().fit(learner, datamodule=data)
            bank = learner.discretize()
            masks.append(bank.mask[0])
            scores.append(bank.scores[0, 0])
            print(f"learned on bootstrap {len(masks)} of {len(self.texts)}", flush=True)
        all_masks, all_scores = torch.stack(masks), torch.stack(scores)
        self.add("learned", self.sizes, all_masks, all_scores, now() - start)
        self.add("learned, not polished", self.sizes, self.cut(all_scores, self.sizes), all_scores)
        return self.kl(all_masks)

    def earlier(self, path: Path) -> list[float]:
        """The KL of the masks that an earlier run has learned at the same sizes, whose rows are taken over.

        Raises:
            ValueError: If it had other sizes.
        """
        self.rows += [row for row in read_results([path])[0]["rows"] if row["method"].startswith("learned")]
        if (found := sorted({row["s"] for row in self.rows})) != self.sizes:
            raise ValueError(f"{path} has masks of {found} nodes, and {self.sizes} are asked for")
        kl = {row["s"]: row["kl"] for row in self.rows if row["method"] == "learned"}
        return [kl[s] for s in self.sizes]

    def mattr(self, data: MaskData) -> Tensor:
        """Scores of MAttr on one bootstrap, shape (nodes,)."""
        batches = minibatches(self.masked_lm, data, data.batch_size)
        return mattr(batches, self.graph.n_nodes, self.settings["steps"], "uniform")[0]

    def integrated_gradients(self, data: MaskData) -> Tensor:
        """Scores of integrated gradients on one bootstrap, shape (nodes,)."""
        return integrated_gradients(MaskScorer(self.masked_lm, data.loader("train")))[0].cpu()

    def kl(self, masks: Tensor) -> list[float]:
        """Mean over bootstraps of the KL of masks (bootstraps, sizes, nodes) on held-out texts, for every size."""
        on_device = masks.to(self.held_out.device).flatten(0, 1)[:, None]
        return self.held_out(on_device)[:, 0].view(masks.shape[:2]).mean(0).tolist()

    def add(self, method: str, sizes: list[int], masks: Tensor, scores: Tensor, seconds: float | None = None) -> None:
        """Measure the masks (bootstraps, sizes, nodes) of a method, and print a row for each size."""
        for i, (s, kl) in enumerate(zip(sizes, self.kl(masks), strict=True)):
            found = overlap(masks[:, i], scores, self.graph)
            row = {"method": method, "s": s, "kl": kl, "jaccard": found.jaccard, "chance": found.chance}
            above = (found.jaccard - found.chance) / (1 - found.chance) if found.chance < 1 else None
            row |= {"above_chance": above, "lowest": found.low}
            row |= {"rank_correlation": found.rank_correlation, "seconds": seconds}
            self.rows.append(row)
            print(table_line([row[name] for name in COLUMNS]), flush=True)

    def add_rival(self, method: str, find: Callable[[MaskData], Tensor], learned_kl: list[float]) -> None:
        """Measure a rival that ranks the nodes: at the sizes of the learned masks, and at their KL."""
        start = now()
        scores = torch.stack([find(data) for data in self.texts]).float()
        seconds, n_nodes = now() - start, self.graph.n_nodes
        self.add(method, self.sizes, self.cut(scores, self.sizes), scores, seconds)
        steps = torch.linspace(1, n_nodes - 1, min(n_nodes - 1, MAX_CURVE_SIZES))
        curve = sorted({*steps.round().int().tolist(), *self.sizes})
        curve_kl = self.kl(self.cut(scores, curve))
        equal = [next((s for s, of_s in zip(curve, curve_kl, strict=True) if of_s <= kl), n_nodes) for kl in learned_kl]
        self.add(f"{method}, equal KL", equal, self.cut(scores, equal), scores)

    @staticmethod
    def cut(scores: Tensor, sizes: list[int]) -> Tensor:
        """The masks of the highest scores: (bootstraps, nodes) to (bootstraps, sizes, nodes)."""
        return top(scores[:, None].expand(-1, len(sizes), -1), torch.tensor(sizes))


def main(
    lm: str = Setting().lm,
    path: str | None = Setting().path,
    texts: int = 160,
    bootstraps: int = 5,
    sizes: list[int | float] = [0.1, 0.2, 0.35, 0.5, 0.75],  # noqa: B006
    steps: int = 300,
    polish_budget: float = 2.0,
    ablation: Literal["zero", "mean"] = "zero",
    batch_size: int = 16,
    max_length: int = 64,
    rivals: tuple[RivalName, ...] = get_args(RivalName),
    learned: Path | None = None,
    out: Path | None = None,
) -> None:
    """Print, for every method and size, the Jaccard index of masks over bootstraps of the texts, and their KL.

    Args:
        lm: Model folder or hub id.
        path: File with texts; none for the embedded generator.
        texts: Texts; a tenth is held out, and the KL is on these.
        bootstraps: Bootstraps of the training texts.
        sizes: Nodes to keep: counts, or fractions below 1.
        steps: Steps of learning, and of MAttr.
        polish_budget: Most tokens of polish, as a multiple of those of learning.
        ablation: Of closed nodes. Learning takes the means of a bootstrap, all else those of all training texts.
        batch_size: Texts of a step.
        max_length: Longest text, in tokens.
        rivals: Which rivals to meet.
        learned: JSON file of an earlier run with the same settings, whose learned masks are not learned again.
        out: JSON file to write after every method.
    """
    print(machine())
    data = Setting(lm, path).data(limit=texts, max_length=max_length, positions="all", batch_size=batch_size)
    data.setup("fit")
    masked_lm = MaskedLM(ml.load_lm(lm, device="cuda" if torch.cuda.is_available() else None))
    if ablation == "mean":
        masked_lm.ablation = masked_lm.mean_ablation((batch.input_ids, batch.real) for batch in data.loader("train"))
    n_nodes = masked_lm.graph.n_nodes
    counts = sorted({max(1, round(s * n_nodes)) if s < 1 else int(s) for s in sizes})
    settings = {"steps": steps, "polish_budget": polish_budget, "ablation": ablation}
    compared = Comparison(masked_lm, data, counts, bootstraps, settings)
    print(f"{n_nodes} nodes, {len(data.parts['train'])} training texts, {len(data.parts['test'])} held out")
    print(table_line(COLUMNS), flush=True)
    learned_kl = compared.earlier(learned) if learned else compared.learned()
    finders = {"integrated gradients": compared.integrated_gradients, "MAttr": compared.mattr}
    for method in rivals:
        write_results({"lm": lm, "rows": compared.rows}, out)
        compared.add_rival(method, finders[method], learned_kl)
    write_results({"lm": lm, "rows": compared.rows}, out)


def table_line(cells: Sequence[Any]) -> str:
    """One line of the table."""
    texts = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells]
    return "  ".join([f"{texts[0]:>32}", *(f"{text:>16}" for text in texts[1:])])


COLUMNS = ("method", "s", "kl", "jaccard", "chance", "above_chance", "lowest", "rank_correlation")
"""What is printed of every row."""

if __name__ == "__main__":
    torch.manual_seed(0)
    auto_cli(main, as_positional=False)
