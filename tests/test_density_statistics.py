"""Correlations, plain and partial, their intervals and their p-values."""

# pyright: reportGeneralTypeIssues=false
# (pandas annotates comparisons as anything)

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from masklearn.density.statistics import bootstrap_ci, bootstrap_p_values, correlation, rank_bootstrap

EACH = np.arange(1000)
"""Units of inputs each of which is a text of its own."""


def test_correlation_of_a_monotone_relation_is_one_and_of_noise_agrees_with_scipy() -> None:
    x = np.arange(30.0)
    found = correlation(x, x**3, EACH[:30], 0)
    assert (found.rho, found.low, found.high) == pytest.approx((1, 1, 1))
    assert found.p == pytest.approx(2 / 10_000)
    noise = np.random.default_rng(1).normal(size=30)
    found = correlation(x, noise, EACH[:30], 0)
    assert (found.low, found.rho, found.high) == tuple(sorted((found.low, found.rho, found.high)))
    assert found.p == pytest.approx(stats.spearmanr(x, noise).pvalue, abs=0.02)  # SciPy's is from the t distribution


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=5, max_size=25))
def test_correlations_equal_scipys_with_ties(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=float).T
    found = correlation(x, y, EACH[: len(x)], 0)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert found.rho is None and "is the same for all" in found.note
        return
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    if len(x) < 10:
        assert found.low is None and found.high is None and found.p is not None
    else:
        assert [-1, found.low, found.high, 1] == sorted([-1, found.low, found.high, 1])


def test_bootstrap_intervals_cover_the_true_mean_about_as_often_as_stated() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        _, low, high = bootstrap_ci(rng.normal(size=40), EACH[:40], seed)
        covered += low < 0 < high
    assert 85 <= covered <= 99


def test_a_partial_correlation_is_that_of_the_residuals_of_ranks() -> None:
    """Two variables with one common cause; given it, nothing is left. Checked against a regression of ranks."""
    rng = np.random.default_rng(3)
    cause, x, y = rng.normal(size=(3, 150))
    x, y = x + 2 * cause, y + 2 * cause
    plain, partial = (correlation(x, y, EACH[:150], 0, given=given) for given in ([], [cause, cause]))
    assert plain.rho and plain.rho > 0.6 and plain.p and plain.p < 0.01
    assert partial.low and partial.high and partial.low < 0 < partial.high
    ranks = [stats.rankdata(values) for values in (x, y, cause)]
    left = [one - np.polyval(np.polyfit(ranks[2], one, 1), ranks[2]) for one in ranks[:2]]
    assert partial.rho == pytest.approx(stats.pearsonr(*left).statistic)
    assert "determines" in correlation(x, cause, EACH[:150], 0, given=[cause]).note


def test_p_values_of_partial_correlations_count_the_variables_given() -> None:
    """Six given variables take six degrees of freedom: Student's t with 20, not with 26."""
    x, y, *given = np.random.default_rng(3).normal(size=(8, 28))
    found = correlation(x, y, EACH[:28], 0, given=given)
    assert found.rho is not None
    rho = found.rho

    def of_t(freedom: int) -> float:
        t = abs(rho) * math.sqrt(freedom / (1 - rho**2))
        return 2 * float(stats.t.sf(t, freedom))

    assert of_t(26) < of_t(20) - 0.03
    assert found.p == pytest.approx(of_t(20), abs=0.012)


def test_partial_correlations_need_more_inputs_for_every_variable_given() -> None:
    x, y, *given = np.random.default_rng(0).normal(size=(4, 15))
    assert correlation(x, y, EACH[:15], 0, given=given).note == "not defined: 15 inputs have all values, 16 are needed"
    assert correlation(x, y, EACH[:15], 0, given=given[:1]).p is not None


def test_bootstrap_of_ranks_equals_ranking_every_resample() -> None:
    """Drawn input by input, with ties, and partial."""
    rng = np.random.default_rng(4)
    values = rng.integers(0, 6, (3, 25)).astype(float)
    found = rank_bootstrap(values, EACH[:25], seed=1)
    counts = np.random.default_rng(1).multinomial(25, np.full(25, 1 / 25), size=len(found))
    for i in (0, 7, 400):
        ranked = stats.rankdata(values[:, np.repeat(np.arange(25), counts[i])], axis=1)
        r = np.corrcoef(ranked)
        expected = (r[0, 1] - r[0, 2] * r[1, 2]) / math.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
        assert found[i] == pytest.approx(expected)


# --- inputs of one text -----------------------------------------------------------------------------------------------


def test_the_bootstrap_draws_whole_texts() -> None:
    """Ten texts of two inputs with the values 0 to 9: means, intervals and p-values are those of the ten texts."""
    texts, of_text = np.repeat(np.arange(10), 2), np.arange(10.0)[None]
    for found, expected in zip(
        bootstrap_ci(of_text.repeat(2, axis=1), texts, 0), bootstrap_ci(of_text, EACH[:10], 0), strict=True
    ):
        assert found == pytest.approx(expected)
    found = bootstrap_p_values(of_text.repeat(2, axis=1), texts, 0, null=2)
    assert found == pytest.approx(bootstrap_p_values(of_text, EACH[:10], 0, null=2))
    assert np.isnan(bootstrap_ci(np.arange(18.0), texts[:18], 0)[1])  # nine texts


def test_ranks_of_whole_texts_equal_ranking_every_resample() -> None:
    rng = np.random.default_rng(4)
    values, texts = rng.integers(0, 6, (2, 30)).astype(float), np.repeat(np.arange(12), [2, 3] * 6)
    found = rank_bootstrap(values, texts, seed=1)
    counts = np.random.default_rng(1).multinomial(12, np.full(12, 1 / 12), size=len(found))
    for i in (0, 7, 400):
        ranked = stats.rankdata(values[:, np.repeat(np.arange(30), counts[i][texts])], axis=1)
        assert found[i] == pytest.approx(np.corrcoef(ranked)[0, 1])


def test_inputs_that_are_alike_within_texts_are_not_taken_for_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unrelated values of 300 tokens that differ between 20 texts: permuted tokens would reject a third of them."""
    monkeypatch.setattr("masklearn.density.statistics.N_RESAMPLES", 199)
    rng, texts, rejected, as_if_independent = np.random.default_rng(0), np.repeat(np.arange(20), 15), 0, 0
    for seed in range(60):
        x, y = rng.normal(size=(2, 300)) + rng.normal(size=(2, 20))[:, texts]
        found = correlation(x, y, texts, seed)
        assert found.p is not None
        rejected += found.p <= 0.05
        as_if_independent += stats.spearmanr(x, y).pvalue <= 0.05
    assert rejected <= 8 and as_if_independent >= 15
