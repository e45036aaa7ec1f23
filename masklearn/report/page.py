"""The study as one self-contained page: figures as SVG, sortable tables, and definitions of every number."""

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import groupby
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from masklearn.density import Study
from masklearn.density.findings import RULES
from masklearn.report.glossary import PAGE_SECTIONS, Result
from masklearn.report.study_figure import StudyFigure, inline_svg
from masklearn.report.style import visible
from masklearn.version import masklearn_version

MAX_TABLE_ROWS = 1000
"""Rows of a table on the page; the files hold all rows."""
N_SCALE_STEPS = 4
"""Steps of the colour scale above coloured texts."""


@dataclass
class TableView:
    """A table on the page: for every cell, the text to read and the value to sort by."""

    name: str
    columns: list[str]
    rows: list[list[tuple[str, str]]]
    n_omitted: int
    """Rows that are in the file only."""


@dataclass
class Section:
    """One result with its figures and tables."""

    result: Result
    figures: list[list[tuple[StudyFigure, Markup]]]
    """Figures with their SVG, grouped by bank if a bank has several."""
    tables: list[TableView]
    texts: list[dict[str, Any]] = field(default_factory=list)
    """Texts coloured by the density of their tokens."""


def page(study: Study, study_figures: Sequence[StudyFigure], config: dict[str, dict[str, Any]]) -> str:
    """Return the page as HTML. All strings from texts, models and settings are escaped.

    Args:
        study: The study.
        study_figures: Its figures.
        config: The settings of the run that learned each bank, by the bank's name.
    """
    settings = {name: yaml.safe_dump(given, sort_keys=False, allow_unicode=True) for name, given in config.items()}
    return render_page(
        "page.html",
        {
            "title": "Computation density: " + ", ".join(measured.name for measured in study.measurements),
            "study": study,
            "findings": study.tables["findings"].to_dict("records"),
            "rules": RULES,
            "banks": study.tables["banks"].set_index("bank").map(_cell_text).T,
            "sections": [_section(result, study, study_figures) for result in PAGE_SECTIONS],
            "settings": settings,
        },
    )


def render_page(template: str, content: dict[str, Any]) -> str:
    """Return a page as HTML, with the style and the script of all pages. All strings are escaped.

    Args:
        template: Its file among the templates.
        content: What the template shows.
    """
    assets = files("masklearn.report")
    style, script = (assets.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    loader = PackageLoader("masklearn.report", "")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"zip": zip, "visible": visible, "cell": _cell_text}
    return environment.get_template(template).render(
        style=Markup(style),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=masklearn_version(),
        **content,
    )


def _section(result: Result, study: Study, study_figures: Sequence[StudyFigure]) -> Section:
    of_result = [(i, one) for i, one in enumerate(study_figures) if one.result in result.figures]
    pairs = [(one, Markup(inline_svg(one, f"f{i}"))) for i, one in of_result]  # matplotlib escapes text in SVG
    several_of_a_bank = len(pairs) > len({one.bank for one, _ in pairs})
    figures = [list(group) for _, group in groupby(pairs, key=lambda pair: several_of_a_bank and pair[0].bank)]
    tables = [table_view(name, study.tables[name]) for name in result.tables if len(study.tables[name])]
    texts = _coloured_texts(study.tables["by_token"]) if "by_token" in result.tables else []
    return Section(result, figures, tables, texts)


def table_view(name: str, table: pd.DataFrame) -> TableView:
    """Return a table for the page, cut to `MAX_TABLE_ROWS` rows."""
    rows = [
        [(_cell_text(value), _sort_key(value)) for value in row]
        for row in table.head(MAX_TABLE_ROWS).itertuples(index=False, name=None)
    ]
    return TableView(name, [str(column) for column in table.columns], rows, max(0, len(table) - MAX_TABLE_ROWS))


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _cell_text(value: Any) -> str:
    if _missing(value):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return visible(value) if isinstance(value, str) and not value.strip() else str(value)


def _sort_key(value: Any) -> str:
    return "" if _missing(value) else repr(value) if isinstance(value, float) else str(value)


def _coloured_texts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return every text of the table `by_token` as (token, density, strength) triples, with its colour scale.

    The strength of a token's colour is its density over the largest density of the bank, from 0 to 1.
    """
    texts = []
    for bank, rows in table.groupby("bank", sort=False):
        density = rows["normalized_density"]
        largest = max(density.fillna(0)) or 1.0
        strength = (density / largest).fillna(0).clip(lower=0)
        scale = [(largest * i / N_SCALE_STEPS, i / N_SCALE_STEPS) for i in range(N_SCALE_STEPS + 1)]
        cells = zip(rows["text"], rows["token"], density, strength, strict=True)
        for text, tokens in groupby(cells, key=lambda cell: cell[0]):
            texts.append({"bank": bank, "text": text, "tokens": [cell[1:] for cell in tokens], "scale": scale})
    return texts
