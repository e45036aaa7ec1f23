"""The simulation behind the table of calibration: true null hypotheses, rejected as often as they should be."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from masklearn.evidence import circuit_tests as tests
from masklearn.evidence.hypotheses import ALPHA

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import calibration

N_CIRCUITS = 120


@pytest.fixture(scope="module")
def rejections() -> dict[str, int]:
    """How often each test rejects in so many simulated circuits."""
    rng, found = np.random.default_rng(1), dict.fromkeys(tests.VERDICTS, 0)
    for _ in range(N_CIRCUITS):
        for outcome in calibration.simulated(rng, 62, 103):
            found[outcome.test] += outcome.p is not None and outcome.p <= ALPHA
    return found


@pytest.mark.parametrize("test", tests.VERDICTS)
def test_true_null_hypotheses_are_rejected_at_the_level(rejections: dict[str, int], test: str) -> None:
    low, high = stats.binom.interval(0.99, N_CIRCUITS, ALPHA)
    assert low <= rejections[test] <= high


def test_false_null_hypotheses_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A circuit that beats 999 of 1,000 random ones, and whose scores are better than the model's in most texts."""
    monkeypatch.setattr(calibration, "LOWEST", 0.001)
    monkeypatch.setattr(calibration, "QUANTILE", 0.999)
    monkeypatch.setattr(calibration, "TOLERANCE", 0.45)
    rng = np.random.default_rng(2)
    found = [outcome for _ in range(5) for outcome in calibration.simulated(rng, 62, 103)]
    for test in (tests.SUFFICIENCY, tests.NECESSITY, tests.EQUIVALENCE):
        p_values = [outcome.p for outcome in found if outcome.test == test]
        assert len(p_values) == 5
        assert all(p is not None and p <= ALPHA for p in p_values)


def test_shares_of_single_tests_and_of_families_by_hand() -> None:
    """Of two banks of five circuits, one rejects sufficiency once, clearly enough for five."""
    outcomes = iter([tests.Outcome(tests.SUFFICIENCY, "g", i, p=0.5 if i else 0.001) for i in range(10)])
    assert calibration.rates(2, lambda: [next(outcomes)])[tests.SUFFICIENCY] == (0.1, 0.5)
