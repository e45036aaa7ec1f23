"""The rooms keep to their floors: a room imports rooms on its own or on lower floors, never upwards."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import masklearn

HOUSE = Path(masklearn.__file__).parent
FLOORS = {
    0: ["errors", "files", "graph", "gates", "sizes", "objective", "ablation", "mask_file", "tiny"],
    1: ["models", "masking"],
    2: ["data", "selection"],
    3: ["training"],
    4: ["evaluation"],
    5: ["density", "report", "tracking"],
    6: ["cli"],
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
ROOMS = [path for path in sorted(HOUSE.rglob("*.py")) if path != HOUSE / "__init__.py"]
ONLY = {
    "wandb": {"tracking"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "scipy": {"density"},
    "pandas": {"density", "report", "tracking"},
    "jsonargparse": {"cli", "tiny"},
    "transformers": {"models", "masking", "data", "cli", "tiny"},
}


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names of every module a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(HOUSE)))
def test_a_room_imports_no_room_above_it(path: Path) -> None:
    floor = FLOOR_OF[room_of(path)]
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "masklearn":
            assert FLOOR_OF[parts[1]] <= floor, f"{room_of(path)} (floor {floor}) imports {name}"
        elif parts[0] in ONLY:
            assert room_of(path) in ONLY[parts[0]], f"{room_of(path)} knows {parts[0]}"


def test_importing_the_package_has_no_side_effects() -> None:
    code = (
        "import sys, masklearn; print(*sorted(m for m in ('wandb', 'matplotlib', 'jsonargparse') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_project_speaks_only_of_itself() -> None:
    """No paths of a machine in what is shipped."""
    for path in ROOMS:
        assert "/home/" not in path.read_text() and "/root/" not in path.read_text()
