"""The evaluation of one mask file: its model, its texts, its baselines, and its metrics under every ablation."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save
from transformers import PreTrainedModel

from masklearn import evaluation, ranks
from masklearn.ablation import STORED_ABLATIONS, Ablation, AblationName
from masklearn.cli.evaluate_flags import EvaluateFlags
from masklearn.cli.evaluation_texts import (
    EvaluationTexts,
    LoadTexts,
    altered_texts,
    compared_with_learned,
    evaluation_texts,
    load_texts,
)
from masklearn.cli.export_flags import ExportFlags
from masklearn.cli.kept_evaluations import KeptEvaluations
from masklearn.data import MaskData, SplitName, leave_out_if_changed, leave_out_learned
from masklearn.data.digests import digest, texts_digest
from masklearn.data.source_settings import names_source
from masklearn.errors import UserError
from masklearn.mask_file import Mask, ModelId
from masklearn.masking import MaskedLM
from masklearn.models import DTypeName, best_device, describe_placement, input_device, load_lm
from masklearn.progress import ProgressBar
from masklearn.selection.baselines import UNGUIDED, bank_scorer
from masklearn.selection.scorer import MaskScorer
from masklearn.text_bank import TextBank
from masklearn.training.learned_ablation import fit_ablation
from masklearn.training.progress import phase_bars


@dataclass(frozen=True)
class EvaluatedBank:
    """One bank after its evaluation under one ablation, with what a study needs."""

    path: Path
    mask: Mask
    """The masks of the groups that have texts."""
    data: MaskData
    split: SplitName
    masked_lm: MaskedLM
    ablation: Ablation
    """The one it was evaluated under."""
    results: Mapping[str, evaluation.PerTextResults]
    """The results of each text by kind of subgraphs."""
    seconds: float
    altered_column: str | None = None
    """Column of the texts, if these are others than those of the masks."""


def evaluate_bank(
    path: str, bank: Mask, flags: EvaluateFlags, requested: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[EvaluatedBank]]:
    """Evaluate a mask file under every ablation asked for.

    Args:
        path: The mask file.
        bank: Its content.
        flags: What to evaluate.
        requested: The `--data.*` flags given.

    Returns:
        The content of `metrics.json` under each ablation; and, for a study, the evaluated banks.

    Raises:
        UserError: If the model, the texts or the mask file are not valid or do not fit together.
    """
    texts = evaluation_texts(path, bank, requested, flags.part)
    masked_lm, model = load_model(path, bank, flags, flags.map_of(bank))
    load = partial(
        load_texts, bank=bank, masked_lm=masked_lm, model=model, scope=texts.scope,
        trust_remote_code=flags.trusted["trust_remote_code"],
    )  # fmt: skip
    data = load(texts.settings)
    mask = bank.of(data.groups.names)
    _introduce(data, texts, bank, masked_lm)
    ablations = flags.ablations or [mask.ablation.name]
    learned_on = _training_data(path, mask, texts, data, load, flags, ablations)
    results, evaluated, bar = [], [], phase_bars(sys.stderr, disable=None)
    kept = KeptEvaluations.beside(path, masked_lm.layout, flags.study)
    all_texts: dict[str | None, MaskData] = {None: data, **altered_texts(path, bank, texts, load, flags.altered_column)}
    for column, data in all_texts.items():
        mask, settings = bank.of(data.groups.names), texts.settings | ({"text_column": column} if column else {})
        scorer = _baseline_scorer(masked_lm, mask, learned_on, flags) if _needs_scorer(flags) else None
        for name in ablations:
            masked_lm.ablation = _ablation(name, bank, masked_lm, learned_on, bar)
            measure = partial(_measure, masked_lm, mask, data, texts.split, flags, scorer, bar)
            conditions = _conditions(masked_lm.ablation, learned_on if scorer else None, flags)
            measured, seconds = kept.measured(data, texts.split, conditions, measure)
            description = evaluation.describe(mask, measured.rows, measured.by_group, settings)
            description |= {"ablation": name, "text": _describe_texts(data, texts.split, name, column)}
            results.append(description | ({"column": column} if column else {}))
            if flags.study:
                of_texts = data, texts.split, masked_lm, masked_lm.ablation, measured.results, seconds, column
                evaluated.append(EvaluatedBank(Path(path), mask, *of_texts))
    return results, evaluated


def _measure(
    masked_lm: MaskedLM,
    mask: Mask,
    data: MaskData,
    split: SplitName,
    flags: EvaluateFlags,
    scorer: MaskScorer | None,
    bar: ProgressBar,
) -> evaluation.MeasuredBank:
    """The metrics of a bank, and for a study those of each text."""
    recorder = evaluation.PerTextRecorder(len(data.parts[split]), data.token_counts) if flags.study else None
    batches = data.loader(split, by_length=True)
    rows, by_group = evaluation.evaluate(
        masked_lm, mask, batches, flags.baselines, scorer, recorder, bar, on_ranks=True
    )
    return evaluation.MeasuredBank(rows, by_group.cpu(), recorder.results if recorder else {})


def _conditions(ablation: Ablation, chosen_on: MaskData | None, flags: EvaluateFlags) -> dict[str, Any]:
    """What the metrics depend on besides bank, model and texts, in values of JSON.

    Args:
        ablation: The ablation.
        chosen_on: The texts that baselines choose by, if any do.
        flags: The flags.
    """
    values = digest(save(ablation.to(torch.device("cpu")).to_tensors()))
    found: dict[str, Any] = {"ablation": ablation.name, "values": values, "baselines": list(flags.baselines)}
    if chosen_on:
        found |= {"chosen on": texts_digest(chosen_on), "baseline_texts": flags.baseline_texts}
    return found


def _introduce(data: MaskData, texts: EvaluationTexts, bank: Mask, masked_lm: MaskedLM) -> None:
    """Print what is evaluated on, after texts that the masks were learned on have been left out."""
    warning = evaluation.implausible_answers(masked_lm, data)
    notices = [data.preview, *data.notices]
    known = bank.learned_texts.tolist()
    if texts.scope == "input":
        notices += compared_with_learned(texts, data, known)
    elif texts.are_others:
        notices += leave_out_learned(data, texts.split, known, texts.all_requested, "--part all")
    elif texts.split == "test":
        notices += leave_out_if_changed(data, known, "--part all")
    for line in filter(None, (*notices, warning)):
        print(line)


def load_model(
    path: str,
    bank: Mask,
    flags: EvaluateFlags | ExportFlags,
    device_map: str | None = None,
    load: Callable[..., PreTrainedModel] = load_lm,
) -> tuple[MaskedLM, ModelId]:
    """Load the model of a mask file, or the one given in its place if that is the same; over devices if there is a map.

    Raises:
        UserError: If it is another model or another precision, or if the masks do not fit it.
    """
    lm, model = model_of_bank(path, bank, flags, device_map, load)
    bank.check()
    masked_lm = MaskedLM(lm, bank.ablation.to(input_device(lm)))
    model = replace(model, fingerprint=masked_lm.layout.fingerprint)
    bank.require(model)
    return masked_lm, model


def model_of_bank(
    path: str,
    bank: Mask | TextBank,
    flags: EvaluateFlags | ExportFlags,
    device_map: str | None = None,
    load: Callable[..., PreTrainedModel] = load_lm,
) -> tuple[PreTrainedModel, ModelId]:
    """Load the model that a bank names, or the one given in its place, with the precision of the bank's run.

    `load` takes the arguments of `load_lm`, and may return a model that is loaded already.

    Raises:
        UserError: If the model cannot be loaded, or another precision is asked for.
    """
    name, revision = flags.lm or bank.model.lm, None if flags.lm else bank.model.revision
    learned_in = bank.config.get("model", {}).get("dtype", flags.dtype or "float32")
    dtype = flags.dtype or learned_in
    if dtype not in get_args(DTypeName):
        raise UserError(f"{path} names a precision that does not exist, {dtype!r}. Give one with --dtype float32")
    if dtype != learned_in and learned_in in get_args(DTypeName):
        raise UserError(f"{path} was learned in {learned_in}; the weights differ in {dtype}. Leave --dtype out")
    device = None if device_map else best_device()
    quantization = bank.config.get("model", {}).get("quantization")
    lm = load(name, revision, dtype, device, **flags.trusted, device_map=device_map, quantization=quantization)
    if placement := describe_placement(lm):
        print(placement, file=sys.stderr, flush=True)
    return lm, ModelId(name, revision, bank.model.fingerprint)


def _needs_scorer(flags: EvaluateFlags) -> bool:
    return not set(flags.baselines) <= set(UNGUIDED)


def _training_data(
    path: str,
    mask: Mask,
    texts: EvaluationTexts,
    data: MaskData,
    load: LoadTexts,
    flags: EvaluateFlags,
    ablations: Sequence[AblationName],
) -> MaskData:
    """The data that the masks were learned on, if baselines or ablations need it; otherwise the data at hand.

    Raises:
        UserError: If it is needed and cannot be loaded, or if the mask file does not name it.
    """
    missing = " and ".join(sorted(set(ablations) & STORED_ABLATIONS - {mask.ablation.name}))
    if missing and not texts.learned_on:
        raise UserError(
            f"{path} has no values for {missing} ablation, and does not say what it was learned on, so they cannot be "
            "computed. Evaluate it under an ablation that needs none: zero or resample"
        )
    if texts.are_split_alike or not (missing or _needs_scorer(flags)):
        return data
    what = f"values for {missing} ablation" if missing else "baselines"
    if not names_source(texts.learned_on):
        names = "" if missing else f" ({', '.join(sorted(set(flags.baselines) - set(UNGUIDED)))})"
        raise UserError(
            f"{path} does not hold the texts that it was learned on, by which {what}{names} are computed. Leave them "
            "out, or use masklearn.evaluate on the bank that masklearn.learn returned"
        )
    try:
        return load(texts.learned_on)
    except UserError as error:
        raise UserError(f"{path}: {what} are computed on the texts that it was learned on: {error}") from error


def _baseline_scorer(masked_lm: MaskedLM, mask: Mask, learned_on: MaskData, flags: EvaluateFlags) -> MaskScorer | None:
    """The scorer by which baselines choose their subgraphs, on training texts of the mask's run; see `bank_scorer`."""
    names = ", ".join(name for name in flags.baselines if name not in UNGUIDED)
    print(f"Computing the baselines' subgraphs on up to {flags.baseline_texts} training texts of each group: {names}")
    return bank_scorer(masked_lm, mask, learned_on, flags.baseline_texts)


def _ablation(name: AblationName, bank: Mask, masked_lm: MaskedLM, learned_on: MaskData, bar: ProgressBar) -> Ablation:
    """An ablation with its values: the mask file's, or computed on the texts that the masks were learned on."""
    if name == bank.ablation.name:
        return bank.ablation.to(masked_lm.device)
    fitted = fit_ablation(name, masked_lm, bank.of(learned_on.groups.names).mask, learned_on, bar)
    return ranks.from_first(fitted.to(torch.device("cpu"))).to(masked_lm.device)  # devices round differently


def _describe_texts(data: MaskData, split: SplitName, ablation: str, column: str | None) -> str:
    """Such as `40 test texts of stories.jsonl, zero ablation`."""
    texts = evaluation.texts_in_words(data, split, split, str(data.source))
    return f"{texts}{f', column {column}' if column else ''}, {ablation} ablation"
