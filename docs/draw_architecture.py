"""Draw the architecture from the code: `python docs/draw_architecture.py` writes what it reads off the imports.

It writes `docs/architecture.svg`, the folders and what they import, and the list of files in `docs/architecture.md`,
with the first line of every module's docstring. A test fails if either differs from the code.
"""

import ast
from collections import defaultdict
from html import escape
from pathlib import Path

import masklearn

DOCS = Path(__file__).parent
PACKAGE = Path(masklearn.__file__).parent
FLOORS = {
    "entry points": ["api", "cli"],
    "output": ["density", "evidence", "report", "tracking", "export"],
    "evaluation": ["evaluation"],
    "training": ["training"],
    "data and selection": ["data", "selection", "positions"],
    "the gated model": ["models", "masking", "edges"],
    "ideas": [
        "choices",
        "errors",
        "files",
        "graph",
        "gates",
        "sizes",
        "objective",
        "ablation",
        "mask_file",
        "mask_metadata",
        "circuit_json",
        "hub",
        "progress",
        "ranks",
        "shares",
        "text_bank",
        "version",
        "tiny",
        "tool_hooks",
    ],
}
"""From the top floor to the ground floor; a folder or file imports from its own floor and the floors below."""
BEGIN, END = "<!-- files: written by draw_architecture.py -->", "<!-- end of files -->"
MEMBERS = "   :members:\n"
"""The autodoc option that adds what a class or a module defines."""
WIDTH, HEIGHT, LEFT, GAP, BOX = 960, 88, 150, 12, 40
"""Of the picture and of a floor; where boxes begin; between boxes; height of a box. In pixels."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, the package's own file left out."""
    files = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }


def part_of(module: str) -> str:
    """The folder, or the file on the ground floor, that a module belongs to."""
    return module.split(".")[1]


def imports(path: Path) -> set[str]:
    """Parts of the package that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {part_of(name) for name in names if name.startswith("masklearn.")}
    return found


def edges() -> dict[str, set[str]]:
    """What each part of the package imports of the others."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, path in modules().items():
        found[part_of(name)] |= imports(path) - {part_of(name)}
    return dict(found)


