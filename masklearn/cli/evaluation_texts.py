"""Which texts masks are evaluated on: those of the mask's run, unless flags choose others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from masklearn import ranks
from masklearn.cli.parsing import as_user_errors
from masklearn.data import MaskData, SplitName, keep_groups, leave_out_other_groups, n_not_learned, require_readable
from masklearn.data.source_settings import (
    COLUMN_KEYS,
    MODEL_KEYS,
    SOURCE_KEYS,
    names_source,
    without_model,
    without_source,
)
from masklearn.data.splits import UNLIMITED
from masklearn.errors import UserError
from masklearn.mask_file import Mask, ModelId
from masklearn.masking import MaskedLM
from masklearn.text_bank import TextBank

SELECTION_KEYS = ("subset", "split", "text_column")
"""Settings that select other texts from the same source."""
HARMLESS_KEYS = ("positions", "batch_size", "workers", "answer_ids", "max_test")
"""Settings that change neither the texts nor how they are split."""
COMPLETION = "completion"
"""Scored positions that make the answer part of the text, and so change how texts are split."""


LoadTexts = Callable[[dict[str, Any]], MaskData]
"""Settings of texts to the texts."""


@dataclass(frozen=True)
class EvaluationTexts:
    """The texts to evaluate one mask file on."""

    settings: dict[str, Any]
    """Settings of `MaskData`."""
    learned_on: dict[str, Any]
    """Those of the mask's run; empty if the mask file has none."""
    are_others: bool
    """Whether the texts are others than those of the mask's run."""
    split: SplitName
    all_requested: bool
    """Whether the user asked for all texts, those that the masks were learned on included."""
    scope: str

    @property
    def are_split_alike(self) -> bool:
        """Whether the training texts among these are those that the masks were learned on."""
        if self.are_others or self.scope == "input":
            return not self.are_others
        keys = (self.learned_on.keys() | self.settings.keys()) - {*HARMLESS_KEYS, "path"}
        return all(self.learned_on.get(key) == self.settings.get(key) for key in keys)

    @property
    def has_other_settings(self) -> bool:
        """Whether texts may differ from those of the mask's run because flags ask for other settings than its."""
        return {**self.learned_on, "path": None} != {**self.settings, "path": None}


def evaluation_texts(path: str, bank: Mask, requested: dict[str, Any], split: SplitName | None) -> EvaluationTexts:
    """Choose the texts to evaluate a mask file on.

    Args:
        path: The mask file.
        bank: Its content.
        requested: The `--data.*` flags given.
        split: The split asked for, if any.

    Raises:
        UserError: If the mask file holds settings that are not valid, or cannot be evaluated on the texts requested.
    """
    learned_on = settings_learned_on(path, bank)
    scope = bank.config.get("model", {}).get("scope", "dataset")
    if not isinstance(scope, str):
        raise UserError(f"{path} names a scope that does not exist, {scope!r}")
    any_split = scope == "input" or split in ("train", "all")
    settings, are_others = choose_settings(path, learned_on, requested, any_split)
    if scope == "input":
        require_same_source(path, requested, are_others)
        settings, are_others = learned_on | requested, False
    return EvaluationTexts(
        settings, learned_on, are_others, split or ("all" if are_others else "test"), split == "all", scope
    )


def require_same_source(path: str, requested: dict[str, Any], are_others: bool) -> None:
    """Refuse other texts for masks of single texts. A file may have moved: its texts are compared when they are read.

    Raises:
        UserError: If the flags ask for more than another place of the file.
    """
    if are_others and requested.keys() != {"path"}:
        raise UserError(
            f"{path} holds masks of single texts, which evaluate.py does not evaluate on other texts. Leave out "
            "--data.*; if the file of these texts has moved, give its path alone: --data.path FILE"
        )


def settings_learned_on(path: str, bank: Mask | TextBank) -> dict[str, Any]:
    """The settings of the texts of a mask's run, validated as if a user had given them.

    Raises:
        UserError: If they are not valid.
    """
    settings = without_model(bank.config.get("data", {}))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MaskData, "data", skip=set(MODEL_KEYS))
    try:
        with as_user_errors(parser):
            parsed = parser.parse_object({"data": {"positions": bank.positions} | settings}).as_dict()["data"]
            return {key: parsed[key] for key in settings}
    except UserError as error:
        raise UserError(f"{path} holds settings of its texts that are not valid: {error}") from error


