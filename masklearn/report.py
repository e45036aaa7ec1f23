"""Tables to figures. Needs the `report` extra (matplotlib)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from masklearn.artifact import Mask

LEARNED, CONTROL, CLOSED = "#0072b2", "#999999", "#eeeeee"
"""Okabe and Ito's colour-blind safe blue, and greys."""
STYLE = {"dpi": 150, "layout": "constrained"}


def mask_picture(mask: Mask) -> Figure:
    """Which nodes the mask of every size keeps: layers upwards, heads and then the MLP to the right."""
    sizes = mask.sizes.tolist()
    graph = mask.graph
    across = min(5, len(sizes))
    down = -(-len(sizes) // across)
    wide, high = 0.9 + 0.12 * graph.n_heads, 0.9 + 0.14 * graph.n_layers
    figure = Figure(figsize=(across * max(wide, 1.5), down * max(high, 1.5)), **STYLE)
    grid = figure.subplots(down, across, squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i >= len(sizes):
            axes.set_visible(False)
            continue
        _picture(axes, mask, i)
        axes.set_title(f"{sizes[i]} of {graph.n_nodes} nodes", fontsize=8)
        if i % across == 0:
            axes.set_ylabel("layer", fontsize=8)
    return figure


def _picture(axes: Axes, mask: Mask, size: int) -> None:
    graph = mask.graph
    kept = graph.by_layer(mask.mask[0, size]).int().numpy()
    axes.pcolormesh(kept, cmap=ListedColormap([CLOSED, LEARNED]), vmin=0, vmax=1, edgecolors="white", linewidth=0.6)
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
    """KL and TV of the learned subgraphs against their size, beside random subgraphs of the same size."""
    figure = Figure(figsize=(6.4, 2.6), **STYLE)
    share = [100 * row["fraction"] for row in rows]
    labels = {"kl": "KL from the full model\n(nats per token)", "tv": "TV distance"}
    panels: list[Axes] = list(figure.subplots(1, 2))
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        random = [row["controls"]["random"] for row in rows]
        mean, std = ([r[f"{name}_{of}"] for r in random] for of in ("mean", "std"))
        low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
        axes.fill_between(share, [max(0, v) for v in low], high, color=CONTROL, alpha=0.3, linewidth=0)
        axes.plot(share, mean, color=CONTROL, linestyle="--", label=f"random (mean ± sd of {random[0]['n']})")
        axes.plot(share, [row[name] for row in rows], color=LEARNED, marker="o", markersize=3, label="learned")
        axes.set_xlabel("nodes kept (% of all)", fontsize=8)
        axes.set_ylabel(label, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    panels[-1].legend(fontsize=7, frameon=False)
    return figure


def write_figures(folder: Path, mask: Mask, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """Draw a run's figures into its folder, and say which."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in {"masks": mask_picture(mask), "curve": size_curve(rows)}.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1])
    return paths
