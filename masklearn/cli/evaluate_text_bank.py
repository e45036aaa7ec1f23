"""The evaluation of one bank of single texts: its model, its texts, its controls, and the metrics of every text."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from masklearn import evaluation, ranks
from masklearn.ablation import Ablation
from masklearn.cli.evaluate_bank import model_of_bank
from masklearn.cli.evaluate_flags import EvaluateFlags
from masklearn.cli.evaluation_texts import require_same_source, settings_learned_on
from masklearn.cli.kept_evaluations import KeptEvaluations
from masklearn.cli.text_methods import SPLIT, TEXT_METHODS
from masklearn.data import MaskData, SplitName, require_readable
from masklearn.errors import UserError
from masklearn.mask_file import ModelId
from masklearn.text_bank import TextBank
from masklearn.training.progress import phase_bars


@dataclass(frozen=True)
class EvaluatedTexts:
    """One bank of single texts after its evaluation, with what a study needs."""

    path: Path
    mask: TextBank
    data: MaskData
    measured: evaluation.MeasuredBank
    seconds: float
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """How a bank of edges was evaluated: `edges` and `keep_residual`, as the flags."""
    ablation: Ablation = Ablation()
    split: SplitName = SPLIT
    altered_column: None = None

    @property
    def results(self) -> Mapping[str, evaluation.PerTextResults]:
        """The results of each text by kind of subgraphs."""
        return self.measured.results

    def top(self, example: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Top token ids and probabilities after one input by kind of subgraph, the full model's last."""
        return {kind: (ids[example], p[example]) for kind, (ids, p) in self.measured.top.items()}


def evaluate_text_bank(
    path: str, bank: TextBank, flags: EvaluateFlags, requested: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[EvaluatedTexts]]:
    """Evaluate a bank of edges or positions on its own texts.

    Args:
        path: The file.
        bank: Its content.
        flags: What to evaluate.
        requested: The `--data.*` flags given; a bank of single texts admits another place of its file.

    Returns:
        The content of `metrics.json`; and, for a study, the evaluated bank. One of each for every mode
        of `flags.edges`.

    Raises:
        UserError: If model, texts or bank are not valid or do not fit together.
    """
    lm, model = model_of_bank(path, bank, flags)
    settings: dict[str, Any] = {"positions": bank.positions} | settings_learned_on(path, bank) | requested
    data = MaskData(
        **settings, lm=model.lm, revision=model.revision,
        scope="input", max_groups=len(bank.groups), trust_remote_code=flags.trusted["trust_remote_code"],
    )  # fmt: skip
    ranks.first_alone(data.prepare_data)
    data.setup()
    method = TEXT_METHODS[bank.unit].load(lm, data.longest_text)
    bank.require(ModelId(model.lm, model.revision, method.layout.fingerprint))
    require_readable(data, method.layout)
    bank = bank.of(data.groups.names)
    bank.require_texts([evaluation.scored_text(data, SPLIT, i).input_ids for i in range(len(bank.groups))])
    print("\n".join([data.preview, *data.notices]))
    bar = phase_bars(sys.stderr, disable=None)
    kept = KeptEvaluations.beside(path, method.layout, flags.study)
    descriptions, evaluated = list[dict[str, Any]](), list[EvaluatedTexts]()
    for mode in flags.edges if bank.unit == "edges" else flags.edges[:1]:
        text, conditions = f"{len(bank.groups)} texts of {data.source}, what is closed at zero", dict[str, Any]()
        if bank.unit == "edges":
            text += f", patterns and norms {mode}" + ", controls with all residual edges" * flags.keep_residual
            conditions = {"edges": mode, "keep_residual": flags.keep_residual}
        measure = partial(method.measure, bank, data, bar, flags.keep_residual, mode)
        measured, seconds = kept.measured(data, SPLIT, conditions, measure)
        description = evaluation.describe_texts(bank, measured, bank.config.get("data", {}))
        descriptions.append(description | conditions | {"ablation": "zero", "text": text})
        if flags.study:
            evaluated.append(EvaluatedTexts(Path(path), bank, data, measured, seconds, conditions))
    return descriptions, evaluated


def require_own_texts(path: str, bank: TextBank, flags: EvaluateFlags, requested: dict[str, Any]) -> None:
    """Refuse flags that ask for other texts, or for something else than zero where edges or positions are closed.

    Raises:
        UserError: Which flags to leave out.
    """
    require_same_source(path, requested, bool(requested))
    if flags.altered_column or flags.ablations not in (None, ["zero"]):
        raise UserError(
            f"{path} holds {bank.unit} of single texts, which are evaluated on these texts, with what is closed at "
            "zero. Leave out --altered_column and --ablation"
        )
    if flags.device_map:
        raise UserError(f"{path} holds {bank.unit} of single texts, for which one device needs the whole model. Leave "
                        "out --device_map")  # fmt: skip
