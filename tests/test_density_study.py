"""Correlations, comparisons of banks, and the study as a whole."""

# pyright: reportGeneralTypeIssues=false
# (pandas annotates comparisons as anything)

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from studies import falling, measured

from masklearn import density
from masklearn.density import comparison, correlations
from masklearn.density.findings import RULES
from masklearn.density.measurements import mean_true_entropy
from masklearn.density.statistics import bootstrap_ci, correlation

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
