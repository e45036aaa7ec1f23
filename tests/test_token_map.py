"""Edges and positions of single texts in the page's picker: the numbers it holds, and what a browser draws of them."""

import base64
import html
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from browser import PHONE, chromium, framed
from studies import GRAPH, falling, measured, of_edges, resample_little
from torch import Tensor

import masklearn as ml
from masklearn import density
from masklearn.density import MaskMeasurements, TopTokens
from masklearn.edges import EdgeGraph
from masklearn.evaluation.per_text import PerTextResults
from masklearn.evaluation.text_report import PART_COUNTS, WHOLE_PART_COUNTS
from masklearn.mask_file import ModelId
from masklearn.report import token_map
from masklearn.report.page import page
from masklearn.report.token_map import counted, gaps, pack_numbers, token_maps
from masklearn.text_bank import EdgeBank, PositionBank, TextBank

MODEL = ModelId("a model", None, "f00d")
WORDS = [" deep", " <b>", "\n", " sea"]
"""The tokens of every text."""
N = len(WORDS)


def bank_of(kind: type[TextBank], kept: Sequence[Sequence[int]], graph: ml.NodeGraph, n_tokens: int) -> TextBank:
    """A bank of one text."""
    shares = tuple((i + 1) / 10 for i in range(len(kept)))
    return kind((tuple(map(torch.tensor, kept)),), shares, (n_tokens,), (50,), graph, MODEL, ("0",), "learned")


def test_numbers_are_packed_as_worked_out_by_hand() -> None:
    """128 is 0 and then 1 x 128; 300 is 44 and then 2 x 128."""
    packed = base64.b64decode(pack_numbers([0, 127, 128, 300]))
    assert list(packed) == [0, 127, 128 + 0, 1, 128 + 44, 2]
    assert gaps([2, 5, 9]) == [2, 3, 4]
    assert gaps([]) == []


def test_edges_of_two_layers_are_counted_as_worked_out_by_hand() -> None:
    """Two layers of one head and two tokens.

    A layer has 4 places for the attention (targets x sources), then 2 each for the MLP, the residual past the attention
    and the residual past the MLP.
    """
    kept = [2, 5, 9, 13, 17, 19]
    names = ["a0.h0 reads 0 at 1", "m0 at 1", "past m0 at 1", "a1.h0 reads 1 at 1", "past the attention", "past m1"]
    assert len(kept) == len(names)
    bank = bank_of(EdgeBank, [kept], ml.NodeGraph(2, 1), 2)
    assert counted(bank, 2, torch.tensor(kept)) == [0, 8 + 2 + 4, 0, 8 + 1 + 4]
    assert token_maps(bank, 0, 100) == [("listed", pack_numbers([2, 3, 4, 4, 4, 2]))]


def test_positions_of_two_layers_are_counted_as_worked_out_by_hand() -> None:
    """Two tokens with a0.h0, m0, a1.h0 and m1 each: a0.h0 at the first, m0 and a1.h0 at the second."""
    bank = bank_of(PositionBank, [[0, 5, 6]], ml.NodeGraph(2, 1), 2)
    assert counted(bank, 2, torch.tensor([0, 5, 6])) == [8, 2, 0, 8]


def test_large_subgraphs_are_counted_and_the_page_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_map, "MAX_LISTED", 2)
    kept = [[2], [2, 5], [2, 5, 9], [2, 5, 9, 13]]
    bank = bank_of(EdgeBank, kept, ml.NodeGraph(2, 1), 2)

    def shown(max_numbers: int) -> list[str | None]:
        return [found and found[0] for found in token_maps(bank, 0, max_numbers)]

    assert shown(11) == ["listed", "listed", "counted", "counted"]  # 1 + 2 + 4 + 4 numbers
    assert shown(10) == ["listed", "listed", "counted", None]
    assert shown(1) == ["listed", None, None, None]


def edges_of(gates: Tensor, graph: EdgeGraph) -> list[list[str]]:
    """The rows of the picker's table, from the gates of one subgraph by kind."""
    found, rows = graph.gates(gates[None]), list[list[str]]()
    words = [f"{i + 1} “{word.strip() or '↵'}”" for i, word in enumerate(WORDS)]
    for layer in reversed(range(graph.n_layers)):
        for target in reversed(range(N)):
            for source in reversed(range(N)):
                names = [f"a{layer}.h{h}" for h in range(GRAPH.n_heads) if found.attention[0, layer, h, target, source]]
                if source == target:
                    past = "residual" if graph.parallel else "residual past the attention"
                    names += [f"m{layer}"] * bool(found.mlp[0, layer, target])
                    names += [past] * bool(found.residual_attention[0, layer, target])
                    names += ["residual past the MLP"] * bool(found.residual_mlp[0, layer, target])
                if names:
                    rows.append([str(layer), words[source], words[target], ", ".join(names)])
    return rows


