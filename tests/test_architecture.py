"""The design rules of the package: the order of its folders, the size of its parts, and its vocabulary."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
from retired_names import RETIRED

import masklearn

PACKAGE = Path(masklearn.__file__).parent
ROOT = Path(__file__).resolve().parents[1]
FLOORS = (
    (
        "ablation",
        "choices",
        "circuit_json",
        "errors",
        "files",
        "gates",
        "graph",
        "hub",
        "mask_file",
        "mask_metadata",
        "objective",
        "progress",
        "ranks",
        "shares",
        "sizes",
        "text_bank",
        "tiny",
        "tool_hooks",
        "version",
    ),
    ("models",),
    ("masking",),
    ("edges",),
    ("data",),
    ("selection",),
    ("positions",),
    ("training",),
    ("evaluation",),
    ("density", "evidence"),
    ("report", "tracking", "export"),
    ("api",),
    ("cli",),
)
"""Folders (and single modules) in the order of the pipeline; each imports only lower ones."""
FLOOR_OF = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders}
ALLOWED_IN = {
    "wandb": {"tracking"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "scipy": {"density", "evaluation", "evidence"},
    "pandas": {"api", "data", "density", "report", "tracking"},
    "jsonargparse": {"cli", "tiny"},
    "transformers": {"api", "models", "masking", "edges", "data", "cli", "tiny", "export"},
}
"""The folders that may import a library."""
NOT_IMPORTED = ("wandb", "matplotlib", "jsonargparse", "lightning")
"""Libraries that `import masklearn` does not load."""
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_README_WORDS = 300, 50, 1000

MODULES = sorted(PACKAGE.rglob("*.py"))
FILES_IN_FOLDERS = [path for path in MODULES if path != PACKAGE / "__init__.py"]

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def syntax_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def folder_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, in functions and for type checkers as well."""
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


# --- imports ----------------------------------------------------------------------------------------------------------


def module_file(name: str) -> Path | None:
    """The file that an imported name is defined or re-exported in; None outside of the package."""
    parts = name.split(".")
    if parts[0] != "masklearn":
        return None
    for n in (len(parts), len(parts) - 1):
        base = PACKAGE.joinpath(*parts[1:n])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.exists() and path.is_relative_to(PACKAGE):
                return path
    raise AssertionError(f"{name} is not a module of the package")


@pytest.mark.parametrize("path", FILES_IN_FOLDERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_folder_imports_only_lower_folders(path: Path) -> None:
    folder = folder_of(path)
    for name in imported_names(path):
        library, *parts = name.split(".")
        if library == "masklearn":
            other = parts[0]
            assert other in FLOOR_OF, f"{path} imports {name} from masklearn/__init__.py; import it from its module"
            is_lower = FLOOR_OF[other] < FLOOR_OF[folder] or FLOOR_OF[other] == FLOOR_OF[folder] == 0
            assert folder == other or is_lower, f"{path}: {folder} imports {name}, which is not lower"
        elif library in ALLOWED_IN:
            assert folder in ALLOWED_IN[library], f"{path}: {folder} imports {library}"


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports inside functions and under TYPE_CHECKING count too."""
    imports = {path: {module_file(name) for name in imported_names(path)} - {None, path} for path in MODULES}
    circle = ""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        circle = " -> ".join(str(path.relative_to(PACKAGE)) for path in reversed(error.args[1]))
    assert not circle


def test_importing_the_package_does_not_load_heavy_libraries() -> None:
    code = f"import sys, masklearn; print(*sorted(name for name in {NOT_IMPORTED} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_text_files_are_utf8_whatever_the_locale(path: Path) -> None:
    """Windows and old systems have other encodings, which Python uses where none is named."""
    for node in ast.walk(syntax_tree(path)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        named = {keyword.arg for keyword in node.keywords}
        is_binary = any(isinstance(arg, ast.Constant) and arg.value in ("rb", "wb") for arg in node.args)
        if name in ("read_text", "write_text", "open", "NamedTemporaryFile") and not is_binary:
            assert "encoding" in named, f"{path}, line {node.lineno}: {name} names no encoding"


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path: Path) -> None:
    too_long: list[str] = []
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    if n_lines > MAX_FILE_LINES:
        too_long.append(f"the file has {n_lines} lines, at most {MAX_FILE_LINES} are allowed")
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, Function):
            assert node.end_lineno is not None
            n_lines = node.end_lineno - node.lineno + 1
            if n_lines > MAX_FUNCTION_LINES:
                too_long.append(f"line {node.lineno}: {node.name} has {n_lines} lines, at most {MAX_FUNCTION_LINES}")
    assert not too_long, "\n".join(too_long)


def test_the_readme_is_short() -> None:
    n_words = len((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert n_words <= MAX_README_WORDS


# --- words ------------------------------------------------------------------------------------------------------------


class Identifier(NamedTuple):
    """A name in the code, with its line."""

    line: int
    name: str


def identifiers(tree: ast.AST) -> Iterator[Identifier]:
    """Names of variables, attributes, parameters, keywords, functions, classes and imports."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield Identifier(line, name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield Identifier(line, name)
            case ast.keyword(arg=str(name)) | ast.ExceptHandler(name=str(name)):
                yield Identifier(line, name)
            case ast.ImportFrom(module=str(module)):
                yield from (Identifier(line, part) for part in module.split("."))
            case ast.alias(name=name, asname=asname):
                yield from (Identifier(line, part) for part in (*name.split("."), asname) if part)
            case _:
                pass


def test_retired_names_are_found_wherever_they_stand() -> None:
    code = "from a.Judge import x as told\ndef f(worth): return f(price=worth.crossed)\nclass Piece: drawn = 1"
    found = {identifier.name for identifier in identifiers(ast.parse(code))}
    assert {"Judge", "told", "worth", "price", "crossed", "Piece", "drawn"} <= found


@pytest.mark.parametrize("folder", ["masklearn", "tests", "benchmarks"])
def test_no_identifier_is_a_retired_name(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name} -> {RETIRED[name]}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in identifiers(syntax_tree(path))
        if name in RETIRED
    ]
    assert not found, "these names have a better one:\n" + "\n".join(found)


def public_definitions(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Public classes, functions and methods, by qualified name."""
    for child in node.body:
        if isinstance(child, ast.ClassDef | Function) and not child.name.startswith("_"):
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from public_definitions(child, f"{prefix}{child.name}.")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_everything_public_has_a_docstring(path: Path) -> None:
    tree = syntax_tree(path)
    definitions = [("the module", tree), *public_definitions(tree)]
    missing = [name for name, node in definitions if not ast.get_docstring(node)]  # pyright: ignore[reportArgumentType]
    assert not missing, f"without a docstring: {', '.join(missing)}"


def test_no_file_names_a_path_of_a_machine() -> None:
    for path in MODULES:
        assert not re.search(r"/(home|root)/", path.read_text(encoding="utf-8")), path
