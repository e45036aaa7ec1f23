"""Figures of a study: many masks, few sizes, undefined results, and fonts."""

import html
import re
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text
from studies import falling, masks, measured, of_edges, resample_little

from masklearn import density, report
from masklearn.density import comparison
from masklearn.mask_file import ModelId
from masklearn.report.comparison import mask_overlaps
from masklearn.report.page import page
from masklearn.report.study import draw
from masklearn.report.style import count_nodes, drawable, drawable_names, lay_out_once, single_axes


def test_overlaps_of_many_masks_become_one_matrix_per_model() -> None:
    """Four masks of one model, two of another: too many pairs for lines, and one matrix for the four."""
    banks = [measured(falling(3), f"run {i}", kept=masks(3, seed=i)) for i in range(4)]
    banks += [measured(falling(3), f"other {i}", fingerprint="beef") for i in range(2)]
    banks[4:] = [replace(one, mask=replace(one.mask, model=ModelId("another", None, "beef"))) for one in banks[4:]]
    table = comparison.mask_overlaps(banks)
    study_figures = {one.name: one for one in mask_overlaps({"overlap": table})}
    assert set(study_figures) == {"overlap-matrix-1"} and study_figures["overlap-matrix-1"].wide
    first, *_ = study_figures["overlap-matrix-1"].figure.axes
    shown = {text.get_text() for text in first.texts}
    smallest = table[(table["model"] == "a model") & (table["s"] == 1)]
    assert shown == {f"{value:.2f}" for value in smallest["overlap"]} and len(smallest) == 6
    few = table[table["one"].isin(["run 0"])]
    assert [one.name for one in mask_overlaps({"overlap": few})] == ["overlap"]


def test_masks_of_runs_with_names_by_default_are_told_apart() -> None:
    """They differ in the last digits of a long name, and in the group behind it."""
    names = [f"stories-20261129-16421{i}: {group}" for i in (3, 4) for group in ("a group", "another")]
    for length in (18, 20, 22):
        labels = drawable_names([*names, *names], length)
        assert [*labels] == names and len(set(labels.values())) == 4
        assert all(len(label) <= length + 3 for label in labels.values())
    assert drawable_names(["short", "x" * 30], 20) == {"short": "short", "x" * 30: "x" * 6 + "…" + "x" * 13}


def test_numbers_stand_in_cells_that_they_fit_into() -> None:
    """Six masks at three sizes have room for numbers, seven have none; of very many, no names are legible either."""
    for n, has_numbers, has_names in ((6, True, True), (7, False, True), (31, False, False)):
        banks = [measured(falling(2), f"run {i}", kept=masks(2, seed=i)) for i in range(n)]
        figures = {one.name: one.figure for one in mask_overlaps({"overlap": comparison.mask_overlaps(banks)})}
        axes = figures["overlap-matrix"].axes[0]
        assert bool(axes.texts) == has_numbers
        assert any(label.get_text() for label in axes.get_yticklabels()) == has_names


