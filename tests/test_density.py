# pyright: reportGeneralTypeIssues=false
# (by pandas' own annotations a comparison may be anything)
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import studies
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from studies import GRAPH, SIZES, falling, measured

from masklearn import density
from masklearn.density import comparison, composition, correlations, curves, phases
from masklearn.density.findings import RULES
from masklearn.density.measurements import mean_true_entropy
from masklearn.density.statistics import bootstrap_ci, correlation

UNIT = st.floats(0, 1)


# --- the density of an input ------------------------------------------------------------------------------------------


def test_density_counts_decades_of_wrong_subgraphs() -> None:
    """TV is 1 at 1 % and at 10 % of the nodes and 0 just above: one decade of TV 1."""
    fractions = np.array([0.01, 0.1, 0.1 + 1e-12])
    found = curves.area(np.array([[1.0, 0.5], [1.0, 0.5], [0.0, 0.0]]), fractions)
    assert found == pytest.approx([1.0, 0.5])


def test_the_full_model_is_the_last_point_of_the_curve() -> None:
    found = curves.area(np.array([[1.0]]), np.array([0.1]))
    assert found == pytest.approx([0.5])  # a triangle over one decade
    assert curves.area(np.array([[1.0], [0.0]]), np.array([0.1, 1.0])) == pytest.approx([0.5])


@given(st.lists(st.lists(UNIT, min_size=4, max_size=4), min_size=1, max_size=5), st.floats(0, 0.5))
def test_density_grows_with_tv_and_is_at_most_the_number_of_decades(tv: list[list[float]], more: float) -> None:
    less, fractions = np.array(tv).T, np.array(SIZES) / 20
    low, high = curves.area(less, fractions), curves.area(np.minimum(less + more, 1), fractions)
    assert (low <= high + 1e-9).all()
    assert (low >= 0).all() and (high <= math.log10(20) + 1e-9).all()


# --- phases -----------------------------------------------------------------------------------------------------------


def test_the_fit_finds_where_a_curve_bends() -> None:
    x = np.linspace(-2, 0, 9)
    bent = np.where(x < -1, 1 - 0.8 * (x + 2), 0.2 - 0.2 * (x + 1))
    straight = -x / 2
    (fit, other) = phases.fit_segments(x, np.stack([bent, straight]))
    assert fit.breaks == (-1.0,)
    assert fit.slopes == pytest.approx((-0.8, -0.2))
    assert fit.refinement == -1.0
    assert other.slopes == pytest.approx((-0.5,))
    assert other.refinement is None


def test_a_curve_that_only_steepens_has_no_refinement() -> None:
    x = np.linspace(-2, 0, 9)
    (fit,) = phases.fit_segments(x, np.where(x < -1, 1.0, -x)[None])
    assert fit.slopes == pytest.approx((0.0, -1.0))
    assert fit.refinement is None


def test_phases_of_equal_inputs_have_intervals_of_width_zero() -> None:
    """The top token is recovered at a TV below 0.99; every resample is the same."""
    tv = [[1.0, 0.95, 0.5, 0.1, 0.08, 0.06]] * 6
    head, refinement = phases.phases(measured(tv, sizes=(1, 2, 3, 5, 8, 12)), seed=0)
    assert (head["s"], head["low"], head["high"]) == (2, 2, 2)
    assert refinement["s"] == pytest.approx(refinement["low"]) == pytest.approx(refinement["high"])
    assert refinement["share"] == 1.0
    assert phases.phases(measured([row[:4] for row in tv]), seed=0)[1]["share"] is None


# --- nuclei and the unigram -------------------------------------------------------------------------------------------


