"""The simulation of many devices deals blocks as it says."""

import pytest
from scheduling import BY_LENGTH, IN_ORDER, ONE_BY_ONE, cost_model, deal, simulate, utilisation


def test_blocks_are_dealt_in_three_ways() -> None:
    costs = [4.0, 3, 2, 1]
    assert deal(costs, costs, [1, 1], IN_ORDER) == [6, 4]
    assert deal(costs, costs, [1, 1], BY_LENGTH) == deal(costs, costs, [1, 1], ONE_BY_ONE) == [5, 5]
    estimates, costs = [2.0, 2, 1, 1], [2.0, 6, 1, 1]  # the second block takes longer than its length foretells
    assert deal(estimates, costs, [1, 1], BY_LENGTH) == [3, 7]
    assert deal(estimates, costs, [1, 1], ONE_BY_ONE) == [4, 6]
    assert deal([3.0] * 3, [3.0] * 3, [1, 0.5], BY_LENGTH) == deal([3.0] * 3, [3.0] * 3, [1, 0.5], ONE_BY_ONE) == [6, 6]
    assert deal([1.0] * 4, [1.0] * 4, [3, 1], BY_LENGTH) == [pytest.approx(2 / 3), 2]
    assert deal([1.0] * 4, [1.0] * 4, [3, 1], ONE_BY_ONE) == [pytest.approx(1), 1]
    assert utilisation([4, 6]) == pytest.approx(10 / 12)


def test_the_cost_of_a_block_is_fitted_by_length() -> None:
    fixed, slope, spread = cost_model({10: [24.0, 24.0], 20: [44.0, 44.0]}, 2)
    assert (fixed, slope, spread) == (pytest.approx(2), pytest.approx(1), 0)


def test_taking_blocks_one_by_one_keeps_64_devices_busy() -> None:
    shares = {how: utilisation(done) for how, done in simulate((0.1, 0.004, 0.06), 10_000, [1.0] * 64, 16, 0).items()}
    assert shares[IN_ORDER] < shares[BY_LENGTH] < shares[ONE_BY_ONE]
    assert shares[ONE_BY_ONE] > 0.9