def test_the_share_of_the_whole_model_is_told_from_kinds_of_subgraphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random-matched subgraphs have the shares of heads and MLPs of the learned ones: their lines would hide there."""
    resample_little(monkeypatch)
    figures = {
        one.name: one for one in draw(density.study([measured(falling(5))])) if one.name.startswith("composition")
    }
    for name, kinds in (("composition-kinds", {"norm"}), ("composition-depth", {"norm", "random-matched"})):
        lines = {str(line.get_label()): line for line in figures[name].figure.axes[0].lines}
        assert {"norm", "random-matched"} & lines.keys() == kinds
        whole = lines.pop("the whole model")
        assert all(line.get_color() != whole.get_color() for line in lines.values())


def test_characters_that_the_font_lacks_become_boxes() -> None:
    assert drawable("a\nb") == "a↵b"
    assert drawable(" ") == "␣"
    assert drawable("深\x00x") == "□□x"
    assert drawable("x" * 50, 10) == "x" * 9 + "…"


def test_a_bank_whose_name_begins_with_an_underscore_is_in_the_legends(monkeypatch: pytest.MonkeyPatch) -> None:
    resample_little(monkeypatch)
    banks = [measured(falling(5), name, kept=masks(5, seed=i)) for i, name in enumerate(("_one", "other"))]
    figures = {figure.name: figure.figure for figure in draw(density.study(banks))}
    for name, n_labels in (("curves", 4), ("overlap", 3)):
        (legend,) = figures[name].legends
        labels = [text.get_text().strip("\N{ZERO WIDTH SPACE}") for text in legend.texts]
        assert len(labels) == n_labels and labels[0].startswith("_one")


def test_shares_far_below_a_percent_have_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    resample_little(monkeypatch)
    edges = of_edges(measured(falling(5)))
    edges = replace(edges, mask=replace(edges.mask, shares=(0.0001, 0.002, 0.05, 0.5)))
    (nuclei,) = [one.figure for one in draw(density.study([edges])) if one.name == "nuclei"]
    assert [label.get_text() for label in nuclei.axes[0].get_yticklabels()] == ["0.01", "0.1", "1", "10", "100"]


def test_a_bank_without_a_kind_has_no_agreement_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two banks of nodes have norm subgraphs, one of edges has none."""
    resample_little(monkeypatch)
    banks = [measured(falling(12), name, fingerprint=name) for name in ("one", "other")]
    banks.append(of_edges(banks[0], name="edges"))
    (figure,) = [one.figure for one in draw(density.study(banks)) if one.name == "across"]
    n_numbers = {axes.get_title(): len(axes.texts) for axes in figure.axes}
    assert (n_numbers["norm"], n_numbers["learned"], n_numbers["learned / s-trace"]) == (4, 4, 7)


@pytest.mark.parametrize(
    ("s", "words"), [(1, "1 node"), (8, "8 nodes"), (1.0, "100 %"), (0.125, "12.5 %"), (0.0001, "0.01 %")]
)
def test_sizes_are_nodes_or_shares(s: float, words: str) -> None:
    """A share of 1 is all of a text's edges, not one node."""
    assert count_nodes(s) == words


@pytest.mark.parametrize("sizes", [(3,), (1, 2), (20,)])
def test_a_study_of_few_sizes_draws_the_figures_that_are_defined(sizes: tuple[int, ...]) -> None:
    study = density.study([measured([[0.5, 0.4][: len(sizes)]], sizes=sizes)])
    study_figures = {figure.name for figure in draw(study)}
    assert "node-use" in study_figures and "curve-tv" not in study_figures


