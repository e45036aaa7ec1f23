"""The figures of a run, and the map of a mask that they share with the study and W&B."""

import re
from base64 import b64decode
from collections import Counter
from io import BytesIO
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.image import imread
from matplotlib.text import Text
from studies import GRAPH

import masklearn as ml
from masklearn.mask_file import ModelId
from masklearn.report.node_map import SHARE_COLORS, node_map_svg
from masklearn.report.run import mask_figure, overview
from masklearn.report.style import styled


def run_of(graph: ml.NodeGraph, n_sizes: int, n_groups: int = 1) -> tuple[ml.Mask, list[dict[str, Any]]]:
    """Nested random masks of evenly spaced sizes, and plausible results."""
    sizes = torch.linspace(1, graph.n_nodes - 1, n_sizes).long()
    order = torch.rand(n_groups, graph.n_nodes, generator=torch.Generator().manual_seed(0)).argsort(-1).argsort(-1)
    kept, model = order[:, None] < sizes[:, None], ModelId("a model", None, "f00d")
    groups = tuple(map(str, range(n_groups)))
    mask = ml.Mask(kept, torch.zeros(n_groups, 1, graph.n_nodes), sizes, graph, model, groups)
    random = {"n": 10, "kl_mean": 9.0, "kl_std": 1.0, "tv_mean": 0.97, "tv_std": 0.05}
    fractions = (sizes / graph.n_nodes).tolist()
    rows = [{"fraction": f, "kl": 8 * (1 - f), "tv": 1 - f, "controls": {"random": random}} for f in fractions]
    return mask, rows


@pytest.mark.parametrize("graph", [ml.NodeGraph(5, 8), ml.NodeGraph(18, 4), ml.NodeGraph(30, 9)], ids=str)
@pytest.mark.parametrize(("n_sizes", "n_groups"), [(1, 1), (5, 3), (12, 1)])
def test_no_two_labels_of_a_runs_figures_overlap(graph: ml.NodeGraph, n_sizes: int, n_groups: int) -> None:
    mask, rows = run_of(graph, n_sizes, n_groups)
    with styled():
        for figure in (overview(mask, rows), mask_figure(mask)):
            figure.draw_without_rendering()
            labels = [label for axes in figure.findobj(Axes) if axes.get_visible() for label in labels_of(axes)]
            boxes = {label: label.get_window_extent() for label in labels if label.get_text()}
            for (one, box), (other, other_box) in combinations(boxes.items(), 2):
                assert not box.overlaps(other_box), (one, other)
            assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes.values())


def test_results_that_are_not_finite_are_gaps_in_a_runs_curves() -> None:
    """At two of five sizes the mask, and at one of these its control too."""
    mask, rows = run_of(GRAPH, 5)
    of_control = dict.fromkeys(("kl_mean", "kl_std", "tv_mean", "tv_std"))
    rows[0] |= {"kl": None, "tv": None, "controls": {"random": {"n": 10} | of_control}}
    rows[2] |= {"kl": None, "tv": None}
    with styled():
        kl, tv = overview(mask, rows).subfigs[1].axes
    for axes in (kl, tv):
        control, own = (line.get_ydata() for line in axes.lines)
        assert np.isnan(own).tolist() == [True, False, True, False, False]
        assert np.isnan(control).tolist() == [True] + [False] * 4
    assert kl.get_ylim()[0] == pytest.approx(rows[4]["kl"] / 1.5)


def test_a_control_below_the_masks_is_within_the_axes() -> None:
    mask, rows = run_of(GRAPH, 5)
    for row in rows:
        row["controls"]["greedy"] = {"kl": row["kl"] / 10, "tv": row["tv"] / 10}
    with styled():
        kl = overview(mask, rows).subfigs[1].axes[0]
    assert kl.get_ylim()[0] == pytest.approx(rows[4]["kl"] / 15)


def labels_of(axes: Axes) -> list[Text]:
    """Title, axis labels and the visible tick labels within the limits of the axes."""
    labels = [axes.title, axes.xaxis.label, axes.yaxis.label]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        labels += [tick.label1 for tick in ticks if tick.label1.get_visible()]
    return labels


def test_the_node_map_as_svg_has_a_cell_for_every_node() -> None:
    """Of 20 nodes with shares 0, 1/2 and 1, each has the colour of its share."""
    share = torch.tensor([0.0] * 10 + [0.5] * 7 + [1.0] * 3)
    text = node_map_svg(GRAPH, share)
    assert ElementTree.fromstring(text).get("viewBox")
    (cells,) = re.findall(r'<image[^>]*base64,([^"]+)"', text)
    pixels = imread(BytesIO(b64decode(cells)))  # one for each node
    counts = Counter(tuple(color) for color in (255 * pixels).round().astype(int).reshape(-1, 4).tolist())
    assert counts == {SHARE_COLORS(value, bytes=True): n for value, n in ((0.0, 10), (0.5, 7), (1.0, 3))}
    assert node_map_svg(GRAPH, share) == text
