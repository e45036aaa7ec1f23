"""The page and the figures of small studies, with strings that try to break out of the markup."""

import base64
import html
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from browser import PHONE, chromium, framed, screenshots
from matplotlib.image import imread
from studies import GRAPH, SIZES, falling, masks, measured, resample_little

import masklearn as ml
from masklearn import density, report
from masklearn.density import Study, TopTokens
from masklearn.density.headline import half_way, headline
from masklearn.mask_file import ModelId
from masklearn.report.page import page
from masklearn.report.picker import picker_json

EVIL = "<script>document.title='broken'</script>\"'><img src=x onerror=alert(1)> $\\frac{$ \x00 \N{PILE OF POO} 深"


def evil_study() -> Study:
    """A study of two banks; names, models, texts and tokens of one contain markup."""
    names = [f"0:{i + 1}" for i in range(12)]
    one = measured(falling(12), EVIL, names=names, contexts=[f"{EVIL} {i}" for i in range(12)], tokens=[EVIL] * 12)
    one = replace(one, mask=replace(one.mask, model=ModelId(EVIL, EVIL, "f00d")), source=EVIL)
    other = measured(falling(12), "plain", contexts=one.contexts, kept=masks(12, seed=1))
    shown = TopTokens(names[3], EVIL, [1, 20], {"learned": [[(EVIL, 0.7), (" a", 0.2)], [("\n", 0.9), (" ", 0.1)]]})
    picked = [
        TopTokens(name, EVIL, [*SIZES, 20], {"learned": [[(EVIL, 0.7), (" a", 0.2)]] * 4 + [[("\n", 0.9), (" ", 0.1)]]})
        for name in names
    ]
    return density.study([one, other], {EVIL: shown}, pickable={EVIL: picked})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        resample_little(patch)
        study = evil_study()
    report.write_study(folder, study, {EVIL: {"model": {"lm": EVIL}}, "plain": {}})
    return folder


