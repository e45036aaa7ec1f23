"""Sphinx: guides in Markdown, and an API reference made from the docstrings of every module of the package."""

import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]  # this checkout, whichever is installed

import draw_architecture as architecture  # noqa: E402

project, author, release = "masklearn", "the masklearn authors", metadata.version("masklearn")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["study/*"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks keep their outputs; a test runs the tutorial
suppress_warnings = ["ref.python"]  # the same short name in two modules

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # what Lightning says of its hooks is in its own documentation
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
add_module_names = False
default_role = "code"  # docstrings have names in single backticks
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "masklearn"
html_show_sphinx = False
html_static_path = ["style"]
html_css_files = ["tables.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#005a94", "color-brand-content": "#005a94"},
    "dark_css_variables": {"color-brand-primary": "#66b6e8", "color-brand-content": "#66b6e8"},
}

CODE = re.compile(r"``?[^`]*``?")
"""Names in backticks, of which no character is markup."""


def escape_markup(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with names in backticks: stars, bars and trailing underscores are no markup."""
    if what in ("attribute", "data"):
        lines.insert(0, "")  # or Napoleon takes what precedes a colon in the first line for a type
    for i, line in enumerate(lines):
        if not line.startswith(":"):
            texts, codes = CODE.split(line), CODE.findall(line)
            texts = [re.sub(r"(?<!\\)(\*|\||_(?!\w))", r"\\\1", text) for text in texts]
            lines[i] = "".join(part for pair in zip(texts, [*codes, ""], strict=True) for part in pair)


def skip_matplotlib(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: Any) -> bool | None:
    """Leave out what matplotlib adds to subclasses of its figures."""
    return True if getattr(obj, "__module__", "").startswith("matplotlib.") else None


def write_api_pages(app: Sphinx) -> None:
    """A page for every folder of the package, with a section for every module; `docs/api` is not kept in git."""
    for name, page in architecture.api_pages().items():
        file = DOCS / "api" / f"{name}.rst"
        file.parent.mkdir(exist_ok=True)
        if not file.is_file() or file.read_text() != page:
            file.write_text(page)


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_api_pages)
    app.connect("autodoc-skip-member", skip_matplotlib)
    app.connect("autodoc-process-docstring", escape_markup, priority=400)  # before napoleon makes markup of sections
