"""The study as one self-contained page: figures as SVG, sortable tables, and what every number means."""

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
from jinja2 import Environment
from markupsafe import Markup

from masklearn.density import Study
from masklearn.density.findings import RULES
from masklearn.report.glossary import RESULTS, Result
from masklearn.report.style import StudyFigure, svg, visible
from masklearn.version import masklearn_version

MOST_ROWS = 1000
"""Rows of a table on the page; the files have them all."""


@dataclass
class Shown:
    """A table as it stands on the page: text to read, and a value to sort by, for every cell."""

    name: str
    columns: list[str]
    rows: list[list[tuple[str, str]]]
    left_out: int


@dataclass
class Section:
    """One result: what it is, its figures, its tables, and what is missing."""

    result: Result
    figures: list[list[tuple[StudyFigure, Markup]]]
    """Those of each bank together, where banks have several."""
    tables: list[Shown]
    lines: list[Any] = field(default_factory=list)


def page(study: Study, drawn: Sequence[StudyFigure], config: dict[str, dict[str, Any]]) -> str:
    """The page. Whatever comes from texts, models and settings is escaped; the figures' drawings are ours."""
    assets = files("masklearn.report")
    style, script = (assets.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"zip": zip, "visible": visible}
    template = environment.from_string(assets.joinpath("page.html").read_text(encoding="utf-8"))
    settings = {name: yaml.safe_dump(given, sort_keys=False, allow_unicode=True) for name, given in config.items()}
    return template.render(
        style=Markup(style),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title="Computation density: " + ", ".join(bank.name for bank in study.banks),
        study=study,
        findings=study.tables["findings"].to_dict("records"),
        rules=RULES,
        banks=study.tables["banks"].set_index("bank").map(_cell).T,
        sections=[_section(result, study, drawn) for result in RESULTS],
        settings=settings,
        version=masklearn_version(),
    )


def _section(result: Result, study: Study, drawn: Sequence[StudyFigure]) -> Section:
    own = [(i, figure) for i, figure in enumerate(drawn) if figure.result in result.figures]
    pairs = [(figure, Markup(svg(figure, f"f{i}"))) for i, figure in own]  # matplotlib has escaped its texts
    several = len(pairs) > len({figure.bank for figure, _ in pairs})
    figures = [list(group) for _, group in groupby(pairs, key=lambda pair: several and pair[0].bank)]
    tables = [_shown(name, study.tables[name]) for name in result.tables if len(study.tables[name])]
    lines = []
    if "by_token" in result.tables and len(study.tables["by_token"]):
        lines = _texts(study.tables["by_token"])
    return Section(result, figures, tables, lines)


def _shown(name: str, table: pd.DataFrame) -> Shown:
    rows = [
        [(_cell(value), _key(value)) for value in row]
        for row in table.head(MOST_ROWS).itertuples(index=False, name=None)
    ]
    return Shown(name, [str(column) for column in table.columns], rows, max(0, len(table) - MOST_ROWS))


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _cell(value: Any) -> str:
    if _missing(value):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return visible(value) if isinstance(value, str) and not value.strip() else str(value)


def _key(value: Any) -> str:
    return "" if _missing(value) else repr(value) if isinstance(value, float) else str(value)


def _texts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Texts for the page, every token with a strength from 0 to 1, its density over the bank's largest; and a scale."""
    texts = []
    for bank, rows in table.groupby("bank", sort=False):
        largest = max(rows["density"].fillna(0)) or 1.0
        strength = (rows["density"] / largest).fillna(0).clip(lower=0)
        cells = zip(rows["text"], rows["token"], rows["density"], strength, strict=True)
        for text, tokens in groupby(cells, key=lambda cell: cell[0]):
            scale = [(largest * i / 4, i / 4) for i in range(5)]
            texts.append({"bank": bank, "text": text, "tokens": [cell[1:] for cell in tokens], "scale": scale})
    return texts
