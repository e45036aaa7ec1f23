"""Verdicts: the correction for their number, and what would flip each."""

# pyright: reportGeneralTypeIssues=false
# (pandas annotates comparisons as anything)

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from masklearn.density.statistics import N_RESAMPLES, bootstrap_p
from masklearn.density.verdicts import ALPHA, Claim, Comparison, verdicts
from masklearn.evaluation.holm import holm, holm_factors


def test_holm_matches_values_worked_out_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_never_lowers_a_p_value(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    assert [corrected[i] for i in np.argsort(p_values, kind="stable")] == sorted(corrected)


def test_holm_factors_match_values_worked_out_by_hand() -> None:
    """0.04 comes last where 0.01 times 3 and 0.02 times 2 are at most 0.05, and second where 0.03 times 2 is not."""
    assert holm_factors([0.01, 0.04, 0.02], 0.05) == [3, 1, 2]
    assert holm_factors([0.01, 0.04, 0.03], 0.05) == [3, 2, 2]
    assert holm_factors([], 0.05) == []


@given(st.lists(st.sampled_from([0.001, 0.004, 0.007, 0.01, 0.012, 0.03, 0.2]), min_size=1, max_size=12))
def test_a_p_value_times_its_holm_factor_decides_as_the_corrected_p_value(p_values: list[float]) -> None:
    factors = holm_factors(p_values, ALPHA)
    decided = [p * factor <= ALPHA for p, factor in zip(p_values, factors, strict=True)]
    assert decided == [corrected <= ALPHA for corrected in holm(p_values)]
    for i, factor in enumerate(factors):  # and it would decide alike at any other p-value
        for p in (0.99 * ALPHA / factor, 1.01 * ALPHA / factor):
            assert (holm([*p_values[:i], p, *p_values[i + 1 :]])[i] <= ALPHA) == (p * factor <= ALPHA)


def test_a_bootstrap_p_value_doubles_the_smaller_tail() -> None:
    """Of inputs so many that Student's t distribution is the normal one."""
    assert bootstrap_p(np.array([-1.0, 1, 2, 3]), n=10**6) == pytest.approx(2 * 2 / 5, rel=1e-4)
    assert bootstrap_p(np.array([1.0, 2, 3, 4]), n=10**6, null=9) == pytest.approx(2 / 5, rel=1e-4)


def test_a_verdict_needs_the_right_side_and_a_corrected_p_value() -> None:
    """Of four claims with p 0.02, Holm leaves none; alone the same claim holds. A significant opposite does not."""

    def claim(value: float, p: float) -> Claim:
        return Claim("a bank", f"{value} {p}", "", [Comparison("rho", value, value - 0.2, value + 0.2, p, 100)])

    assert verdicts([claim(0.3, 0.02)])["verdict"].tolist() == ["holds"]
    assert set(verdicts([claim(0.3, 0.02)] * 4)["verdict"]) == {"does not hold"}
    assert verdicts([claim(-0.9, 0.0002)])["verdict"].tolist() == ["does not hold"]
    assert verdicts([Claim("a bank", "x", "", needs="more")])["verdict"].tolist() == ["not known"]


def test_what_flips_a_verdict_matches_values_worked_out_by_hand() -> None:
    """One verdict needs an effect of the half width, 0.196, which is t(99) = 1.984 standard errors of 0.0988.

    Half of that effect takes t(392) = 1.966 standard errors of 0.0988 times the root of 100 / 393: 0.098.
    """
    holding = Comparison("rho", 0.5, 0.304, 0.696, 0.0002, 100)
    assert holding.needs(1, holds=True) == "rho at most 0.20"
    weak = Comparison("rho", 0.098, 0.098 - 0.196, 0.098 + 0.196, 0.3, 100)
    assert 1.966 * 0.196 / 1.984 * math.sqrt(100 / 393) == pytest.approx(0.098, abs=1e-4)
    assert weak.needs(1, holds=False) == "rho as now (0.10) on about 393 inputs"
    of_texts = Comparison("rho", 0.098, 0.098 - 0.196, 0.098 + 0.196, 0.3, 100, "text")
    assert of_texts.needs(1, holds=False) == "rho as now (0.10) on about 393 texts"
    opposite = Comparison("share", 1.2, 1.0, 1.4, 0.03, 100, null=1.0, above=False)
    assert opposite.needs(1, holds=False) == "share below 1.00; it is 1.20"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.0002, 0.049), max_size=10), st.floats(2.0, 4.0), st.floats(0.7, 1.4), st.booleans())
