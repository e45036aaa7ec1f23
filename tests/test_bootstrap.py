"""Bootstrap intervals and p-values over few units, against those of Student's t distribution."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masklearn.density.statistics import bootstrap_ci, bootstrap_means, bootstrap_p_values
from masklearn.evaluation.bootstrap import MIN_UNITS, expanded_tail, interval, p_value, too_few


def test_ten_units_take_percentiles_further_out_by_hand() -> None:
    """t(9) is beyond 2.262 with 2.5 %, which is 2.384 standard deviations of resamples: 0.86 % of them are beyond."""
    assert 2.262 * np.sqrt(10 / 9) == pytest.approx(2.384, abs=1e-3)
    assert expanded_tail(0.025, 10) == pytest.approx(0.0086, abs=1e-4)
    resampled = np.arange(10_001.0)
    low, high = interval(resampled, 10)
    assert (low, high) == pytest.approx((86, 9914), abs=1)
    assert expanded_tail(0.025, 10**6) == pytest.approx(0.025, rel=1e-4)


def test_a_p_value_by_hand() -> None:
    """15.87 % of resamples are beyond one standard deviation, 0.949 standard errors of ten units: p = 0.368 by t(9)."""
    assert p_value(1586, 9999, 10) == pytest.approx(0.368, abs=1e-3)
    assert p_value(6000, 9999, 10) == p_value(9999, 9999, 10) == pytest.approx(1)


@given(st.integers(0, 5000), st.integers(MIN_UNITS, 1000))
def test_p_values_and_percentiles_belong_together(n_against: int, n: int) -> None:
    """An interval at the level of the p-value ends where the resamples that are against it begin."""
    share = min((n_against + 1) / 10_000, 0.5)
    assert expanded_tail(p_value(n_against, 9999, n) / 2, n) == pytest.approx(share)


@pytest.mark.parametrize(("n", "plain"), [(10, 0.09), (20, 0.065)])
def test_a_true_null_is_rejected_about_as_often_as_stated(
    n: int, plain: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means of normal samples, whose plain percentiles exclude the true mean of zero far too often."""
    monkeypatch.setattr("masklearn.density.statistics.N_RESAMPLES", 999)
    samples, units = np.random.default_rng(0).normal(size=(2000, n)), np.arange(n)
    p = bootstrap_p_values(samples, units, seed=0)
    _, low, high = bootstrap_ci(samples, units, seed=0)
    assert 0.04 < (p <= 0.05).mean() < 0.065
    assert 0.04 < ((low > 0) | (high < 0)).mean() < 0.065
    low, high = np.quantile(bootstrap_means(samples, units, seed=0), [0.025, 0.975], axis=0)
    assert ((low > 0) | (high < 0)).mean() > plain


def test_fewer_than_ten_units_have_no_interval_and_no_p_value() -> None:
    assert (too_few(1, "group"), too_few(10, "group")) == ("1 group; at least 10 are needed", "")
    assert np.isnan(interval(np.ones((99, 2)), 9)).all() and np.isnan(p_value(0, 99, 9))