def random_edges(parallel: bool) -> tuple[EdgeGraph, list[Tensor]]:
    """Ascending random edges of four tokens at four sizes."""
    graph = EdgeGraph.causal(GRAPH.n_layers, GRAPH.n_heads, N, parallel)
    exists = graph.exists.nonzero()[:, 0]
    order = exists[torch.randperm(len(exists), generator=torch.Generator().manual_seed(int(parallel)))]
    return graph, [order[:n].sort().values for n in (5, 20, 40, 90)]


def edge_measurements(name: str, kept: list[Tensor], parallel: bool) -> MaskMeasurements:
    """Measurements of a bank of two texts with the same edges."""
    one = of_edges(measured(falling(2), name), method="learned")
    return replace(one, mask=replace(one.mask, kept=(tuple(kept),) * 2, parallel=parallel))


def position_measurements(kept: list[Tensor]) -> MaskMeasurements:
    """Measurements of a bank of two texts with the same positions."""
    one = edge_measurements("positions", kept, False)
    assert isinstance(one.mask, EdgeBank)
    bank = PositionBank((tuple(kept),) * 2, one.mask.shares, (N, N), (70, 70), GRAPH, MODEL, ("0", "1"), "learned")
    two = {key: one.results["learned"].texts[key][..., :2] for key in (PART_COUNTS, WHOLE_PART_COUNTS)}
    found = {kind: PerTextResults(results.masks, {**results.texts, **two}) for kind, results in one.results.items()}
    return replace(one, mask=bank, results=found)


PROBE = """
addEventListener('load', () => {
  const form = document.querySelector('form.picker'), map = document.querySelector('.token-map');
  const svg = map.querySelector('svg'), frame = map.querySelector('.frame'), details = map.querySelector('details');
  details.open = true;
  details.dispatchEvent(new Event('toggle'));
  const texts = (elements) => [...elements].map((element) => element.textContent);
  const cells = () => [...map.querySelectorAll('tbody tr')].map((row) => texts(row.cells));
  const info = () => map.querySelector('.picked-pair').textContent;
  const key = (name) => { frame.dispatchEvent(new KeyboardEvent('keydown', { key: name })); return info(); };
  const ofPath = (path) => path.getAttribute('d').match(/M/g).length;
  const marks = (kind) => [...svg.querySelectorAll(`path.${kind}`)].map(ofPath).reduce((a, b) => a + b, 0);
  const pick = (bank, size) => {
    form.elements.bank.value = bank;
    form.elements.bank.dispatchEvent(new Event('change'));
    form.elements.size.value = size;
    form.elements.size.dispatchEvent(new Event('input'));
    return { hidden: map.hidden, rows: cells(), table: !details.hidden,
      note: map.querySelector('.picked-note').textContent,
      marks: ['attention', 'mlp', 'residual'].map(marks), bold: svg.querySelectorAll('b').length, hint: info(),
      keys: [key('ArrowRight'), key('ArrowRight'), key('ArrowLeft'), key('ArrowLeft')] };
  };
  const picked = [...form.elements.bank.options].map((_, bank) => [0, 1, 2, 3, 4].map((size) => pick(bank, size)));
  pick(1, 0);
  const lines = [...svg.querySelectorAll('path.mlp, path.residual, path.attention')];
  const box = lines[0].getBoundingClientRect();
  const at = { clientX: box.left + box.width / 2, clientY: box.top + 2, bubbles: true };
  svg.dispatchEvent(new PointerEvent('pointermove', at));
  const wide = document.documentElement.scrollWidth - innerWidth;
  parent.postMessage(JSON.stringify({ picked, pointed: info(), wide }), '*');
});"""


class Shown(NamedTuple):
    """A page with a picker, and what its banks keep."""

    text: str
    edges: list[tuple[EdgeGraph, list[Tensor]]]
    """Of sequential and of parallel layers, by size."""
    positions: list[Tensor]


