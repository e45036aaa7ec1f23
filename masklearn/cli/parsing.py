"""Command lines and config files: a mistyped or harmful entry becomes an error of one line."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from masklearn.errors import UserError, nearest, one_line

MAX_CONFIG_BYTES = 2**20
MAX_CONFIG_VALUES = 10_000
"""Values in a config file, with every alias expanded."""
ALLOWED_MODULES = ("lightning.pytorch.", "pytorch_lightning.", "masklearn.")
"""Where the classes that a config names may come from: naming a class imports its module."""
INVALID_CHOICE = re.compile(r'"(?P<key>[\w.]+)": .*?Literal\[(?P<names>[^]]*)\].*[Vv]alue: (?P<given>.+)')
"""The parser's message about a value that is not one of the names allowed."""
CLASS_PROBLEM = re.compile(
    r"Problem with given class_path '(?:\w+\.)*(?P<name>\w+)': (?P<reason>.+?) (?:- )?Expected an? "
)
"""The parser's message about a class that cannot be created, among those about types that were not given."""
DOTTED_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
"""A string that may name code."""
CONFIG_FLAGS, SECTION_FLAGS = ("--config", "-c"), ("--model", "--data", "--trainer", "--run")
"""Flags that read a file of all settings, and of those of a section."""
NULLABLE = ("model.polish_budget", "trainer.check_val_every_n_epoch")
"""Settings whose default is not null, and for which null means something: no limit, or one count over all epochs."""


@contextmanager
def as_user_errors(parser: ArgumentParser) -> Iterator[None]:
    """Turn the parser's errors into user errors of one line."""
    try:
        yield
    except ArgumentError as error:
        raise UserError(explain(str(error), parser.get_defaults(skip_validation=True).keys())) from error


def explain(message: str, known: Iterable[str]) -> str:
    """A parser's message in one line, with the nearest known key if a key is unknown, or the names to choose from.

    Args:
        message: The parser's message.
        known: All keys of the parser.
    """
    text = " ".join(line.strip(" -") for line in message.splitlines() if line.strip())
    flag = re.search(r"unrecognized arguments: (?:--)?([^\s=]+)", text)
    key = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text)
    if flag:
        return _unknown_key(flag[1], known)
    if key:
        return _unknown_key(".".join(key.groups()), known)
    problem = CLASS_PROBLEM.search(text)
    if problem:
        return f"{problem['name']}: {problem['reason'].rstrip('. ')}"
    text = re.sub(r"<class '(\w+)'>|typing\.|^Parser key ", r"\1", text)
    choice = INVALID_CHOICE.fullmatch(text)
    if choice and {*re.findall(r"Expected an? (\w+)", text)} <= {"Literal", "list", "NoneType"}:
        names = re.findall(r"'([^']+)'", choice["names"])
        suggestion = _suggestion(choice["given"].strip("[]"), names)
        return f"{choice['key']} is {choice['given']}; choose from {', '.join(names)}" + (
            f". {suggestion}" if suggestion else ""
        )
    return f"{text.rstrip('. ')}. See --help"


def _unknown_key(name: str, known: Iterable[str]) -> str:
    return f"there is no flag or key {name}. {_suggestion(name, known) or '--help lists all of them'}"


def _suggestion(name: str, known: Iterable[str]) -> str:
    match = nearest(name, known)
    return f"Did you mean {match}?" if match else ""


