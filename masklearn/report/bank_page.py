"""A page about one bank: curves, masks, metrics, controls, stages from gates to masks, and settings."""

import base64
from collections.abc import Sequence
from typing import Any

import pandas as pd
import yaml
from markupsafe import Markup

from masklearn.mask_file import Mask
from masklearn.report.page import PageFigure, TableView, render_page, table_view
from masklearn.report.run import curve_figure, mask_figure, overview
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


def bank_page(mask: Mask | TextBank, described: dict[str, Any], description: str) -> str:
    """Return the page as HTML. All strings from texts, models and settings are escaped.

    Args:
        mask: The bank.
        described: The content of `metrics.json`.
        description: The bank and the texts in a sentence.
    """
    return render_page(
        "run.html",
        {
            "title": f"{'Masks' if isinstance(mask, Mask) else mask.unit.capitalize()} of {mask.model.lm}",
            "description": description,
            "figures": _figures(mask, described["sizes"]),
            "tables": _tables(mask, described),
            "nodes": _node_lists(mask),
            "settings": yaml.safe_dump(mask.config, sort_keys=False, allow_unicode=True),
        },
    )


def _figures(mask: Mask | TextBank, rows: Sequence[dict[str, Any]]) -> list[PageFigure]:
    own, unit = ("learned", "nodes") if isinstance(mask, Mask) else (mask.method, mask.unit)
    alt = f"KL and TV from the full model of {own} subgraphs and of controls, against the share of {unit} kept"
    with styled():
        found = [StudyFigure("curve", "curve", "all", alt, curve_figure(rows, own))]
        if isinstance(mask, Mask):
            many = "share of groups whose mask keeps each node" if len(mask.groups) > 1 else "nodes kept"
            masks = mask_figure(mask)
            found.append(StudyFigure("masks", "masks", "all", f"The {many}, by layer and head, at each size", masks))
        return [PageFigure(one, one.name, Markup(inline_svg(one, one.name))) for one in found]


def _tables(mask: Mask | TextBank, described: dict[str, Any]) -> list[tuple[str, str, TableView]]:
    """Title, explanation and table of every result."""
    objective = mask.config.get("model", {}).get("objective", "kl")
    loss = "KL" if objective == "kl" else f"Loss ({objective})"
    rows, costs = described["sizes"], [{"phase": phase} | cost for phase, cost in described.get("cost", {}).items()]
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
        "sizes": ("Metrics", "KL, JS and cross-entropy in nats per scored token, means over the texts.", scalars),
        "controls": ("Controls", "Other subgraphs of the same sizes, on the same texts.", controls),
        "stages": (
            "Stages",
            f"{loss} from gates to masks. soft: gates at their probability of being open; sampled: gates found at "
            "random; cut: the top s nodes; polished: after swaps of nodes.",
            described.get("discretisation", []),
        ),
        "groups": ("Groups", "KL and TV of each group's own masks on its texts.", groups),
        "cost": ("Cost", "Seconds by phase; of masks also scored tokens, and peak memory in bytes.", costs),
    }
    return [
        (title, explanation, table_view(name, pd.DataFrame(records)))
        for name, (title, explanation, records) in known.items()
        if records
    ]


def _node_lists(mask: Mask | TextBank) -> dict[str, str]:
    """The nodes of every mask by size, in words; empty for many groups, and for banks of single texts."""
    if not isinstance(mask, Mask) or len(mask.groups) > MAX_NODE_LISTS:
        return {}
    return {
        f"{size} nodes": ", ".join(name for name, keep in zip(mask.graph.names, kept, strict=True) if keep)
        for size, kept in zip(mask.sizes.tolist(), mask.mask[0].tolist(), strict=True)
    }
