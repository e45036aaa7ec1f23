"""Settings that take one of a few values: another value is refused, with the one that was probably meant."""

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from masklearn.errors import UserError, nearest


def require_choices(section: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Refuse values that their type hints do not name. The command line checks this as it reads a setting.

    Args:
        section: What the names of the settings begin with in a message.
        values: The settings by name.
        hints: Type hints of the settings by name; those that admit more than named values are not checked.

    Raises:
        UserError: Names the setting and what it may be.
    """
    for name, known in ((name, choices(hint)) for name, hint in hints.items() if name in values):
        if known and not any(value is values[name] or value == values[name] for value in known):
            similar = nearest(str(values[name]), [value for value in known if isinstance(value, str)])
            raise UserError(
                f"{section}.{name} is {values[name]!r}; it must be one of {', '.join(map(str, known))}"
                + (f". Did you mean {similar}?" if similar else "")
            )


def choices(hint: Any) -> tuple[Any, ...]:
    """The values that a type hint names, a Literal or alternatives of one and None; empty if it admits others."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    known = list[Any]()
    for part in parts:
        if get_origin(part) is Literal:
            known += get_args(part)
        elif part is NoneType:
            known.append(None)
        elif part is bool:
            known += [True, False]
        else:
            return ()
    return tuple(known) if any(isinstance(value, str) for value in known) else ()