def test_no_verdict_that_holds_has_flipped_already(others: list[float], z: float, narrower: float, above: bool) -> None:
    """Of an estimate z standard errors from 0, beside ten others, with an interval that is not quite the p-value's."""
    p, sign = 2 * float(stats.norm.sf(z)), 1 if above else -1
    half = 1.96 * narrower
    claims = [Claim("a bank", str(i), "", [Comparison("x", 1, 0.5, 1.5, p, 99)]) for i, p in enumerate(others)]
    estimate = Comparison("rho", sign * z, sign * z - half, sign * z + half, p, 99, above=above)
    row = verdicts([*claims, Claim("a bank", "rho", "", [estimate])]).iloc[-1]
    flip = row["flips_with"]
    if row["verdict"] == "holds":
        end = f"rho at {'most' if above else 'least'} "
        assert flip.startswith(end)
        assert sign * float(flip.removeprefix(end)) <= z + 0.005  # it is printed with two decimals
    else:
        n_inputs = int(flip.removeprefix(f"rho as now ({sign * z:.2f}) on about ").removesuffix(" inputs"))
        assert n_inputs > 99


def test_a_flip_value_takes_the_factor_of_its_own_claim() -> None:
    """Of eleven claims ten have passed before the last, which needs t(99) = 1.98 standard errors of 0.0988, not 2.90.

    Its p-value is that of 2.453 standard errors, and 0.24 times 1.984 / 2.453 is 0.194.
    """
    strong = [Claim("a bank", str(i), "", [Comparison("x", 1, 0.9, 1.1, 0.001, 100)]) for i in range(10)]
    last = verdicts([*strong, Claim("a bank", "rho", "", [Comparison("rho", 0.24, 0.044, 0.436, 0.016, 100)])]).iloc[-1]
    assert (last["verdict"], last["flips_with"]) == ("holds", "rho at most 0.19")


def test_shares_of_resamples_flip_at_the_corrected_level() -> None:
    """Of five verdicts, each has 0.5 % on one side: 2.626 by t(99), and so 2.640 standard deviations of resamples."""
    one = Comparison("share", 0.99, 0.99, 0.99, 0.02, 100, null=0.975, of_resamples=True)
    assert stats.norm.cdf(2.626 * math.sqrt(100 / 99)) == pytest.approx(0.9959, abs=1e-4)
    assert one.needs(5, holds=False) == "share above 0.9959; it is 0.9900"
    assert one.needs(5, holds=True) == "share at most 0.9959"


def test_no_verdict_fails_because_too_few_resamples_are_drawn() -> None:
    """No resample contradicts the claims, and the smallest p-value of a resampling is too large for more than 141.

    One in 10,000 is 3.719 standard deviations of resamples, or 3.700 standard errors: p = 0.000354 by t(99).
    """
    smallest = bootstrap_p(np.ones(N_RESAMPLES), n=100)
    assert smallest == pytest.approx(2 * stats.t.sf(3.719 * math.sqrt(99 / 100), 99), rel=1e-3)

    def claims(n: int, value: float = 0.5, p: float = smallest) -> list[Claim]:
        return [Claim("a bank", str(i), "", [Comparison("rho", value, 0.4, 0.6, p, 100)]) for i in range(n)]

    assert set(verdicts(claims(141))["verdict"]) == {"holds"}
    unknown = verdicts(claims(142))
    assert set(unknown["verdict"]) == {"not known"}
    assert unknown["flips_with"].str.startswith("fewer banks in one study, or more inputs: 142 verdicts").all()
    assert set(verdicts(claims(142, value=-0.5))["verdict"]) == {"does not hold"}
    assert set(verdicts(claims(142, p=2 * smallest))["verdict"]) == {"does not hold"}
