"""Learned edges beside s-Trace: TV from the full model at every size, text by text, with the seconds of both."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from matplotlib.axes import Axes
from setting import Setting, quiet_trainer
from timing import machine, now, read_results, write_results
from torch import Tensor

from masklearn.edges import EdgeLM, edge_counts, grow, importance, verified_edge_lm
from masklearn.evaluation import scored_text
from masklearn.evaluation.edge_report import subgraphs_hidden
from masklearn.evaluation.metrics import tv_distance
from masklearn.models import Layout, load_lm
from masklearn.objective import log_probabilities
from masklearn.report.style import ShownFigure, line_style, size_axis, styled
from masklearn.training.edge_learner import EdgeLearnerConfig, learn_edges
from masklearn.training.text_learner import TEXT_STEPS

MIN_TV = 1e-6
"""TV that ratios take as the least."""


def measure_text(edge_lm: EdgeLM, ids: Tensor, shares: Sequence[float], steps: int) -> dict[str, Any]:
    """Return tokens, edges, and TV at every size and seconds of both methods."""
    start = now()
    found = importance(edge_lm, ids)
    order, counts = grow(found.graph, found.weights, found.graph.n_edges), edge_counts(shares, found.graph.n_edges)
    grown = now()
    learned = learn_edges(edge_lm, ids, found, shares, EdgeLearnerConfig(steps=steps))
    seconds = {"s-trace": grown - start, "learned": now() - grown}
    full = log_probabilities(edge_lm.full(ids)[None], edge_lm.layout.unembed)
    tv = dict[str, list[float]]()
    for kind, kept in {"s-trace": [order[:n] for n in counts], "learned": learned}.items():
        hidden = subgraphs_hidden(partial(edge_lm.hidden, ids), found.graph, kept, edge_lm.device)
        masked = log_probabilities(hidden, edge_lm.layout.unembed)
        tv[kind] = tv_distance(full, masked).tolist()
    return {"tokens": len(ids), "edges": found.graph.n_edges, "seconds": seconds, "tv": tv}


def mean_and_ratio(texts: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the mean TV of both methods, and the geometric mean of learned over s-Trace, at every size."""
    by_kind = {kind: torch.tensor([text["tv"][kind] for text in texts]) for kind in ("learned", "s-trace")}
    ratio = by_kind["learned"].clamp_min(MIN_TV) / by_kind["s-trace"].clamp_min(MIN_TV)
    means = {kind: tv.mean(0).tolist() for kind, tv in by_kind.items()}
    return means | {"ratio": ratio.log().mean(0).exp().tolist()}


def draw(results: Sequence[dict[str, Any]], out: Path) -> None:
    """Draw the TV of both methods against size, a panel for each result: lines are means, dots single texts."""
    with styled():
        figure = ShownFigure(figsize=(2.6 * len(results), 2.4), layout="constrained")
        panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
        for axes, result in zip(panels, results, strict=True):
            _draw_panel(axes, result)
        panels[0].set_ylabel("TV from the full model")
        panels[0].legend()
        figure.savefig(out, dpi=200)


def _draw_panel(axes: Axes, result: dict[str, Any]) -> None:
    for kind, name in {"learned": "learned", "s-trace": "s-Trace"}.items():
        style = line_style(kind)
        axes.plot(result["shares"], result["mean"][kind], label=name, **style)
        for text in result["texts"]:
            axes.plot(result["shares"], text["tv"][kind], ".", color=style["color"], alpha=0.35, markersize=2)
    size_axis(axes, min(result["shares"]), "edges")
    axes.set(ylim=(0, 1.02), title=result["setting"])


def main(
    setting: Setting = Setting(),
    inputs: int = 8,
    tokens: int = 40,
    shares: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5),
    steps: int = TEXT_STEPS["edges"],
    beside: list[Path] | None = None,
    figure: Path | None = None,
    out: Path | None = None,
) -> None:
    """Learn the edges of single texts, print both methods text by text, and draw TV against size.

    Args:
        setting: Model and texts.
        inputs: Texts; 0 only draws.
        tokens: Tokens of a text, at most; the last one's prediction counts.
        shares: Sizes as shares of the edges.
        steps: Steps of learning.
        beside: JSON files of earlier results, drawn beside this one.
        figure: Image file to draw.
        out: JSON file to write.
    """
    print(machine())
    results = read_results(beside)
    if inputs:
        quiet_trainer()
        edge_lm = verified_edge_lm(Layout.of(load_lm(setting.lm)))
        data = setting.data(scope="input", positions="last", limit=inputs, max_length=tokens, truncation="left")
        data.prepare_data()
        data.setup()
        texts = list[dict[str, Any]]()
        for index in range(len(data.parts["test"])):
            texts.append(measure_text(edge_lm, scored_text(data, "test", index).input_ids, shares, steps))
            print(texts[-1], flush=True)
        result = {"setting": str(setting), "shares": shares, "texts": texts, "mean": mean_and_ratio(texts)}
        print(*(f"{kind}: {' '.join(f'{v:.3f}' for v in row)}" for kind, row in result["mean"].items()), sep="\n")
        write_results(result, out)
        results.append(result)
    if figure:
        draw(results, figure)


if __name__ == "__main__":
    auto_cli(main)