def direct(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same without the edges that follow from others (the transitive reduction)."""

    def reached(start: str) -> set[str]:
        below = graph.get(start, set())
        return below.union(*(reached(part) for part in below)) if below else set()

    return {
        part: {other for other in below if not any(other in reached(third) for third in below - {other})}
        for part, below in graph.items()
    }


def picture() -> str:
    """The drawing as SVG: a band for every floor, a box for every part, a line for every direct import."""
    places: dict[str, tuple[float, float, float]] = {}
    shapes: list[str] = []
    for i, (floor, parts) in enumerate(FLOORS.items()):
        top = i * HEIGHT
        shapes.append(
            f'<rect x="0" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="{"#f4f6f8" if i % 2 else "#fff"}"/>'
        )
        shapes.append(f'<text x="14" y="{top + HEIGHT / 2 + 5}" fill="#57606a">{escape(floor)}</text>')
        width = (WIDTH - LEFT - GAP * len(parts)) / len(parts)
        size = min(width, 200)
        for k, part in enumerate(parts):
            x = LEFT + k * (width + GAP) + (width - size) / 2
            places[part] = (x + size / 2, top + (HEIGHT - BOX) / 2, size)
    lines = [
        _line(places[part], places[other]) for part, below in sorted(direct(edges()).items()) for other in sorted(below)
    ]
    boxes = [
        f'<rect x="{x - size / 2:.1f}" y="{y:.1f}" width="{size:.1f}" height="{BOX}" rx="5" '
        'fill="#dcebf7" stroke="#005a94"/>'
        f'<text x="{x:.1f}" y="{y + BOX / 2 + 5:.1f}" text-anchor="middle" fill="#10243a">{part}</text>'
        for part, (x, y, size) in places.items()
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT * len(FLOORS)}" '
        'font-family="sans-serif" font-size="14" role="img">'
        "<title>Folders and files of masklearn, and what they import</title>"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#7a8794"/></marker></defs>'
    )
    return "\n".join([head, *shapes, *lines, *boxes, "</svg>"]) + "\n"


def _line(start: tuple[float, float, float], end: tuple[float, float, float]) -> str:
    """A curve from the bottom of one box to the top of another, or to its bottom on the same floor."""
    style = 'fill="none" stroke="#7a8794" stroke-width="1.3" marker-end="url(#tip)"'
    (x0, y0, size0), (x1, y1, size1) = start, end
    if y0 == y1:
        bottom, dip = y0 + BOX, y0 + BOX + 8 + abs(x1 - x0) / 25
        x0, x1 = x0 - size0 / 6, x1 + size1 / 6
        return f'<path d="M{x0:.1f} {bottom} C{x0:.1f} {dip:.1f} {x1:.1f} {dip:.1f} {x1:.1f} {bottom}" {style}/>'
    y0 += BOX
    bend = (y1 - y0) / 2
    return (
        f'<path d="M{x0:.1f} {y0:.1f} C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}" {style}/>'
    )


def summary(path: Path) -> str:
    """The first sentence or line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ")


def listing() -> str:
    """The files of the package in the order of the pipeline, as Markdown, ground floor last."""
    lines = ["| file | contents |", "|---|---|"]
    found = modules()
    for parts in reversed(FLOORS.values()):
        for part in parts:
            for name, path in found.items():
                if part_of(name) == part:
                    shown = path.relative_to(PACKAGE.parent)
                    label = f"**`{shown.parent}/`**" if path.name == "__init__.py" else f"`{shown}`"
                    text = summary(path).replace("|", "\\|")
                    lines.append(f"| {label} | {text} |")
    return "\n".join(lines)


def page() -> str:
    """`docs/architecture.md` with the list of files as it is now."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{listing()}\n\n{END}{rest.split(END)[1]}"


def api_pages() -> dict[str, str]:
    """Pages of the API reference in reStructuredText, by name: the public names, and a page for every part."""
    parts = [part for floor in reversed(FLOORS.values()) for part in floor]
    pages = {part: _part_page(part) for part in parts}
    body = "".join(_public_name(name, getattr(masklearn, name)) for name in masklearn.__all__)
    tree = "".join(f"   {part}\n" for part in parts)
    intro = "These names are public; `import masklearn as ml` gives them all.\n\n"
    modules_list = f"{_title('Modules', '-')}.. toctree::\n   :maxdepth: 1\n\n{tree}"
    return {"index": f"{_title('API reference')}{intro}{body}{modules_list}", **pages}


def _public_name(name: str, value: object) -> str:
    if isinstance(value, type):
        return f".. autoclass:: masklearn.{name}\n{MEMBERS}\n"
    return f".. autofunction:: masklearn.{name}\n\n"


def _part_page(part: str) -> str:
    found = [name for name in modules() if part_of(name) == part]
    sections = [(_title(name, "-") if "." in name.removeprefix("masklearn.") else "") + _module(name) for name in found]
    return _title(f"masklearn.{part}") + "".join(sections)


def _module(name: str) -> str:
    """One module: its docstring, and its members that the first page does not have."""
    body = ast.parse(modules()[name].read_text(encoding="utf-8")).body
    defined = {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    public = sorted(defined & set(masklearn.__all__))
    hidden = f"   :exclude-members: {', '.join(public)}\n" if public else ""
    links = "".join(f"Public: :obj:`masklearn.{public_name}`.\n\n" for public_name in public)
    return f".. automodule:: {name}\n{MEMBERS + hidden if defined else ''}\n{links}"


def _title(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}\n\n"


if __name__ == "__main__":
    (DOCS / "architecture.svg").write_text(picture(), encoding="utf-8")
    (DOCS / "architecture.md").write_text(page(), encoding="utf-8")
