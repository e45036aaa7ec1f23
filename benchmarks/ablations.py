"""Zero, mean or learned ablation? KL against size, stability and the loss of sharing a mask, on a model of one's own.

For each ablation, masks of all texts are learned three times: on the training texts, and on two halves of them with
other seeds. The first are evaluated on held-out texts, beside masks that each of these texts has for itself.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from learned_bank import LearnedBank, Rows, mean_kl
from setting import Setting, quiet_trainer
from timing import machine, now, write_results
from torch import Tensor

import masklearn as ml
from masklearn.ablation import AblationName
from masklearn.data.positions import Positions
from masklearn.data.readers import read_file
from masklearn.evidence.stability import overlap
from masklearn.selection.baselines import subgraphs
from masklearn.selection.scorer import MaskScorer
from masklearn.tiny import tasks


def compare(
    setting: Setting,
    names: Sequence[AblationName],
    texts: Sequence[str],
    held_out: Sequence[str],
    model: dict[str, Any],
    data: dict[str, Any],
) -> Rows:
    """A row for each ablation: held-out KL, that of random masks and of masks of single texts, and agreement."""
    rows: Rows = []
    for name in names:
        start, of_ablation = now(), model | {"ablation": name}
        shared = learn(setting, texts, of_ablation, data)
        halves = [learn(setting, texts[i::2], of_ablation | {"seed": i + 1}, data) for i in range(2)]
        single = learn(setting, held_out, of_ablation | {"scope": "input", "steps": None}, data)
        of_shared, of_single = (
            MaskScorer(bank.learner.masked_lm, single.data.loader("all"), range(len(held_out)))
            for bank in (shared, single)
        )
        random = subgraphs("random-matched", shared.mask).to(of_shared.device)
        row = {"ablation": name, "s": shared.learner.sizes, "KL": mean_kl(of_shared, on_all(shared.masks, held_out))}
        row |= {"random-matched KL": mean_kl(of_shared, on_all(random, held_out))}
        row |= {"KL of single texts": mean_kl(of_single, single.masks)}
        row |= agreement(halves) | {"seconds": now() - start}
        rows.append(row)
        print(*(f"{key} {value}" for key, value in row.items()), sep="\n  ", flush=True)
    return rows


def on_all(masks: Tensor, texts: Sequence[str]) -> Tensor:
    """The masks (..., 1, nodes) of all texts, for each text: (..., texts, nodes)."""
    return masks.expand(*masks.shape[:-2], len(texts), -1)


def data_of(setting: Setting, texts: Sequence[str], **settings: Any) -> ml.MaskData:
    """The data module of some texts."""
    data = ml.MaskData(texts=list(texts), lm=setting.lm, batch_size=4, **settings)
    data.setup("fit")
    return data


def learn(setting: Setting, texts: Sequence[str], model: dict[str, Any], data: dict[str, Any]) -> LearnedBank:
    """A bank of these texts."""
    module, start = data_of(setting, texts, scope=model.get("scope", "dataset"), **data), now()
    learner = ml.MaskLearner(setting.lm, **model)
    quiet_trainer().fit(learner, datamodule=module)
    learning = now() - start
    return LearnedBank(module, learner, learner.discretize(), learning, now() - start)


def agreement(banks: Sequence[LearnedBank]) -> dict[str, Any]:
    """The Jaccard index of the masks of two banks at every size, and Spearman's correlation of their scores."""
    masks = torch.stack([bank.mask.mask[0] for bank in banks], 1)
    scores = torch.stack([bank.mask.scores[0, 0] for bank in banks])
    found = [overlap(of_size, scores, banks[0].learner.graph) for of_size in masks]
    return {"halves": [each.jaccard for each in found], "ranks": found[0].rank_correlation}


def texts_of(setting: Setting, n: int) -> list[str]:
    """The first texts of the setting's file, or of the embedded generator."""
    if setting.path is None:
        return [*islice(tasks.texts(), n)]
    return [str(row["text"]) for row in read_file(setting.path, ["text"], n)[1]]


def main(
    setting: Setting = Setting(),
    ablations: tuple[AblationName, ...] = ("zero", "mean", "learned"),
    texts: int = 32,
    held_out: int = 4,
    tokens: int = 24,
    positions: Positions = "all",
    sizes: tuple[float, ...] = (0.03, 0.1, 0.25, 0.5, 0.75),
    steps: int = 100,
    polish_budget: float = 1.0,
    out: Path | None = None,
) -> None:
    """Compare ablations on one model.

    Args:
        setting: Model, and file with a text in each line or row.
        ablations: What to compare.
        texts: Texts that share masks.
        held_out: Further texts, on which these masks are evaluated, and which have masks of their own.
        tokens: Tokens of a text, at most; if its last one is scored, the last ones.
        positions: Which of them are scored.
        sizes: Sizes of the masks.
        steps: Steps of shared masks; those of single texts take the default.
        polish_budget: Most tokens of polish, as a multiple of those of learning.
        out: JSON file to write.
    """
    print(machine())
    rows = texts_of(setting, texts + held_out)
    model = {"sizes": list(sizes), "steps": steps, "polish_budget": polish_budget}
    data = {"max_length": tokens, "positions": positions, "truncation": "left" if positions == "last" else "right"}
    found = compare(setting, ablations, rows[:texts], rows[texts:], model, data)
    write_results({"setting": str(setting), "rows": found}, out)


if __name__ == "__main__":
    torch.manual_seed(0)
    auto_cli(main)
