"""Tables to figures. Needs the `report` extra (matplotlib)."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, FigureBase

from masklearn.files import atomic_write
from masklearn.mask_file import Mask

LEARNED, CONTROL, CLOSED = "#0072b2", "#999999", "#eeeeee"
"""Okabe and Ito's colour-blind safe blue, and greys."""
STYLE = {"dpi": 150, "layout": "constrained"}


ACROSS = 5
"""Masks side by side."""


def overview(mask: Mask, rows: Sequence[dict[str, Any]]) -> Figure:
    """The masks above, what they are worth below."""
    _, high = _mask_inches(mask)
    figure = Figure(figsize=(7.0, high + 2.6), **STYLE)
    halves = figure.subfigures(2, 1, height_ratios=(high, 2.6), squeeze=False)
    draw_masks(halves[0, 0], mask)
    draw_curves(halves[1, 0], rows)
    return figure


def mask_picture(mask: Mask) -> Figure:
    """The masks of every size on their own."""
    figure = Figure(figsize=_mask_inches(mask), **STYLE)
    draw_masks(figure, mask)
    return figure


def _mask_inches(mask: Mask) -> tuple[float, float]:
    down, across = _grid(mask)
    wide, high = 0.5 + 0.11 * (mask.graph.n_heads + 1), 0.5 + 0.14 * mask.graph.n_layers
    return across * max(wide, 1.4), down * max(high, 1.1)


def _grid(mask: Mask) -> tuple[int, int]:
    across = min(ACROSS, len(mask.sizes))
    return -(-len(mask.sizes) // across), across


def draw_masks(figure: FigureBase, mask: Mask) -> None:
    """Which nodes the masks of every size keep, the darker the more groups do: layers upwards, heads, then the MLP."""
    sizes = mask.sizes.tolist()
    grid = figure.subplots(*_grid(mask), squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i >= len(sizes):
            axes.set_visible(False)
            continue
        _picture(axes, mask, i)
        axes.set_title(f"{sizes[i]} of {mask.graph.n_nodes} nodes", fontsize=8)
        if i % ACROSS == 0:
            axes.set_ylabel("layer", fontsize=8)


def _picture(axes: Axes, mask: Mask, size: int) -> None:
    graph = mask.graph
    kept = graph.by_layer(mask.share()[size]).numpy()
    colours = LinearSegmentedColormap.from_list("share", [CLOSED, LEARNED])
    axes.pcolormesh(kept, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=0.6)
    axes.axvline(graph.n_heads, color="black", linewidth=0.8)
    heads, layers = (
        range(0, graph.n_heads, max(1, graph.n_heads // 4)),
        range(0, graph.n_layers, max(1, graph.n_layers // 8)),
    )
    axes.set_xticks([h + 0.5 for h in heads] + [graph.n_heads + 0.5], [*(f"h{h}" for h in heads), "mlp"], fontsize=6)
    axes.set_yticks([layer + 0.5 for layer in layers], [str(layer) for layer in layers], fontsize=6)
    axes.tick_params(length=0)
    axes.set_frame_on(False)


def size_curve(rows: Sequence[dict[str, Any]]) -> Figure:
    """The curves on their own."""
    figure = Figure(figsize=(7.0, 2.6), **STYLE)
    draw_curves(figure, rows)
    return figure


def draw_curves(figure: FigureBase, rows: Sequence[dict[str, Any]]) -> None:
    """KL and TV of the learned subgraphs against their size, beside random subgraphs of the same size."""
    share = [100 * row["fraction"] for row in rows]
    labels = {"kl": "KL from the full model\n(nats per token)", "tv": "TV distance"}
    panels: list[Axes] = list(figure.subplots(1, 2))
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        random = [row["controls"]["random"] for row in rows]
        mean, std = ([r[f"{name}_{of}"] for r in random] for of in ("mean", "std"))
        low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
        top = 1.0 if name == "tv" else math.inf
        axes.fill_between(
            share, [max(0, v) for v in low], [min(top, v) for v in high], color=CONTROL, alpha=0.3, linewidth=0
        )
        axes.plot(share, mean, color=CONTROL, linestyle="--", label=f"random (mean ± sd of {random[0]['n']})")
        axes.plot(share, [row[name] for row in rows], color=LEARNED, marker="o", markersize=3, label="learned")
        axes.set_xlabel("nodes kept (% of all)", fontsize=8)
        axes.set_ylabel(label, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    panels[-1].legend(fontsize=7, frameon=False)


def write_figures(folder: Path, mask: Mask, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """Draw a run's figures into its folder, and say which."""
    paths = []
    for name, figure in {
        "overview": overview(mask, rows),
        "masks": mask_picture(mask),
        "curve": size_curve(rows),
    }.items():
        paths.append(folder / f"{name}.png")
        content = io.BytesIO()
        figure.savefig(content)
        atomic_write(paths[-1], content.getvalue())
    return paths