@pytest.fixture(scope="module")
def shown() -> Shown:
    """Nodes, edges of sequential and of parallel layers, and positions; the largest size is counted."""
    graphs = [random_edges(parallel) for parallel in (False, True)]
    order = torch.randperm(N * GRAPH.n_nodes, generator=torch.Generator().manual_seed(0))
    kept = [order[:n].sort().values for n in (3, 10, 30, 60)]
    banks = [
        measured(falling(2), "nodes"),
        *(edge_measurements(f"edges {i}", ids, graph.parallel) for i, (graph, ids) in enumerate(graphs)),
        position_measurements(kept),
    ]
    top = {"learned": [[(" a", 0.5)]] * 5}
    inputs = {one.name: [TopTokens(name, "a text", [], top, WORDS) for name in one.names] for one in banks}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_map, "MAX_LISTED", 50)
        resample_little(patch)
        return Shown(page(density.study(banks, pickable=inputs), [], {}), graphs, kept)


def test_a_browser_draws_and_lists_what_the_bank_keeps(shown: Shown, tmp_path: Path) -> None:
    """On a phone, where the drawing scrolls inside its frame."""
    probed = tmp_path / "probed.html"
    text = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", shown.text)
    probed.write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"))
    visit = chromium(framed(probed, PHONE, 900), "--window-size=1200,900", "--dump-dom")
    match = re.search(r'<pre id="found">(.*?)</pre>', visit.output, flags=re.S)
    assert match and visit.console == [], visit.console
    found = json.loads(html.unescape(match.group(1)))
    assert found["wide"] <= 0
    assert re.match(r"Layer \d, (at|from) \d “", found["pointed"])
    nodes, *edges, positions = found["picked"]
    assert all(one["hidden"] for one in nodes)
    for (graph, ids), picked in zip(shown.edges, edges, strict=True):
        require_edges(graph, ids, picked)
    require_positions(shown.positions, positions)


def require_edges(graph: EdgeGraph, kept: list[Tensor], picked: list[dict[str, Any]]) -> None:
    """Every size as the graph's own gates have it."""
    for size, ids in enumerate(kept):
        gates = graph.gates(graph.masks([ids]))
        one, rows = picked[size], edges_of(graph.masks([ids])[0], graph)
        n_mlp, n_residual = int(gates.mlp.sum()), int(gates.residual_attention.sum() + gates.residual_mlp.sum())
        assert one["marks"][1:] == [n_mlp, n_residual]
        assert one["bold"] == 0 and not one["hidden"]
        if size < 3:
            assert one["rows"] == rows and one["table"] and one["note"] == ""
            assert one["marks"][0] == int(gates.attention[0].any(1).sum())  # a line for every layer, target and source
            lines = [f"Layer {layer}, {at(a, b)}: {names}" for layer, a, b, names in rows]
            assert one["keys"] == [lines[0], lines[1], lines[0], lines[-1]]
            assert one["hint"].startswith("Point at")
        else:
            assert one["rows"] == [] and not one["table"]
            assert re.match(r"\d+ edges are too many to draw one by one: shades of blue", one["note"])
            assert one["marks"][0] == int(gates.attention[0].sum((1, 3)).count_nonzero())  # of layers and targets
            last, count = GRAPH.n_layers - 1, int(gates.attention[0, -1, :, -1].sum())
            assert f"Layer {last}, at 4 “sea”: {count} of {N * GRAPH.n_heads} attention edges" in one["keys"][0]
    whole = picked[-1]
    assert whole["note"].startswith("all edges are too many")
    assert whole["marks"] == [3 * N + 1, 3 * N + 1, (3 * N + 1) * (1 if graph.parallel else 2)]


def at(source: str, target: str) -> str:
    return f"at {target}" if source == target else f"from {source} to {target}"


def require_positions(kept: list[Tensor], picked: list[dict[str, Any]]) -> None:
    """Every size as the nodes' own grid has it; listed from the last layer and token."""
    for ids, one in zip(kept, picked[:-1], strict=True):
        flat = torch.zeros(N * GRAPH.n_nodes)
        flat[ids] = 1
        grid = GRAPH.by_layer(flat.unflatten(0, (N, -1)))  # (tokens, layers, heads + 1)
        assert one["marks"][1:] == [int(grid[..., -1].sum()), 0]
        if len(ids) <= 50:
            names = [
                ", ".join(name for name, is_kept in zip(row, of_layer, strict=True) if is_kept)
                for layer in reversed(range(GRAPH.n_layers))
                for of_layer in grid[:, layer].flip(0).tolist()
                for row in [[*(f"a{layer}.h{h}" for h in range(GRAPH.n_heads)), f"m{layer}"]]
            ]
            assert [row[3] for row in one["rows"]] == [name for name in names if name]
            assert one["marks"][0] == int(grid[..., :-1].sum())
        else:
            assert one["note"].endswith("the share of the heads at a token that is kept.")
            assert one["marks"][0] == int(grid[..., :-1].any(-1).sum())