def test_nucleus_sizes_match_values_worked_out_by_hand() -> None:
    """In these measurements a nucleus of p percent is recovered at a TV below 1 - p / 100."""
    table = curves.nuclei(measured([[0.95, 0.7, 0.3, 0.05], [0.95, 0.95, 0.95, 0.95]]))
    learned = table[table["kind"] == "learned"].set_index("p")
    assert learned.loc[1, "median"] == 1 / 20
    assert learned.loc[20, "median"] == pytest.approx((2 / 20 + 1) / 2)
    assert learned.loc[20, "only_by_the_whole"] == 0.5
    assert (learned["median"].diff().dropna() >= 0).all()


def test_the_unigram_crossover_matches_values_worked_out_by_hand() -> None:
    """KL from the full model is twice the TV; KL from the unigram is 1 nat."""
    tv = [[0.9, 0.6, 0.4, 0.1]] * 3
    table = curves.unigram_crossover([measured(tv)]).set_index("kind")
    assert table.loc["learned", "median"] == 5 / 20
    shares = curves.unigrams(measured(tv), 0)
    shares = shares[shares["kind"] == "learned"]["nearer_to_unigram"]
    assert shares.tolist() == [1, 1, 0, 0]


# --- composition ------------------------------------------------------------------------------------------------------


def kept(*names: str) -> torch.Tensor:
    return torch.tensor([name in names for name in GRAPH.names])


def test_relative_shares_match_values_worked_out_by_hand() -> None:
    """One MLP of the first layer and one head of the last: half of the subgraph each; MLPs are a fifth of the model."""
    masks = torch.stack([kept("m0"), kept("m0", "a3.h1")])[None].expand(3, -1, -1)
    table = composition.composition(measured([[0.5, 0.4]] * 3, sizes=(1, 2), kept=masks), 0)
    rows = table[(table["kind"] == "learned") & (table["s"] == 2)].set_index("part")["relative"]
    assert rows["MLPs"] == pytest.approx(0.5 / 0.2)
    assert rows["heads"] == pytest.approx(0.5 / 0.8)
    assert rows["quarter 1"] == pytest.approx(0.5 / 0.25)
    assert rows["quarter 2"] == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 30), st.integers(0, 1000))
def test_relative_shares_weighted_by_the_models_shares_sum_to_one(n: int, seed: int) -> None:
    table = composition.composition(measured(falling(n), kept=studies.masks(n, seed=seed)), 0)
    for _, rows in table.groupby(["kind", "s"]):
        for parts in (["heads", "MLPs"], [f"quarter {i}" for i in (1, 2, 3, 4)]):
            chosen = rows[rows["part"].isin(parts)]
            assert (chosen["relative"] * chosen["own_share"]).sum() == pytest.approx(1)


def test_gini_index_matches_values_worked_out_by_hand() -> None:
    assert composition.gini(np.ones(7)) == pytest.approx(0)
    assert composition.gini(np.array([0, 0, 0, 5.0])) == pytest.approx(3 / 4)
    assert composition.lorenz(np.array([3.0, 1.0])) == pytest.approx([0, 0.25, 1])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30).filter(lambda use: sum(use) > 0.1))
def test_the_gini_index_is_half_the_mean_difference_over_the_mean(use: list[float]) -> None:
    values = np.array(use)
    expected = np.abs(values[:, None] - values).mean() / (2 * values.mean())
    assert composition.gini(values) == pytest.approx(expected, abs=1e-9)


def test_overlap_is_one_for_equal_masks_and_zero_for_disjoint_ones() -> None:
    one = torch.stack([kept("m0"), kept("m0", "m1")])[None].expand(4, -1, -1)
    other = torch.stack([kept("m2"), kept("m2", "m1")])[None].expand(4, -1, -1)
    banks = [measured([[0.5, 0.4]] * 4, name, (1, 2), masks) for name, masks in (("a", one), ("b", one), ("c", other))]
    table = comparison.mask_overlaps(banks, 0).set_index(["one", "other", "s"])
    assert table.loc[("a", "b", 2), "overlap"] == 1
    assert table.loc[("a", "c", 1), "overlap"] == 0
    assert table.loc[("a", "c", 2), "overlap"] == 0.5
    assert table.loc[("a", "c", 2), "by_chance"] == pytest.approx(2 / 20, abs=0.02)
    banks[2] = measured([[0.5, 0.4]] * 4, "c", (1, 2), other, fingerprint="beef")
    assert set(comparison.mask_overlaps(banks, 0)["other"]) == {"b"}


