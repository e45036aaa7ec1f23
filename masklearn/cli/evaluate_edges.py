"""The evaluation of one edge bank: its model, its texts, its controls, and the metrics of every text."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from masklearn import evaluation
from masklearn.ablation import Ablation
from masklearn.cli.evaluate_bank import model_of_bank
from masklearn.cli.evaluate_flags import EvaluateFlags
from masklearn.cli.evaluation_texts import settings_learned_on
from masklearn.data import MaskData, SplitName, require_readable
from masklearn.edges import EdgeBank, require_memory, verified_edge_lm
from masklearn.errors import UserError
from masklearn.mask_file import ModelId
from masklearn.models import Layout
from masklearn.training.progress import phase_bars

SPLIT: SplitName = "test"
"""With scope input every split holds all texts."""


@dataclass(frozen=True)
class EvaluatedEdges:
    """One edge bank after its evaluation, with what a study needs."""

    path: Path
    mask: EdgeBank
    data: MaskData
    recorder: evaluation.PerTextRecorder
    seconds: float
    measurer: evaluation.EdgeMeasurer
    ablation: Ablation = Ablation()
    split: SplitName = SPLIT
    altered_column: None = None

    def top(self, example: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Top token ids and probabilities after one input by kind of subgraph, the full model's last."""
        return {kind: of_texts[example] for kind, of_texts in self.measurer.top.items()}


def evaluate_edge_bank(
    path: str, bank: EdgeBank, flags: EvaluateFlags, requested: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[EvaluatedEdges]]:
    """Evaluate an edge bank on its own texts.

    Args:
        path: The file.
        bank: Its content.
        flags: What to evaluate.
        requested: The `--data.*` flags given; an edge bank admits none.

    Returns:
        The content of `metrics.json`; and, for a study, the evaluated bank.

    Raises:
        UserError: If model, texts or bank are not valid or do not fit together.
    """
    start = time.monotonic()
    if requested or flags.altered_column or flags.ablations not in (None, ["zero"]):
        raise UserError(
            f"{path} holds edges of single texts, which are evaluated on these texts with closed edges at zero. Leave "
            "out --data.*, --altered_column and --ablation"
        )
    lm, model = model_of_bank(path, bank, flags)
    edge_lm = verified_edge_lm(Layout.of(lm))
    bank.require(ModelId(model.lm, model.revision, edge_lm.layout.fingerprint))
    settings: dict[str, Any] = {"positions": bank.positions} | settings_learned_on(path, bank)
    data = MaskData(
        **settings, lm=model.lm, revision=model.revision,
        scope="input", max_groups=len(bank.groups), trust_remote_code=flags.trusted["trust_remote_code"],
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    require_readable(data, edge_lm.layout)
    require_memory(edge_lm.layout.graph, data.longest_text)
    bank = bank.of(data.groups.names)
    print("\n".join([data.preview, *data.notices]))
    bar = phase_bars(sys.stderr, disable=None)
    measurer, rows = evaluation.evaluate_edges(edge_lm, bank, data, SPLIT, flags.keep_residual, bar)
    description = evaluation.describe_edges(bank, rows, measurer, bank.config.get("data", {}))
    description |= {"ablation": "zero", "text": f"{len(bank.groups)} texts of {data.source}, closed edges at zero"}
    if not flags.study:
        return [description], []
    recorder = evaluation.PerTextRecorder(len(bank.groups), data.token_counts, measurer.results())
    return [description], [EvaluatedEdges(Path(path), bank, data, recorder, time.monotonic() - start, measurer)]
