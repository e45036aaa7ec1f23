"""One bank as figures and as a page: curves, masks, metrics, controls, stages from gates to masks, and settings."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from markupsafe import Markup

from masklearn import evaluation
from masklearn.density.study_folder import FIGURES_FOLDER, REPORT_FILE
from masklearn.files import atomic_write
from masklearn.mask_file import Mask
from masklearn.report.page import PageFigure, TableView, render_page, table_view
from masklearn.report.run import overview, run_figures
from masklearn.report.study_figure import StudyFigure, inline_svg
from masklearn.report.style import SCREEN_DPI, ShownFigure, styled
from masklearn.text_bank import TextBank

MAX_NODE_LISTS = 1
"""Groups whose nodes are listed by name; of more groups the figure shows the shares."""


def run_overview(mask: Mask, rows: Sequence[dict[str, Any]]) -> ShownFigure:
    """Create the figure of the masks with the curves below, in our style."""
    with styled():
        return overview(mask, rows)


def png_element(figure: ShownFigure) -> str:
    """Return a figure as an image element of HTML."""
    content, width = base64.b64encode(figure.png()).decode(), round(figure.get_size_inches()[0] * SCREEN_DPI)
    alt = "Masks, and KL and TV against size"
    return f'<img alt="{alt}" width="{width}" style="max-width:100%" src="data:image/png;base64,{content}">'


def write_run(
    folder: Path, bank: Mask | TextBank, described: dict[str, Any], description: str
) -> tuple[list[Path], Path]:
    """Draw a run into its folder: every figure as `figures/NAME.png`, and `report.html`.

    Args:
        folder: The run's folder.
        bank: What was learned.
        described: The content of `metrics.json`.
        description: The bank and the texts in a sentence.

    Returns:
        The PNG files, and the page.
    """
    rows = described["sizes"]
    figures = run_figures(bank, rows)
    pictures = {"overview": run_overview(bank, rows)} | figures if isinstance(bank, Mask) else figures
    files = [folder / FIGURES_FOLDER / f"{name}.png" for name in pictures]
    with styled():
        for file, figure in zip(files, pictures.values(), strict=True):
            atomic_write(file, figure.png())
    atomic_write(folder / REPORT_FILE, bank_page(bank, described, description, figures).encode())
    return files, folder / REPORT_FILE


def bank_page(
    bank: Mask | TextBank,
    described: dict[str, Any],
    description: str,
    figures: Mapping[str, ShownFigure] | None = None,
) -> str:
    """Return the page as HTML. All strings from texts, models and settings are escaped.

    Args:
        bank: The bank.
        described: The content of `metrics.json`.
        description: The bank and the texts in a sentence.
        figures: What `run_figures` draws, if it is there already.
    """
    if figures is None:
        figures = run_figures(bank, described["sizes"])
    return render_page(
        "run.html",
        {
            "title": f"{'Masks' if isinstance(bank, Mask) else bank.unit.capitalize()} of {bank.model.lm}",
            "description": description,
            "figures": _figures(bank, figures),
            "tables": _tables(bank, described),
            "nodes": _node_lists(bank),
            "settings": yaml.safe_dump(bank.config, sort_keys=False, allow_unicode=True),
        },
    )


def _figures(bank: Mask | TextBank, figures: Mapping[str, ShownFigure]) -> list[PageFigure]:
    own, unit = ("learned", "nodes") if isinstance(bank, Mask) else (bank.method, bank.unit)
    many = "share of groups whose mask keeps each node" if len(bank.groups) > 1 else "nodes kept"
    shown = {
        "curve": f"KL and TV from the full model of {own} subgraphs and of controls, against the share of {unit} kept",
        "masks": f"The {many}, by layer and head, at each size",
    }
    found = [StudyFigure(name, name, "all", alt, figures[name]) for name, alt in shown.items() if name in figures]
    return [PageFigure(one, one.name, Markup(inline_svg(one, one.name))) for one in found]


def _tables(bank: Mask | TextBank, described: dict[str, Any]) -> list[tuple[str, str, TableView]]:
    """Title, explanation and table of every result."""
    objective = bank.config.get("model", {}).get("objective", "kl")
    loss = "KL" if objective == "kl" else f"Loss ({objective})"
    polishes = bank.config.get("model", {}).get("polish") != 0
    stages = evaluation.stages(described.get("discretisation", []), polishes)
    costs = described.get("cost", {})
    phases = [{"phase": evaluation.phase_title(phase, polishes)} | cost for phase, cost in costs.items()]
    rows = described["sizes"]
    scalars = [{key: value for key, value in row.items() if not isinstance(value, dict)} for row in rows]
    controls = [
        {"s": row["s"], "control": name, **control} for row in rows for name, control in row["controls"].items()
    ]
    groups = [
        {
            "group": name,
            **{f"{metric} s={row['s']}": by_size[metric][i] for metric in ("kl", "tv") for i, row in enumerate(rows)},
        }
        for name, by_size in described.get("groups", {}).items()
    ]
    known = {
        "sizes": ("Metrics", "KL, JS and cross-entropy in nats, means over all scored tokens of the texts.", scalars),
        "controls": (
            "Controls",
            "Other subgraphs of the same sizes, on the same texts; inverse: what the mask leaves out.",
            controls,
        ),
        "stages": (
            "Stages",
            f"{loss} from gates to masks. {evaluation.stages_legend(stages)}",
            stages,
        ),
        "groups": ("Groups", "KL and TV of each group's own masks on its texts.", groups),
        "cost": ("Cost", "Seconds by phase; of masks also scored tokens, and peak memory in bytes.", phases),
    }
    return [
        (title, explanation, table_view(name, pd.DataFrame(records)))
        for name, (title, explanation, records) in known.items()
        if records
    ]


def _node_lists(bank: Mask | TextBank) -> dict[str, str]:
    """The nodes of every mask by size, in words; empty for many groups, and for banks of single texts."""
    if not isinstance(bank, Mask) or len(bank.groups) > MAX_NODE_LISTS:
        return {}
    return {
        f"{size} nodes": ", ".join(name for name, keep in zip(bank.graph.names, kept, strict=True) if keep)
        for size, kept in zip(bank.sizes.tolist(), bank.mask[0].tolist(), strict=True)
    }