def choose_settings(
    path: str, learned_on: dict[str, Any], requested: dict[str, Any], any_split: bool
) -> tuple[dict[str, Any], bool]:
    """The settings of the texts to evaluate on, and whether these are others than those of the mask's run.

    Args:
        path: The mask file.
        learned_on: Settings of the mask's run.
        requested: The `--data.*` flags given.
        any_split: Whether it does not matter which texts are held out.

    Raises:
        UserError: If the flags change which texts of the mask's run are held out.
    """
    changed = {key for key, value in requested.items() if _resolved(key, value) != _resolved(key, learned_on.get(key))}
    harmless = set(HARMLESS_KEYS)
    if COMPLETION in (requested.get("positions"), learned_on.get("positions")):
        harmless.remove("positions")
    if changed & set(SOURCE_KEYS):
        kept = without_source(learned_on)
        if requested.get("task"):  # its texts have no columns
            kept = {key: value for key, value in kept.items() if key not in COLUMN_KEYS}
        return kept | requested, True
    if changed & set(SELECTION_KEYS):
        return {key: value for key, value in learned_on.items() if key != "limit"} | requested, True
    if changed - harmless and learned_on and not any_split:
        flags = ", ".join(f"--data.{key}" for key in sorted(changed - harmless))
        raise UserError(
            f"{flags} would change which texts are held out of those that {path} was learned on. Leave them out, or "
            "evaluate on all texts, training texts included: --part all"
        )
    return learned_on | requested, False


def _resolved(key: str, value: Any) -> Any:
    """A setting in a form that can be compared: a path as an absolute one."""
    return Path(value).expanduser().resolve() if key == "path" and value else value


def load_texts(
    settings: dict[str, Any], bank: Mask, masked_lm: MaskedLM, model: ModelId, scope: str, trust_remote_code: bool
) -> MaskData:
    """Read, tokenise and split texts.

    Args:
        settings: Settings of `MaskData`, without those taken from the model's.
        bank: The mask file's content; texts of other groups than its are left out, with a notice.
        masked_lm: The model.
        model: Where the model, and so the tokenizer, is loaded from.
        scope: What shares its masks; another scope than that of the masks only groups the texts.
        trust_remote_code: Whether to run code that comes with the tokenizer.

    Raises:
        UserError: If the texts cannot be read, or do not fit the model or the scope; if no group of theirs has masks;
            or if they are those of the masks' run and were given in Python.
    """
    if bank.config.get("texts") and not names_source(settings):
        raise UserError(
            f"the masks were learned on {bank.config['texts']}, which the mask file does not hold. Give texts with "
            "--data.path"
        )
    settings = {"positions": bank.positions, "trust_remote_code": trust_remote_code} | settings
    is_own_scope = scope == bank.config.get("model", {}).get("scope", "dataset")
    max_groups = UNLIMITED if is_own_scope else None
    data = MaskData(**settings, lm=model.lm, revision=model.revision, scope=scope, max_groups=max_groups)
    ranks.first_alone(data.prepare_data)
    data.setup()
    data.notices += leave_out_other_groups(data, bank.groups) if is_own_scope else []
    require_readable(data, masked_lm.layout)
    return data


def compared_with_learned(texts: EvaluationTexts, data: MaskData, learned: Sequence[int]) -> list[str]:
    """What differs between single texts and those that their masks were learned on, in a line if flags explain it.

    Raises:
        UserError: If nothing explains it, so that the file must have changed.
    """
    others = n_not_learned(data, learned)
    if not others:
        return []
    found = f"{others} of {len(data.parts['all'])} texts of {data.source} are not those that the masks were learned on"
    if texts.has_other_settings:
        return [found]
    raise UserError(f"{found}: they have changed since. Give the file as it was then: --data.path FILE")


def altered_texts(
    path: str, bank: Mask, texts: EvaluationTexts, load: LoadTexts, column: str | None
) -> dict[str, MaskData]:
    """The altered texts of the same rows by their column, if one is given. Rows without masks are left out.

    Raises:
        UserError: If the masks are shared, or the scored position depends on the text, or if there is no such column,
            or no row has masks.
    """
    if column is None:
        return {}
    if texts.scope != "input" or texts.settings.get("positions") == "random":
        reason = "the drawn position depends on the text" if texts.scope == "input" else "these masks are shared"
        raise UserError(
            f"{path}: altered_column is for masks of single texts at fixed positions, and {reason}. Learn them with "
            "--model.scope input --data.positions last"
        )
    try:
        data = load(texts.settings | {"text_column": column})
    except UserError as error:
        raise UserError(str(error).replace("--data.text_column", "--altered_column")) from error
    without_masks = keep_groups(data, bank.groups)
    if not data.groups.names:
        raise UserError(f"{path} has masks for none of the texts of column {column!r}. Choose another --altered_column")
    lines = [f"Rows without masks, whose texts are left out: {', '.join(without_masks)}"] if without_masks else []
    for line in (*lines, *data.notices):
        print(f"Column {column}: {line}")
    return {column: data}
