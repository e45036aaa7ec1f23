"""Flags that were mistyped, to one clear line."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from masklearn.errors import UserError, nearest, one_line

LARGEST, MOST = 2**20, 10_000
"""Bytes of a config file, and values in it with every alias written out."""
OURS = ("lightning.pytorch.", "pytorch_lightning.", "masklearn.")
"""Where the classes of a config may come from: naming a class imports its module."""
CHOICE = re.compile(r'"(?P<key>[\w.]+)": .*?Literal\[(?P<names>[^]]*)\].*[Vv]alue: (?P<given>.+)')
"""The parser's complaint of a value that is none of some names."""


@contextmanager
def as_user_errors(parser: ArgumentParser) -> Iterator[None]:
    """Turn the parser's complaints into ours."""
    try:
        yield
    except ArgumentError as error:
        raise UserError(explain(str(error), parser.get_defaults(skip_validation=True).keys())) from error


def explain(message: str, known: Iterable[str]) -> str:
    """The parser's complaint in one line, with the nearest known key where a key was not known."""
    text = " ".join(line.strip(" -") for line in message.splitlines() if line.strip())
    flag = re.search(r"unrecognized arguments: (?:--)?([^\s=]+)", text)
    key = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text)
    if not flag and not key:
        text = re.sub(r"<class '(\w+)'>|typing\.|^Parser key ", r"\1", text)
        choice = CHOICE.fullmatch(text)
        if choice and {*re.findall(r"Expected an? (\w+)", text)} <= {"Literal", "list", "NoneType"}:
            names, given = re.findall(r"'([^']+)'", choice["names"]), choice["given"].strip("[]")
            match = nearest(given, names)
            meant = f". Did you mean {match}?" if match else ""
            return f"{choice['key']} is {choice['given']}; choose from {', '.join(names)}{meant}"
        return f"{text.rstrip('. ')}. See --help"
    unknown = flag.group(1) if flag else ".".join(key.groups())  # pyright: ignore[reportOptionalMemberAccess]
    match = nearest(unknown, known)
    return f"there is no flag or key {unknown}. " + (
        f"Did you mean {match}?" if match else "See --help for all of them"
    )


def require_harmless_configs(args: Sequence[str]) -> None:
    """Refuse config files that unfold to more than a config holds, or name code to import that is not Lightning's.

    Args:
        args: The command line.

    Raises:
        UserError: Names the file, the place in it, and what would do.
    """
    given = [after for flag, after in pairwise([*args, ""]) if flag == "--config"]
    for path in given + [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]:
        if Path(path).is_file():
            _require_harmless(Path(path))


def _require_harmless(path: Path) -> None:
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path} has {path.stat().st_size} bytes, more than a config holds. Give --config a YAML file")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError) as error:
        place = getattr(error, "context_mark", None) or getattr(error, "problem_mark", None)
        where = f", line {place.line + 1}, column {place.column + 1}" if place else ""
        problem = getattr(error, "problem", None) or one_line(error)
        raise UserError(f"{path}{where}: this is no YAML ({problem}). See --print_config for what is") from error
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path} holds no settings. See --print_config for how they are written")
    if _unfolded(root, {}) > MOST:
        raise UserError(f"{path} unfolds to more than {MOST} values. Write its aliases (&, *) out, or leave them out")
    _require_once(path, root)
    for key, value in root.value:
        if key.value == "trainer":
            _require_known_code(path, value)


def _unfolded(node: yaml.Node, known: dict[int, float]) -> float:
    """Values below a node, those of an alias counted wherever it stands; infinite where one holds itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        children = [child for entry in node.value for child in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(
            _unfolded(child, known) for child in (children if isinstance(node, yaml.CollectionNode) else ())
        )
    return known[id(node)]


def _require_once(path: Path, node: yaml.Node) -> None:
    """Refuse a key that stands twice: one of its values would be lost without a word."""
    met: dict[str, int] = {}
    for entry in node.value if isinstance(node, yaml.CollectionNode) else ():
        if not isinstance(entry, tuple):
            _require_once(path, entry)
            continue
        key, value = entry
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{path}, line {line}: a key that is no word. See --print_config for how they are written")
        if key.value in met:
            raise UserError(f"{path}, line {line}: {key.value} stands in line {met[key.value]} already. Drop one")
        met[key.value] = line
        _require_once(path, value)


def _require_known_code(path: Path, node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode):
        if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", node.value) and not node.value.startswith(OURS):
            raise UserError(
                f"{path}, line {node.start_mark.line + 1}: {node.value} names code that is not Lightning's, and "
                f"a config runs no other. Give classes of {OURS[0].rstrip('.')}, or use Python for your own"
            )
        return
    for entry in node.value:
        for child in entry if isinstance(entry, tuple) else (entry,):
            _require_known_code(path, child)


def require_complete(given: object, default: object, place: str = "") -> None:
    """Refuse null where a setting has a default that is not: it would not be the default, but nothing.

    Args:
        given: Settings as they were given, nested.
        default: Those by default.
        place: The key of both.

    Raises:
        UserError: Names the key.
    """
    if isinstance(default, dict):
        if not isinstance(given, dict):
            raise UserError(f"{place} is {given!r}, but it holds settings of its own. See --print_config")
        for key, value in default.items():
            require_complete(given.get(key), value, f"{place}.{key}" if place else key)
    elif given is None and default is not None:
        raise UserError(f"{place} is null. Leave it out for {default}, or give it a value")
