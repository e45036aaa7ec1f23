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
from masklearn.density.headline import headline
from masklearn.report.glossary import PAGE_SECTIONS, Result
from masklearn.report.picker import picker_json
from masklearn.report.study_figure import FIRST_FIGURE, StudyFigure, file_stems, inline_svg
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
class PageFigure:
    """A figure on the page."""

    one: StudyFigure
    anchor: str
    """Its id, by which it is linked to."""
    svg: Markup


@dataclass
class Section:
    """One result with its figures and tables."""

    result: Result
    figures: list[list["PageFigure"]]
    """Figures, grouped by bank if a bank has several."""
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
    stems = file_stems([measured.name for measured in study.measurements])
    anchors = [f"figure-{one.name if one.bank == 'all' else f'{stems[one.bank]}-{one.name}'}" for one in study_figures]
    shown = [  # matplotlib escapes text in SVG
        PageFigure(one, anchor, Markup(inline_svg(one, f"f{i}")))
        for i, (one, anchor) in enumerate(zip(study_figures, anchors, strict=True))
    ]
    settings = {name: yaml.safe_dump(given, sort_keys=False, allow_unicode=True) for name, given in config.items()}
    return render_page(
        "page.html",
        {
            "title": "Computation density: " + ", ".join(measured.name for measured in study.measurements),
            "study": study,
            "headline": headline(study.measurements),
            "first_figure": next((figure for figure in shown if figure.one.result == FIRST_FIGURE), None),
            "picker": Markup(picker_json(study)) if study.pickable else "",
            "findings": study.tables["findings"].to_dict("records"),
            "rules": RULES,
            "banks": study.tables["banks"].set_index("bank").map(_cell_text).T,
            "sections": [_section(result, study, shown) for result in PAGE_SECTIONS],
            "settings": settings,
        },
        scripts=("page.js", "token_map_data.js", "token_map.js", "picker.js"),
    )


def render_page(template: str, content: dict[str, Any], scripts: Sequence[str] = ("page.js",)) -> str:
    """Return a page as HTML, with the style and the script of all pages. All strings are escaped.

    Args:
        template: Its file among the templates.
        content: What the template shows.
        scripts: Files of its script.
    """
    assets = files("masklearn.report")
    style, *parts = (assets.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", *scripts))
    script = "".join(parts)
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


def _section(result: Result, study: Study, shown: Sequence[PageFigure]) -> Section:
    of_result = [figure for figure in shown if figure.one.result in result.figures]
    several_of_a_bank = len(of_result) > len({figure.one.bank for figure in of_result})
    groups = groupby(of_result, key=lambda figure: several_of_a_bank and figure.one.bank)
    figures = [list(group) for _, group in groups]
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
    return "" if _missing(value) else f"{value:.6g}" if isinstance(value, float) else str(value)


def _coloured_texts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return every text of the table `by_token` as (token, density, strength, is answer), with its colour scale.

    The strength of a token's colour is its density over the largest density of the bank, from 0 to 1.
    """
    texts = []
    for bank, rows in table.groupby("bank", sort=False):
        density = rows["normalized_density"]
        largest = max(density.fillna(0)) or 1.0
        strength = (density / largest).fillna(0).clip(lower=0)
        scale = [(largest * i / N_SCALE_STEPS, i / N_SCALE_STEPS) for i in range(N_SCALE_STEPS + 1)]
        is_answer = rows["part"] == "answer" if "part" in rows else [False] * len(rows)
        cells = zip(rows["text"], rows["token"], density, strength, is_answer, strict=True)
        for text, tokens in groupby(cells, key=lambda cell: cell[0]):
            texts.append({"bank": bank, "text": text, "tokens": [cell[1:] for cell in tokens], "scale": scale})
    return texts
