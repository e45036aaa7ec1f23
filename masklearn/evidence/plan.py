"""How much evidence is gathered: the flags of `python evaluate.py --evidence true`."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from masklearn.errors import UserError

EvidencePart = Literal["tests", "stability", "controls", "completeness", "transfer"]
PARTS: tuple[EvidencePart, ...] = get_args(EvidencePart)
"""The parts of the evidence."""


@dataclass(frozen=True)
class EvidencePlan:
    """How much evidence is gathered. With the defaults it takes a few minutes on the embedded model.

    Args:
        parts: Parts to gather now: tests, stability (by rediscovery), controls, completeness and transfer. Others are
            those that were gathered before, if these are still valid, and their claims are "not tested" otherwise.
            '[transfer]' crosses several runs in seconds.
        seeds: Times to learn the masks again with other seeds.
        bootstraps: Times to learn them again on training texts drawn with replacement.
        halves: Times to learn them again on each half of the training texts; by default once, if every group has
            enough texts to halve.
        paraphrase_column: Column with the same texts in other words, to learn them again on; none by default.
        steps: Steps of every rediscovery; by default a third of the run's. Where masks that are learned again are
            compared with each other, the shorter recipe shows in their KL, which is reported, more than in their
            overlap; where they are compared with the run's, it shows in both.
        polish_budget: Most tokens that polish may score in every rediscovery, as a multiple of what learning scores.
        draws: Random subgraphs that every mask is compared with. With 103 a test rejects a true null hypothesis in 4.8
            percent of all cases, as near below 5 as any number around 100 comes.
        texts: Held-out texts of each group that the tests use, at most. With 62 the equivalence test rejects a true
            null hypothesis in 4.9 percent of all cases.
        transfer: Other texts to evaluate the masks on: files; tasks of the embedded generator; column:NAME, the run's
            held-out texts by the values of a column; or text_column:NAME, its held-out rows in the text of another
            column. By default all tasks of the embedded generator for the embedded model, and none for others.
        checkpoints: Other checkpoints of the model to evaluate the masks on: folders, or revisions on the hub.
        pairs: Strongest nodes of a mask whose pairs are tested for redundancy.
        estimate: Print what the evidence will cost, and stop.
        seed: Seed of random draws, permutations and rediscoveries.
    """

    parts: list[EvidencePart] = field(default_factory=lambda: [*PARTS])
    seeds: int = 3
    bootstraps: int = 3
    halves: int | None = None
    paraphrase_column: str | None = None
    steps: int | None = None
    polish_budget: float = 0.3
    draws: int = 103
    texts: int = 62
    transfer: list[str] | None = None
    checkpoints: list[str] | None = None
    pairs: int = 20
    estimate: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"seeds": 0, "bootstraps": 0, "halves": 0, "draws": 1, "texts": 2, "pairs": 0, "seed": 0}
        for name, minimum in least.items():
            if getattr(self, name) is not None and getattr(self, name) < minimum:
                raise UserError(f"plan.{name} is {getattr(self, name)}; it must be at least {minimum}")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"plan.steps is {self.steps}; it must be at least 1")
        if self.polish_budget < 0:
            raise UserError(f"plan.polish_budget is {self.polish_budget}; it must be at least 0")
        if not self.parts:
            raise UserError(f"plan.parts is empty. Choose from {', '.join(PARTS)}, or leave it out for all")
        for name, part in {"transfer": "transfer", "checkpoints": "transfer", "paraphrase_column": "stability"}.items():
            if getattr(self, name) and part not in self.parts:
                raise UserError(f"plan.{name} is for the part {part}, which plan.parts lacks. Add it, or drop the flag")