def require_harmless_configs(args: Sequence[str]) -> None:
    """Refuse config files that expand to too many values, or name code other than Lightning's or ours.

    Args:
        args: The command line.

    Raises:
        UserError: Names the file, the line, and what to do instead.
    """
    for flag, value in _values(args):
        if not _is_file(Path(value)):
            continue
        if flag in CONFIG_FLAGS or flag in SECTION_FLAGS:
            _require_harmless(Path(value), is_trainer=flag == "--trainer")
        elif flag.startswith("--trainer."):
            raise UserError(f"{flag.lstrip('-')} is the file {value}. Give its settings in a file of --config")


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a text that is no path, such as a long list, names none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _values(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The flags of a command line with their values; of a flag without one, what follows it."""
    for arg, following in pairwise([*args, ""]):
        if arg.startswith("-c"):
            yield "-c", arg[2:].removeprefix("=") or following
        elif arg.startswith("--"):
            flag, has_value, value = arg.partition("=")
            yield flag, value if has_value else following


def _require_harmless(path: Path, is_trainer: bool) -> None:
    """Refuse a harmful config; it may hold all settings, or those of the trainer alone."""
    root = _read_yaml(path)
    if _expanded_size(root, {}) > MAX_CONFIG_VALUES:
        raise UserError(
            f"{path} expands to more than {MAX_CONFIG_VALUES} values. "
            "Replace its aliases (&, *) by the values that they repeat"
        )
    _require_unique_keys(path, root)
    for key, value in root.value:
        if is_trainer or key.value == "trainer":
            _require_known_code(path, value)


def _read_yaml(path: Path) -> yaml.MappingNode:
    """The syntax tree of a config file, from which nothing has been constructed.

    Raises:
        UserError: If the file is too large, is not YAML, or is not a mapping.
    """
    size = path.stat().st_size
    if size > MAX_CONFIG_BYTES:
        raise UserError(
            f"{path} has {size} bytes, too many for a config file (at most {MAX_CONFIG_BYTES}). "
            "Give --config a YAML file of settings"
        )
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError) as error:
        mark = getattr(error, "context_mark", None) or getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or one_line(error)
        raise UserError(f"{path}{where}: this is not YAML ({problem}). See --print_config for an example") from error
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path} has no settings, which are keys with values. See --print_config for an example")
    return root


def _expanded_size(node: yaml.Node, known: dict[int, float]) -> float:
    """Values below a node, those of an alias counted wherever it occurs; infinite if an alias contains itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        entries = node.value if isinstance(node, yaml.CollectionNode) else ()
        children = [child for entry in entries for child in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_expanded_size(child, known) for child in children)
    return known[id(node)]


def _require_unique_keys(path: Path, node: yaml.Node) -> None:
    """Refuse a key that occurs twice: YAML would silently drop one of its values."""
    lines: dict[str, int] = {}
    for entry in node.value if isinstance(node, yaml.CollectionNode) else ():
        if not isinstance(entry, tuple):
            _require_unique_keys(path, entry)
            continue
        key, value = entry
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{path}, line {line}: this key is not a name. See --print_config for an example")
        if key.value in lines:
            raise UserError(f"{path}, line {line}: {key.value} is already set in line {lines[key.value]}. Remove one")
        lines[key.value] = line
        _require_unique_keys(path, value)


def _require_known_code(path: Path, node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode):
        line = node.start_mark.line + 1
        if _is_file(path.parent / node.value):
            raise UserError(f"{path}, line {line}: {node.value} is a file. Write its settings here instead")
        if DOTTED_NAME.fullmatch(node.value) and not node.value.startswith(ALLOWED_MODULES):
            raise UserError(
                f"{path}, line {line}: {node.value} names code that is not Lightning's, "
                f"and a config may name no other. Use a class of {ALLOWED_MODULES[0].rstrip('.')}, or train from Python"
            )
        return
    for entry in node.value:
        for child in entry if isinstance(entry, tuple) else (entry,):
            _require_known_code(path, child)


def require_complete(given: object, default: object, name: str = "") -> None:
    """Refuse null for a setting whose default is not null: it would mean no value, rather than the default.

    Only for those that are `NULLABLE` null means something.

    Args:
        given: The settings as given, nested.
        default: The default settings.
        name: The key of both.

    Raises:
        UserError: Names the key.
    """
    if isinstance(default, dict):
        if not isinstance(given, dict):
            raise UserError(f"{name} is {given!r}, but it must be a section of settings. See --print_config")
        for key, value in default.items():
            require_complete(given.get(key), value, f"{name}.{key}" if name else key)
    elif given is None and default is not None and name not in NULLABLE:
        raise UserError(f"{name} is null. Give it a value, or leave it out to use the default, {default}")
