"""The page and the figures of a study, in small and with texts that would break out of them."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from browser import chromium, screenshot
from matplotlib.image import imread
from studies import bank, falling, masks

from masklearn import density, report
from masklearn.artifact import ModelId
from masklearn.density import Study, Thought
from masklearn.report.study import draw
from masklearn.report.style import drawable

EVIL = "<script>document.title='broken'</script>\"'><img src=x onerror=alert(1)> $\\frac{$ \x00 \N{PILE OF POO} 深"


def evil_study() -> Study:
    """Two banks whose names, models, texts and tokens all try to get out."""
    names = [f"0:{i + 1}" for i in range(12)]
    one = bank(falling(12), EVIL, names=names, contexts=[f"{EVIL} {i}" for i in range(12)], tokens=[EVIL] * 12)
    one = replace(one, mask=replace(one.mask, model=ModelId(EVIL, EVIL, "f00d")), source=EVIL)
    other = bank(falling(12), "plain", contexts=one.contexts, kept=masks(12, seed=1))
    thought = Thought(names[3], EVIL, [1, 20], [[(EVIL, 0.7), (" a", 0.2)], [("\n", 0.9), (" ", 0.1)]])
    return density.study([one, other], {EVIL: thought})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    report.write_study(folder, evil_study(), {EVIL: {"model": {"lm": EVIL}}, "plain": {}})
    return folder


class Page(HTMLParser):
    """Tags and attributes of a page, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def count(self, name: str) -> int:
        return sum(tag == name for tag, _ in self.tags)


def test_nothing_that_comes_from_outside_becomes_markup(written: Path) -> None:
    page = Page((written / "report.html").read_text())
    assert page.count("script") == 1
    assert page.count("img") == 0
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_the_page_asks_for_nothing(written: Path) -> None:
    text = (written / "report.html").read_text()
    for tag, attributes in Page(text).tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, value)
    assert not re.search(r"@import|url\((?!#)", text)


def test_ids_on_the_page_are_unique_and_those_meant_are_there(written: Path) -> None:
    text = (written / "report.html").read_text()
    ids = [attributes["id"] for _, attributes in Page(text).tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    meant = {*re.findall(r"url\(#([^)]+)\)", text), *re.findall(r'href="#([^"]+)"', text)}
    assert meant <= set(ids)


def test_every_result_has_a_figure_on_paper(written: Path) -> None:
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
        assert path.read_bytes().startswith(b"%PDF")


def test_every_svg_takes_the_pages_ink(written: Path) -> None:
    text = (written / "report.html").read_text()
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    assert len(drawings) == len(list((written / "figures").glob("*.png")))
    assert all("currentColor" in drawing and "#1b1b1f" not in drawing for drawing in drawings)


def test_text_is_drawn_with_what_the_font_has() -> None:
    assert drawable("a\nb") == "a↵b"
    assert drawable(" ") == "␣"
    assert drawable("深\x00x") == "□□x"
    assert drawable("x" * 50, 10) == "x" * 9 + "…"


@pytest.mark.parametrize("sizes", [(3,), (1, 2), (20,)])
def test_a_study_of_few_sizes_and_one_input_draws_what_it_can(sizes: tuple[int, ...]) -> None:
    study = density.study([bank([[0.5, 0.4][: len(sizes)]], sizes=sizes)])
    drawn = {figure.name for figure in draw(study)}
    assert "node-use" in drawn and "curve-tv" not in drawn


def test_the_page_in_a_browser(written: Path, tmp_path: Path) -> None:
    """Every figure has a size, tables sort, nothing is asked for, and the title is what it was to be."""
    probe = """
    addEventListener('load', () => {
      const boxes = [...document.querySelectorAll('figure svg')].map((svg) => svg.getBoundingClientRect());
      document.querySelectorAll('details').forEach((details) => { details.open = true; });
      const table = document.querySelector('#table-inputs');
      const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
      const at = heads.indexOf('density_learned');
      const column = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[at].dataset.key));
      table.tHead.rows[0].cells[at].querySelector('button').click();
      const up = column();
      table.tHead.rows[0].cells[at].querySelector('button').click();
      const found = { title: document.title, smallest: Math.min(...boxes.map((box) => Math.min(box.width, box.height))),
        figures: boxes.length, up, down: column(), wide: document.documentElement.scrollWidth - innerWidth,
        requests: performance.getEntriesByType('resource').map((entry) => entry.name) };
      document.body.innerHTML = '';
      const told = Object.assign(document.createElement('pre'), { id: 'found', textContent: JSON.stringify(found) });
      document.body.append(told);
    });"""
    text = (written / "report.html").read_text()
    text = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", text).replace(
        "</body>", f"<script>{probe}</script></body>"
    )
    page = tmp_path / "probed.html"
    page.write_text(text)
    for width in (1200, 390):
        told = chromium(f"--window-size={width},900", "--dump-dom", page.as_uri()).stdout
        match = re.search(r'<pre id="found">(.*?)</pre>', told, flags=re.S)
        assert match, told[-500:]
        found = json.loads(match.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
        assert found["title"].startswith("Computation density: <script>")
        assert found["figures"] == len(list((written / "figures").glob("*.png")))
        assert found["smallest"] > 100
        assert found["up"] == sorted(found["up"]) and found["down"] == found["up"][::-1]
        assert found["wide"] <= 0  # no scrolling sideways
        assert found["requests"] == []


def test_the_page_is_dark_where_the_screen_is(written: Path, tmp_path: Path) -> None:
    light, dark = (
        imread(screenshot(written / "report.html", tmp_path / f"{dark}.png", dark=dark)) for dark in (False, True)
    )
    assert light[..., :3].mean() > 0.8
    assert dark[..., :3].mean() < 0.35
    assert torch.tensor(dark[..., :3]).std() > 0.02
