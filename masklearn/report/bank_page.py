"""A page about one bank: its masks as a figure, its metrics as a table, and the nodes that every mask keeps."""

import base64
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from masklearn.mask_file import Mask
from masklearn.report.run import overview
from masklearn.report.style import SCREEN_DPI, ShownFigure, styled
from masklearn.version import masklearn_version


def run_overview(mask: Mask, rows: Sequence[dict[str, Any]]) -> ShownFigure:
    """Create the figure of the masks with the curves below, in our style."""
    with styled():
        return overview(mask, rows)


def png_element(figure: ShownFigure) -> str:
    """Return a figure as an image element of HTML."""
    content, width = base64.b64encode(figure.png()).decode(), round(figure.get_size_inches()[0] * SCREEN_DPI)
    alt = "Masks, and KL and TV against size"
    return f'<img alt="{alt}" width="{width}" style="max-width:100%" src="data:image/png;base64,{content}">'


def bank_page(mask: Mask, rows: Sequence[dict[str, Any]], description: str, table: str) -> str:
    """Return the page as HTML.

    Args:
        mask: The masks.
        rows: One per size, as in `metrics.json`.
        description: The masks and the texts in a sentence.
        table: The metrics as a table of HTML.
    """
    style = files("masklearn.report").joinpath("page.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>Masks of {escape(mask.model.lm)}</title>
<style>{style}</style>
</head>
<body>
<header><h1>Masks of {escape(mask.model.lm)}</h1>
<p>{escape(description)}. Made with masklearn {masklearn_version()}.</p></header>
<main>
<section><h2>Masks and curves</h2><p style="background:#fff">{png_element(run_overview(mask, rows))}</p></section>
<section><h2>Metrics</h2><p>KL, JS and CE in nats per scored token; random subgraphs as mean ± standard deviation.</p>
<div class="scroll">{table}</div></section>
{_node_lists(mask)}
</main>
</body>
</html>
"""


def _node_lists(mask: Mask) -> str:
    """The nodes of every mask; nothing if groups have masks of their own, of which there may be many."""
    if len(mask.groups) > 1:
        return ""
    lines = []
    for size, kept in zip(mask.sizes.tolist(), mask.mask[0].tolist(), strict=True):
        names = ", ".join(name for name, keep in zip(mask.graph.names, kept, strict=True) if keep)
        lines.append(f"<dt>{size} nodes</dt><dd>{names}</dd>")
    return f"<section><h2>Nodes kept</h2><dl>{''.join(lines)}</dl></section>"
