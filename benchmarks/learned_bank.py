"""Learn a bank at default settings, choose subgraphs by baselines, and compare their KL."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from lightning import Callback
from setting import Setting, quiet_trainer
from timing import now
from torch import Tensor

import masklearn as ml
from masklearn.data import MaskData
from masklearn.data.datamodule import SplitName
from masklearn.selection.baselines import Baseline, Score, subgraphs
from masklearn.selection.scorer import MaskScorer

CHEAP_BASELINES: tuple[Baseline, ...] = ("random", "random-matched", *get_args(Score))
"""Baselines that take less time than greedy elimination."""
Rows = list[dict[str, Any]]
"""Rows of a table, by column."""


@dataclass
class LearnedBank:
    """A learned bank, its data, and the seconds that it took.

    Args:
        data: The texts.
        learner: The learner after its last step.
        mask: The bank.
        learning: Seconds until the last step.
        seconds: Seconds until the masks were cut and polished.
    """

    data: MaskData
    learner: ml.MaskLearner
    mask: ml.Mask
    learning: float
    seconds: float

    @property
    def masks(self) -> Tensor:
        """The learned masks: boolean, shape (sizes, groups, nodes)."""
        return self.mask.mask.transpose(0, 1).to(self.learner.masked_lm.device)

    def scorer(self, split: SplitName) -> MaskScorer:
        """Make a scorer for the groups of the bank on one split."""
        groups = range(len(self.mask.groups))
        return MaskScorer(self.learner.masked_lm, self.data.loader(split, groups), groups)

    def baseline(self, name: Baseline, scorer: MaskScorer) -> tuple[Tensor, float]:
        """Return the subgraphs of a baseline, shape (draws, sizes, groups, nodes), and the seconds it takes."""
        start = now()
        return subgraphs(name, self.mask, scorer).to(scorer.device), now() - start


def learn_bank(setting: Setting, model: dict[str, Any], callbacks: Sequence[Callback] = (), **data: Any) -> LearnedBank:
    """Learn a bank at default settings, except for those given: `model` of the learner, `data` of the data module."""
    trainer = quiet_trainer(callbacks=list(callbacks))
    datamodule = setting.data(scope=model.get("scope", "dataset"), **data)
    datamodule.setup("fit")
    learner = ml.MaskLearner(setting.lm, **model)
    learner.load()
    start = now()
    trainer.fit(learner, datamodule=datamodule)
    learning = now() - start
    return LearnedBank(datamodule, learner, learner.discretize(), learning, now() - start)


def kl_of(scorer: MaskScorer, masks: Tensor) -> Tensor:
    """Return the KL of masks (draws, sizes, groups, nodes) or (sizes, groups, nodes): (draws, sizes, groups)."""
    return torch.stack([scorer(draw) for draw in (masks if masks.ndim == 4 else masks[None])])


def kl_over_cheap_baselines(bank: LearnedBank, scorer: MaskScorer) -> list[float]:
    """Return the KL of a bank over the lowest KL of the cheap baselines, at each size."""
    cheap_kl = torch.tensor([mean_kl(scorer, bank.baseline(name, scorer)[0]) for name in CHEAP_BASELINES])
    return (torch.tensor(mean_kl(scorer, bank.masks)) / cheap_kl.min(0).values).tolist()


def mean_kl(scorer: MaskScorer, masks: Tensor) -> list[float]:
    """Return the mean KL over groups, and over draws if there are any, at each size."""
    return kl_of(scorer, masks).mean((0, 2)).tolist()
