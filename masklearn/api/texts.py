"""What a caller gives as texts, and settings by name, as a data module."""

from inspect import signature
from pathlib import Path
from typing import Any

from masklearn.data import MaskData
from masklearn.data.columns import has_column
from masklearn.data.rows_given import as_sequence
from masklearn.data.source_settings import COLUMN_KEYS, MODEL_KEYS, without_model, without_source
from masklearn.errors import UserError, nearest
from masklearn.models import TokenizerOrName
from masklearn.training.learner import MaskLearner

LEARNER_SETTINGS = {*signature(MaskLearner).parameters} - {"lm"}
DATA_SETTINGS = {*signature(MaskData).parameters} - {"lm", "texts", "tokenizer"}
DEVICE_SETTINGS = ("devices", "num_nodes", "strategy")
"""Flags of the command line's trainer that have no counterpart here."""


def split_settings(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the learner, and those of the texts.

    Raises:
        UserError: If there is no setting of a name; names the nearest.
    """
    known = LEARNER_SETTINGS | DATA_SETTINGS
    for name in settings:
        if name in DEVICE_SETTINGS:
            raise UserError(f"{name}: learn uses one device. For several run python train.py --trainer.{name}")
        if name not in known:
            raise UserError(f"there is no setting {name!r}. Did you mean {nearest(name, known) or 'sizes'}?")
    learner = {name: value for name, value in settings.items() if name in LEARNER_SETTINGS}
    data = {name: value for name, value in settings.items() if name in DATA_SETTINGS}
    return learner, data


def text_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of texts alone.

    Raises:
        UserError: If there is no setting of a name, or if it is one of learning.
    """
    for_learner, for_data = split_settings(settings)
    if of_learning := sorted(for_learner.keys() - for_data.keys()):
        raise UserError(f"{of_learning[0]} is a setting of learn, and of no effect on learned masks. Leave it out")
    return for_data


def as_data(texts: Any, lm: str, tokenizer: TokenizerOrName | None, settings: dict[str, Any]) -> MaskData:
    """The data module of some texts.

    Args:
        texts: A list of strings or of rows, a dataset, a table, a file, or a data module, which is returned as it is;
            None for the embedded generator or a source among the settings.
        lm: Name of the model, whose tokenizer is used unless one is given.
        tokenizer: Another tokenizer, or its name.
        settings: Settings of `MaskData`.

    Raises:
        UserError: If the texts are of another type, or a setting is not valid.
    """
    if isinstance(texts, MaskData):
        if settings.keys() - set(MODEL_KEYS) or tokenizer is not None:
            raise UserError("the texts are a MaskData, which has its own settings. Give settings of texts to it")
        return texts
    if isinstance(texts, str | Path):
        settings = settings | {"path": str(texts)}
        return MaskData(**settings, lm=lm, tokenizer=tokenizer)
    return MaskData(**settings, lm=lm, tokenizer=tokenizer, texts=texts)


def as_other_data(
    texts: Any, lm: str, tokenizer: TokenizerOrName | None, settings: dict[str, Any], of_run: dict[str, Any]
) -> MaskData:
    """The data module of texts to evaluate masks on, with the settings of the masks' run where no others are given.

    Of these, the source is left out, and a column is named only if the texts have it.

    Args:
        texts: As for `as_data`.
        lm: As for `as_data`.
        tokenizer: As for `as_data`; by default that of the run.
        settings: Settings of `MaskData` that are given.
        of_run: Settings of the texts of the masks' run, the tokenizer among them.

    Raises:
        UserError: If the texts are of another type or cannot be read, or a setting is not valid.
    """
    if isinstance(texts, MaskData):
        return as_data(texts, lm, tokenizer, settings)
    if not isinstance(texts, str | Path | None):
        texts = as_sequence(texts, settings.get("limit"))  # which is read twice
    kept = without_source(of_run)
    tokenizer_of_run = kept.pop("tokenizer", None)
    tokenizer = tokenizer_of_run if tokenizer is None else tokenizer
    columns = {key: kept.pop(key) for key in COLUMN_KEYS if kept.get(key) is not None and key not in settings}
    kept = text_settings(kept | settings)
    data = as_data(texts, lm, tokenizer, kept)
    if not columns:
        return data
    names = data.source.column_names()
    found = {key: column for key, column in columns.items() if has_column(names, column)}
    return as_data(texts, lm, tokenizer, kept | found)


def settings_of(data: MaskData) -> dict[str, Any]:
    """The settings of some texts that results depend on, without those that are taken from the model's."""
    return {key: value for key, value in without_model(data.hparams).items() if key != "workers"}