@pytest.mark.parametrize(("n_inputs", "has_bands"), [(5, False), (12, True)])
def test_the_density_curves_speak_of_bands_and_random_subgraphs_where_there_are_any(
    n_inputs: int, has_bands: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    resample_little(monkeypatch)
    bank = measured(falling(n_inputs))
    alone = replace(bank, results={"learned": bank.results["learned"]})
    for shown, has_control in ((bank, True), (alone, False)):
        (alt,) = [one.alt for one in draw(density.study([shown])) if one.name == "curves"]
        assert "bands" in alt if has_bands else "bands" not in alt
        assert alt.endswith("; dotted: random subgraphs") == has_control


def test_the_curve_of_the_unigram_is_within_the_axes_where_it_is_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every distance from the unigram is 1 there; that from the full model is twice the TV, at least 1.2."""
    resample_little(monkeypatch)
    study = density.study([measured([[0.9, 0.8, 0.7, 0.6]] * 5)])
    (axes,) = next(one for one in draw(study) if one.name == "unigram-kl").figure.axes
    assert axes.get_ylim()[0] == pytest.approx(1 / 1.5)


def test_the_use_of_nodes_is_a_share_of_masks_where_inputs_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eleven of twelve inputs share one of two masks."""
    resample_little(monkeypatch)
    own = measured(falling(12))
    pair = replace(own.mask, mask=own.mask.mask[:2], scores=own.mask.scores[:2], groups=("0", "1"))
    kinds = {name: replace(found, masks=found.masks[:, :, :2]) for name, found in own.results.items()}
    shared = replace(own, mask=pair, results=kinds, group_index=[0] * 11 + [1])
    for bank, of_what in ((own, "inputs"), (shared, "masks")):
        found = next(one for one in draw(density.study([bank])) if one.name == "node-use").figure
        assert any(f"share of {of_what} that keep" in text.get_text() for text in found.findobj(Text))


UNDEFINED = {
    "has 2 sizes (1, 2), and densities and phases need 3: no density": lambda: [
        measured([[0.5, 0.4]] * 5, sizes=(1, 2))
    ],
    "has a single input: no intervals and no correlations": lambda: [measured(falling(1))],
    "not defined: the full model's entropy is the same for all 6 inputs": lambda: [
        measured(falling(6), full={"entropy": [0.5] * 6})
    ],
    "different inputs (0 shared): a run has 5 inputs from a file, other has 5 inputs from another file": lambda: [
        measured(falling(5)),
        replace(measured(falling(5), "other"), contexts=list("abcde"), source="another file"),
    ],
    "other has fewer than 3 sizes": lambda: [measured(falling(5)), measured([[0.5, 0.4]] * 5, "other", sizes=(1, 2))],
    "share no size: no overlap": lambda: [measured(falling(5)), measured([[0.4]] * 5, "other", sizes=(3,))],
}


@pytest.mark.parametrize("note", UNDEFINED)
def test_undefined_results_get_a_note_on_the_page(note: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other results are there, and nothing prints NaN."""
    resample_little(monkeypatch)
    study = density.study(UNDEFINED[note]())
    study_figures = list(draw(study))
    assert "node-use" in {figure.name for figure in study_figures}
    shown = page(study, [], {})
    notes = re.search(r'<ul class="notes">(.*?)</ul>', shown, flags=re.S)
    assert notes and note in html.unescape(notes.group(1))
    assert not re.search(r"\bnan\b|<NA>", shown, flags=re.I)
    labels = [text.get_text() for one in study_figures for text in one.figure.findobj(Text)]
    assert not [label for label in labels if "nan" in label.lower()]


def test_a_figure_whose_layout_is_known_is_drawn_once_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    figure, draws = single_axes()[0], []
    draw_axes = Axes.draw
    monkeypatch.setattr(Axes, "draw", lambda *args: (draws.append(args), draw_axes(*args)))
    figure.savefig(BytesIO())
    assert len(draws) == 2
    lay_out_once(figure)
    draws.clear()
    figure.savefig(BytesIO())
    assert len(draws) == 1


def test_figures_depend_neither_on_system_fonts_nor_on_latex(tmp_path: Path) -> None:
    """A user's matplotlibrc has no effect either."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.family: Comic Sans MS\naxes.grid: True\n")
    script = """
import warnings
import matplotlib.font_manager as fonts
found = fonts.findSystemFonts
fonts.findSystemFonts = lambda paths=None, **how: found(paths, **how) if paths else []  # hide system fonts
fonts.fontManager.__init__()
import studies
from masklearn import density
from masklearn.report.page import page
from masklearn.report.picker import picker_json
from masklearn.report.study import draw
from masklearn.report.study_figure import inline_svg, render
from masklearn.report.style import styled
warnings.simplefilter("error")
assert all("matplotlib" in font.fname for font in fonts.fontManager.ttflist), "system fonts are visible"
with styled():
    one = next(draw(density.study([studies.measured(studies.falling(5))])))
print([len(render(one, kind)) for kind in ("png", "pdf")], len(inline_svg(one, "f")))
"""
    folders = [str(Path(__file__).parent), str(Path(report.__file__).parents[2])]
    bare = {"MPLCONFIGDIR": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": ":".join(folders), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], env=bare, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-1500:]
    assert min(map(int, re.findall(r"\d+", done.stdout))) > 5000
