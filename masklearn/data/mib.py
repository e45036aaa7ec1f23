"""Rows of the MIB benchmark's datasets (`mib-bench` on the hub) as published: pairs with a right and a wrong answer.

Which rows and answers count follows MIB's circuit track (Mueller et al. 2025, arXiv 2504.13151).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from masklearn.data.columns import value_at
from masklearn.data.readers import Row
from masklearn.data.texts import Text, TokenCounts
from masklearn.errors import UserError

PROMPT = "prompt"


class MibTask(NamedTuple):
    """Where the rows of a task hold what. `{}` in a path stands for the index that the row's `answerKey` gives."""

    counterfactual: str
    """Column of the corrupted text, by which the task is recognised."""
    answer: str
    wrong: str
    beside: tuple[str, ...]
    """The other columns that are read."""
    before: str = ""
    """What stands between the text and its answers."""
    also_alike: str | None = None
    """A further word that must have as many tokens as the answers."""
    n_tokens: int | None = None
    """Tokens that every answer must have; by default as many as the other."""


CHOICES = "choices.label.{}"
TASKS = (
    MibTask(
        "s2_io_flip_counterfactual", "metadata.indirect_object", "metadata.subject", ("metadata",),
        before=" ", also_alike="metadata.random_c",
    ),
    MibTask("symbol_counterfactual", CHOICES, f"symbol_counterfactual.{CHOICES}", ("choices", "answerKey")),
    MibTask("random_counterfactual", "label", "random_counterfactual.label", ("label",), n_tokens=1),
)  # fmt: skip
"""Indirect objects; multiple choice and ARC; arithmetic."""
MIB_COLUMNS = {PROMPT, *(name for task in TASKS for name in (task.counterfactual, *task.beside))}
"""All columns that are read."""


def mib_task(names: Sequence[str]) -> MibTask | None:
    """The task whose columns these are, if they are a task's."""
    return next((task for task in TASKS if {PROMPT, task.counterfactual, *task.beside} <= {*names}), None)


def mib_texts(task: MibTask, rows: Sequence[Row], source: str) -> tuple[list[Text], list[str]]:
    """The pairs of a task, without rows that have no counterfactual; and notices for the user.

    Args:
        task: The task.
        rows: Rows as published.
        source: The source in words, for messages.

    Raises:
        UserError: If a row lacks a value, or if no row has a counterfactual.
    """
    texts = list[Text]()
    for index, row in enumerate(rows):
        if not isinstance(value_at(row, f"{task.counterfactual}.{PROMPT}"), str):
            continue
        words = [_word(task, row, path, index, source) for path in (task.answer, task.wrong)]
        alike = [*words, *([_word(task, row, task.also_alike, index, source)] if task.also_alike else [])]
        corrupted, text = value_at(row, f"{task.counterfactual}.{PROMPT}"), value_at(row, PROMPT)
        if not isinstance(text, str):
            raise UserError(f"{source}, row {index + 1}: {PROMPT!r} holds no text, as the rows of MIB do. Fix the row")
        counts = TokenCounts(tuple(alike), task.n_tokens)
        texts.append(Text(index, text, "", corrupted, (words[0],), (words[1],), counts=counts))
    if not texts:
        raise UserError(f"{source}: no row has a text in {task.counterfactual!r}, as the rows of MIB do")
    n_left_out = len(rows) - len(texts)
    return texts, [f"{n_left_out} of {len(rows)} rows have no counterfactual and are left out"] if n_left_out else []


def _word(task: MibTask, row: Row, path: str, index: int, source: str) -> str:
    """The word at a path, with what stands before it."""
    if "{}" in path:
        within = path.removesuffix(CHOICES)
        path = path.format(value_at(row, f"{within}answerKey"))
    value: Any = value_at(row, path)
    if not isinstance(value, str | int) or value == "":
        raise UserError(
            f"{source}, row {index + 1}: there is no answer at {path!r}, as in the rows of MIB. Fix the row"
        )
    return f"{task.before}{value}"
