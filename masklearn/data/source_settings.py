"""Settings of texts by what they belong to: a source, the columns of a source, or the model."""

from collections.abc import Mapping
from typing import Any

SOURCE_KEYS = ("path", "dataset", "task", "texts")
SOURCE_OPTIONS = ("subset", "split", "limit")
"""Settings that belong to one source, and are dropped with it."""
COLUMN_KEYS = ("text_column", "corrupted_column", "answer_column", "wrong_answer_column", "completion_column")
"""Settings that name columns, which texts of another source need not have."""
MODEL_KEYS = ("lm", "revision", "scope", "max_groups", "trust_remote_code")
"""Settings of the data that are taken from the model's."""


def names_source(settings: Mapping[str, Any]) -> bool:
    """Whether settings say where texts come from."""
    return any(settings.get(key) for key in SOURCE_KEYS)


def without_source(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of texts that also hold for those of another source."""
    return {key: value for key, value in settings.items() if key not in (*SOURCE_KEYS, *SOURCE_OPTIONS)}


def without_model(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of texts without those that are taken from the model's."""
    return {key: value for key, value in settings.items() if key not in MODEL_KEYS}