class Page(HTMLParser):
    """Tags and attributes of a page, as an HTML parser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def count(self, name: str) -> int:
        return sum(tag == name for tag, _ in self.tags)


def test_strings_of_the_study_never_become_markup(written: Path) -> None:
    found = Page((written / "report.html").read_text())
    scripts = [attributes for tag, attributes in found.tags if tag == "script"]
    assert [attributes.get("type") for attributes in scripts] == ["application/json", None]  # data, and our own
    assert found.count("img") == 0
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]


def test_the_page_loads_nothing(written: Path) -> None:
    text = (written / "report.html").read_text()
    for tag, attributes in Page(text).tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, value)
    assert not re.search(r"@import|url\((?!#)", text)


def test_token_colours_match_the_scale_on_the_page(written: Path) -> None:
    text = (written / "report.html").read_text()
    strengths = [float(found) for found in re.findall(r'--strength: ([\d.]+)" title', text)]
    assert len(strengths) == 12 and max(strengths) == 1 and min(strengths) > 0
    (scale,) = re.findall(r'<p class="tokens scale">(.*?)</p>', text)
    largest = max(map(float, re.findall(r'title="density ([\d.]+)"', text)))
    assert [float(value) for value in re.findall(r"> ([\d.]+) <", scale)] == pytest.approx(
        [largest * i / 4 for i in range(5)], abs=0.006
    )


def test_ids_on_the_page_are_unique_and_every_reference_resolves(written: Path) -> None:
    text = (written / "report.html").read_text()
    ids = [attributes["id"] for _, attributes in Page(text).tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    referenced = {*re.findall(r"url\(#([^)]+)\)", text), *re.findall(r'href="#([^"]+)"', text)}
    assert referenced <= set(ids)
    assert {"figure-curves", "figure-plain-curve-tv", "figure-across"} <= set(ids)  # to link to


def test_the_pages_first_screen_has_the_curves_of_all_banks_and_one_sentence(written: Path) -> None:
    header = (written / "report.html").read_text().split("</header>")[0]
    assert 'id="figure-curves"' in header
    (sentence,) = re.findall(r'<p class="result">(.*?)</p>', header)
    assert sentence.startswith("A mean TV distance of 0.5 from the full model takes")
    assert "of random subgraphs" in sentence


def test_the_headline_matches_values_worked_out_by_hand() -> None:
    """Mean TV is 0.75 at a tenth of the nodes and 0.25 at a half: one half at the middle of both in log size."""
    one = measured([[0.75, 0.25, 0.0]] * 3, "it", sizes=(2, 10, 18), control_tv=[[0.4, 0.2, 0.1]] * 3)
    assert half_way(one, "learned") == pytest.approx(math.sqrt(0.1 * 0.5))
    sentence = headline([one])
    assert "22 % of the nodes of it; of random subgraphs, at most 10 %" in sentence


def test_the_picker_holds_the_masks_bit_by_bit(written: Path) -> None:
    text = (written / "report.html").read_text()
    (bank,) = json.loads(re.findall(r'id="picker-data">(.*?)</script>', text, flags=re.S)[0])
    assert (bank["name"], bank["unit"], bank["kind"], bank["sizes"]) == (EVIL, "nodes", "learned", list(SIZES))
    expected = masks(12)
    for i, one in enumerate(bank["inputs"]):
        bits = np.unpackbits(np.frombuffer(base64.b64decode(one["kept"]), np.uint8))[: len(SIZES) * GRAPH.n_nodes]
        assert (bits.reshape(len(SIZES), -1) == expected[i].numpy()).all()
        assert [bank["tokens"][number] for number in one["top"][0][::2]] == [EVIL, " a"]
        assert one["top"][-1] == [bank["tokens"].index("\n"), 900, bank["tokens"].index(" "), 100]


def test_a_study_of_many_large_masks_stays_small() -> None:
    """100 inputs x 12 sizes x 300 nodes."""
    graph, sizes = ml.NodeGraph(30, 9), tuple(range(1, 13))
    one = measured([[0.5] * 12] * 100, sizes=sizes)
    order = torch.rand(100, graph.n_nodes, generator=torch.Generator().manual_seed(0)).argsort(-1)
    kept = order[:, None] < torch.tensor(sizes)[:, None]
    bank = replace(
        one.mask, mask=kept, scores=torch.zeros(100, 1, graph.n_nodes), graph=graph,
        groups=tuple(map(str, range(100))),
    )  # fmt: skip
    results = {"learned": replace(one.results["learned"], masks=kept.transpose(0, 1)[None])}
    one = replace(one, mask=bank, results=results)
    tokens = {"learned": [[(f" word{i % 400}", 0.123) for i in range(j, j + 6)] for j in range(13)]}
    shown = [TopTokens(name, "text " * 20, [*sizes, 300], tokens) for name in one.names]
    assert len(picker_json(Study([one], {}, pickable={one.name: shown}))) < 250_000


def test_every_result_has_a_figure_as_png_and_pdf(written: Path) -> None:
    stems = {path.stem for path in (written / "figures").glob("*.png")}
    assert stems == {path.stem for path in (written / "figures").glob("*.pdf")}
    for name in (
        "curve-tv curve-kl nuclei composition-kinds composition-depth node-use lorenz gini relations density-entropy "
        "unigram-kl unigram-share"
    ).split():
        assert f"plain-{name}" in stems
    assert {"across", "overlap"} <= stems
    for path in (written / "figures").glob("*.png"):
        assert imread(path)[..., :3].std() > 0.01  # something is drawn
    for path in (written / "figures").glob("*.pdf"):
        content = path.read_bytes()
        assert content.startswith(b"%PDF") and b"/FontFile2" in content  # TrueType, which journals take


def test_every_svg_uses_the_text_colour_of_the_page(written: Path) -> None:
    text = (written / "report.html").read_text()
    drawings = re.findall(r"<svg viewBox.*?</svg>", text, flags=re.S)
    assert len(drawings) == len(list((written / "figures").glob("*.png")))
    assert all("currentColor" in drawing and "#1b1b1f" not in drawing for drawing in drawings)


PROBE = """
addEventListener('load', () => {
  const figures = [...document.querySelectorAll('figure svg:not(.picked-map, .token-map svg)')];
  const drawn = (svg) => [...svg.querySelectorAll('path, use, text, image')].filter((mark) => {
    const box = mark.getBoundingClientRect();
    return box.width > 0 || box.height > 0;
  }).length;
  const boxes = figures.map((svg) => svg.getBoundingClientRect());
  document.querySelectorAll('details').forEach((details) => { details.open = true; });
  const table = document.querySelector('#table-inputs');
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const at = heads.indexOf('density_learned');
  const column = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[at].dataset.key));
  table.tHead.rows[0].cells[at].querySelector('button').click();
  const up = column();
  table.tHead.rows[0].cells[at].querySelector('button').click();
  const form = document.querySelector('form.picker');
  form.elements.input.value = 3;
  form.elements.size.value = 2;
  form.elements.size.dispatchEvent(new Event('input'));
  const picked = { kept: document.querySelectorAll('.picked-map .kept').length,
    all: document.querySelectorAll('.picked-map rect').length, size: form.querySelector('output').textContent,
    first: document.querySelector('.picked-tokens code').textContent };
  const made = [];
  const make = URL.createObjectURL;
  URL.createObjectURL = (blob) => { made.push(blob); return make(blob); };
  HTMLAnchorElement.prototype.click = () => {}; // a browser that closes in the middle of a download may hang
  document.querySelector('button.csv[data-table="table-phases"]').click();
  made[0].text().then((csv) => parent.postMessage(JSON.stringify({ picked, csv,
    title: document.title, marks: figures.map(drawn), up, down: column(),
    smallest: Math.min(...boxes.map((box) => Math.min(box.width, box.height))), across: innerWidth,
    wide: document.documentElement.scrollWidth - innerWidth,
    outside: boxes.filter((box) => box.left < 0).length }), '*'));
});"""


LAST_STOP = """
addEventListener('load', () => {
  const { size } = document.querySelector('form.picker').elements;
  size.value = 99;
  size.dispatchEvent(new Event('input'));
  parent.postMessage(JSON.stringify({ stop: size.value, all: document.querySelectorAll('.picked-map .kept').length,
    text: document.querySelector('form.picker output').textContent,
    tokens: [...document.querySelectorAll('.picked-tokens code')].map((code) => code.textContent) }), '*');
});"""


@pytest.mark.parametrize("sizes", [(2, 10), (2, 10, 20)], ids=["without", "with"])
def test_the_last_stop_of_the_picker_is_the_full_model(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """Without and with the full model among the sizes of the bank."""
    one = measured([[0.5, 0.3, 0.0][: len(sizes)]] * 2, sizes=sizes)
    top = [[("low", 0.5)], [("middle", 0.6)], [("full", 0.7)]]
    shown = [TopTokens(name, "a text", [2, 10, 20], {"learned": top}) for name in one.names]
    text = page(density.study([one], {}, pickable={one.name: shown}), [], {})
    probed = tmp_path / "probed.html"
    text = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", text)
    probed.write_text(text.replace("</body>", f"<script>{LAST_STOP}</script></body>"))
    visit = chromium(framed(probed, 1200, 900), "--window-size=1200,900", "--dump-dom")
    match = re.search(r'<pre id="found">(.*?)</pre>', visit.output, flags=re.S)
    assert match and visit.console == [], visit.console
    found = json.loads(html.unescape(match.group(1)))
    assert found == {"stop": "2", "all": 20, "text": "all nodes (100 %)", "tokens": ["full", "full"]}


@pytest.mark.parametrize("width", [1200, PHONE])
def test_the_page_works_in_a_browser(written: Path, tmp_path: Path, width: int) -> None:
    """Every figure is drawn, tables sort, there are no requests and no console messages, and nothing overflows."""
    text = (written / "report.html").read_text()
    text = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", text)
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"))
    visit = chromium(framed(probed, width, 900), "--window-size=1200,900", "--dump-dom")
    match = re.search(r'<pre id="found">(.*?)</pre>', visit.output, flags=re.S)
    assert match, visit.output[-500:]
    found = json.loads(html.unescape(match.group(1)))
    assert found["across"] == width
    assert found["title"].startswith("Computation density: <script>")
    assert len(found["marks"]) == len(list((written / "figures").glob("*.png")))
    assert min(found["marks"]) > 10 and found["smallest"] > 50
    assert found["up"] == sorted(found["up"]) and found["down"] == found["up"][::-1]
    assert found["wide"] <= 0 and found["outside"] == 0
    assert found["picked"] == {"kept": 5, "all": 20, "size": "5 nodes (25 %)", "first": found["picked"]["first"]}
    assert found["picked"]["first"].startswith("<script>")
    table = pd.read_csv(io.StringIO(found["csv"]))
    assert table.columns[0] == "bank" and len(table) == 4 and table["bank"][0].startswith("<script>")
    assert visit.console == []
    assert [url for url in visit.requests if url != probed.as_uri() and not url.startswith("blob:")] == []


def test_the_browser_reports_requests_and_console_messages(tmp_path: Path) -> None:
    """Otherwise the test above could not fail."""
    noisy = tmp_path / "noisy.html"
    noisy.write_text("<script>console.error('oh no')</script><img src='http://127.0.0.1:9/x.png'>")
    visit = chromium(noisy, "--dump-dom")
    assert any("oh no" in line for line in visit.console)
    assert visit.requests == ["http://127.0.0.1:9/x.png"]


def test_screenshots_for_the_docs_can_be_taken(written: Path, tmp_path: Path) -> None:
    taken = {path.stem: imread(path)[..., :3] for path in screenshots(written / "report.html", tmp_path)}
    assert taken["report"].mean() > 0.8
    assert taken["report-dark"].mean() < 0.35
    assert taken["report-phone"].shape[1] == PHONE
    for picture in taken.values():
        assert picture.shape[0] > 100 and picture.std() > 0.02


def test_the_page_can_be_printed(written: Path, tmp_path: Path) -> None:
    """Chromium prints the page to a PDF of a plausible number of pages, without console messages."""
    visit = chromium(written / "report.html", f"--print-to-pdf={tmp_path / 'report.pdf'}")
    pdf = (tmp_path / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert visit.console == []
    assert 4 < len(re.findall(rb"/Type\s*/Page\b", pdf)) < 40
