"""Relative links of the documentation resolve."""

import re
from collections import Counter
from itertools import chain
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
MARKDOWN = [
    path
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    )
    if path.exists()
]


def without_code(markdown: str) -> str:
    return re.sub(r"^(```|~~~).*?^\1", "", markdown, flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a Markdown file."""
    markdown = without_code(path.read_text(encoding="utf-8"))
    count: Counter[str] = Counter()
    found: set[str] = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", markdown))
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", markdown, flags=re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{slug}-{count[slug]}" if count[slug] else slug)
        count[slug] += 1
    return found


def relative_links(path: Path) -> list[str]:
    markdown = re.sub(r"`[^`\n]*`", "", without_code(path.read_text(encoding="utf-8")))
    targets = chain(
        re.findall(r"\]\(<?([^)\s>]+)", markdown),
        re.findall(r"^ {0,3}\[[^\]]+\]: +(\S+)", markdown, flags=re.MULTILINE),
        re.findall(r"(?:href|src)=\"([^\"]+)\"", markdown),
    )
    return [target for target in targets if not re.match(r"[a-z][a-z+.-]*:|//", target)]


def test_anchors_and_links_of_a_page_by_hand(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# What `s` is: a *size*\n## Runs\n## Runs\n```\n# no heading [x](nowhere.md)\n```\n"
        "[a](#runs) ![b](b.png) [c](https://example.org) `[d](d.md)`\n[e]: e.md\n"
    )
    assert anchors(page) == {"what-s-is-a-size", "runs", "runs-1"}
    assert relative_links(page) == ["#runs", "b.png", "e.md"]


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(path: Path) -> None:
    broken: list[str] = []
    for link in relative_links(path):
        file, _, anchor = unquote(link).partition("#")
        target = (path.parent / file).resolve() if file else path
        is_page = target.suffix == ".md" and target.is_file()
        if not target.exists() or (anchor and is_page and anchor not in anchors(target)):
            broken.append(link)
    assert not broken, f"broken links: {', '.join(broken)}"