def test_values_of_a_column_have_overlaps_of_their_own() -> None:
    """Two values share one of two nodes; the kind norm has the same nodes for both."""
    masks = torch.stack([kept("m0", "m1"), kept("m0", "m2")])[:, None]
    one = measured([[0.5], [0.4]], "langs", (2,), masks)
    config = {"model": {"scope": "column:language"}}
    norm = replace(one.results["norm"], masks=kept("m0", "m3").expand(1, 1, 2, -1))
    mask = replace(one.mask, config=config, groups=("de", "fr"))
    one = replace(one, mask=mask, results={**one.results, "norm": norm})
    table = comparison.mask_overlaps([one], 0).set_index(["one", "other"])
    pair = table.loc[("langs: de", "langs: fr")]
    assert (pair["overlap"], pair["by_norm"]) == (0.5, 1)
    assert table.loc[("langs", "langs: de"), "overlap"] == pytest.approx(0.75)  # uses 1 and 1/2, each with 1


# --- correlations -----------------------------------------------------------------------------------------------------


def test_correlation_of_a_monotone_relation_is_one_and_of_noise_agrees_with_scipy() -> None:
    x = np.arange(30.0)
    found = correlation(x, x**3, 0)
    assert (found.rho, found.low, found.high) == pytest.approx((1, 1, 1))
    assert found.p == pytest.approx(2 / 10_000)
    noise = np.random.default_rng(1).normal(size=30)
    found = correlation(x, noise, 0)
    assert (found.low, found.rho, found.high) == tuple(sorted((found.low, found.rho, found.high)))
    assert found.p == pytest.approx(stats.spearmanr(x, noise).pvalue, abs=0.02)  # SciPy's is from the t distribution


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=5, max_size=25))
def test_correlations_equal_scipys_with_ties(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=float).T
    found = correlation(x, y, 0)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert found.rho is None and "is the same for all" in found.note
    else:
        assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
        assert [-1, found.low, found.high, 1] == sorted([-1, found.low, found.high, 1])


def test_bootstrap_intervals_cover_the_true_mean_about_as_often_as_stated() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        _, low, high = bootstrap_ci(rng.normal(size=40), seed)
        covered += low < 0 < high
    assert 85 <= covered <= 99


def test_true_entropy_is_that_of_the_language() -> None:
    assert mean_true_entropy("<s> pick four of".split(), [3]) == pytest.approx(math.log(4))
    assert mean_true_entropy("<s> pick four of".split(), [2, 3]) == pytest.approx(math.log(4) / 2)
    assert mean_true_entropy("<s> once upon".split(), [2]) is None


def test_inputs_are_matched_across_models_by_their_text() -> None:
    one, other = measured(falling(12), "one"), measured(falling(12), "other", fingerprint="beef")
    shuffled = replace(other, contexts=other.contexts[::-1], results={
        kind: replace(of_kind, texts={
            metric: values.flip(-2 if metric == "recovered" else -1) for metric, values in of_kind.texts.items()
        })
        for kind, of_kind in other.results.items()
    })  # fmt: skip
    for second in (other, shuffled):
        row, *_ = comparison.density_agreement([one, second], 0).query("kind == 'learned'").to_dict("records")
        assert (row["rho"], row["n"], row["same_model"]) == (pytest.approx(1), 12, False)


# --- the study --------------------------------------------------------------------------------------------------------


def test_every_finding_gets_a_verdict_and_the_study_is_reproducible() -> None:
    banks = [measured(falling(30), name, fingerprint=name) for name in ("one", "other")]
    tables = density.study(banks).tables
    verdicts = tables["findings"].set_index(["bank", "finding"])["verdict"]
    assert set(verdicts.index.get_level_values(1)) == set(RULES)
    assert verdicts["one", "density goes with uncertainty"] == "holds"  # entropy grows with density
    assert verdicts["one", "sparse subgraphs are unigram-like"] == "holds"
    assert verdicts["all", "density is alike across models"] == "holds"
    assert verdicts["one", "early core"] == "does not hold"  # masks are random
    again = density.study(banks).tables
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, again[name])


def test_a_single_input_has_no_intervals() -> None:
    study = density.study([measured(falling(1))])
    assert study.tables["curve"]["tv_low"].isna().all()
    assert "not known" in set(study.tables["findings"]["verdict"])
    assert any("a single input: no intervals and no correlations" in note for note in study.notes)
    assert all(study.tables["relations"]["rho"].isna())


def test_constant_entropy_gets_a_note_and_is_not_printed_as_nan() -> None:
    study = density.study([measured(falling(8), full={"entropy": [0.7] * 8})])
    table = study.tables["relations"]
    (row,) = table[(table["kind"] == "learned") & (table["with"] == "entropy")].to_dict("records")
    assert row["note"] == "not defined: the full model's entropy is the same for all 8 inputs"
    findings = study.tables["findings"].set_index("finding")
    assert findings.loc["density goes with uncertainty", "verdict"] == "not known"
    assert "nan" not in study.tables["findings"].to_string()


def test_too_few_sizes_get_a_note() -> None:
    study = density.study([measured([[0.5, 0.4]] * 5, sizes=(1, 2))])
    assert any("has 2 sizes (1, 2), and densities and phases need 3: no density" in note for note in study.notes)
    assert len(study.tables["phases"]) == 0


def test_banks_over_different_inputs_get_a_note() -> None:
    other = replace(measured(falling(6), "other"), contexts=[f"else {i}" for i in range(6)], source="another file")
    study = density.study([measured(falling(5), "one"), other])
    (note,) = (note for note in study.notes if "different inputs" in note)
    assert note == "different inputs (0 shared): one has 5 inputs from a file, other has 6 inputs from another file"


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("sizes", [(1,), (1, 2), (1, 2, 5), (2, 5, 10, 15, 18, 19), (1, 5, 20)])
def test_small_studies_note_undefined_results_and_print_no_nan(n: int, sizes: tuple[int, ...]) -> None:
    """Findings and notes contain no NaN, and every undefined correlation has a note."""
    tv = [[0.9 - 0.1 * i - 0.01 * j for i in range(len(sizes))] for j in range(n)]
    study = density.study([measured(tv, sizes=sizes), measured(tv, "other", sizes=sizes, fingerprint="beef")])
    text = study.tables["findings"].to_string() + " ".join(study.notes)
    assert "nan" not in text.lower()
    undefined = study.tables["relations"].query("rho.isna()")
    assert (undefined["note"] != "").all()
    if n < 4 or len(sizes) < 3:
        assert set(study.tables["relations"]["rho"].isna()) == {True}
        assert study.notes


def test_only_the_first_pairs_of_many_incomparable_banks_get_notes_of_their_own() -> None:
    banks = [replace(measured(falling(5), f"run {i}"), contexts=[f"{i} {j}" for j in range(5)]) for i in range(4)]
    notes = [note for note in density.study(banks).notes if "inputs" in note or "pairs" in note]
    assert [note[:16] for note in notes[:3]] == ["different inputs"] * 3
    assert notes[3:] == ["3 more pairs of banks cannot be compared: see the table across"]


def test_token_densities_are_in_the_order_of_the_text() -> None:
    names = ["0:10", "0:2", "1:1", "0:1"]
    table = correlations.token_densities(measured(falling(4), names=names, tokens=["c", "b", "d", "a"]))
    assert table["token"].tolist() == ["a", "b", "c", "d"]
    assert len(correlations.token_densities(measured(falling(4)))) == 0
