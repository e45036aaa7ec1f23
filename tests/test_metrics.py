import json
import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torchmetrics.functional import kl_divergence as torchmetrics_kl

from masklearn.evaluation.bank_report import mean_std
from masklearn.evaluation.measure import nan_to_none
from masklearn.evaluation.metrics import (
    DistributionPair,
    SubgraphMetrics,
    js_divergence,
    recovered_nucleus,
    tv_distance,
)
from masklearn.evaluation.tables import table


def log_of(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log()


def random_logp(seed: int, *shape: int) -> Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


def test_distances_of_two_coins_by_hand() -> None:
    fair, loaded = log_of(0.5, 0.5), log_of(1.0, 1e-30)
    assert_close(tv_distance(fair, loaded), torch.tensor(0.5))
    # m = (3/4, 1/4): (KL(fair||m) + KL(loaded||m)) / 2 = (log(4/3)/2 + log(4/3)) / 2
    expected = (
        0.5 * torch.tensor(0.5 / 0.75).log() + 0.5 * torch.tensor(0.5 / 0.25).log() + torch.tensor(4 / 3).log()
    ) / 2
    assert_close(js_divergence(fair, loaded), expected)


@given(st.integers(0, 1000))
def test_distances_stay_in_their_ranges_and_js_is_symmetric(seed: int) -> None:
    full, masked = random_logp(seed, 5, 7), random_logp(seed + 1, 2, 5, 7)
    tv, js = tv_distance(full, masked), js_divergence(full, masked)
    assert ((tv >= 0) & (tv <= 1)).all()
    assert ((js >= 0) & (js <= torch.tensor(2.0).log())).all()
    assert_close(js, js_divergence(masked, full))
    assert (js_divergence(full, full).abs() < 1e-6).all()


def test_nuclei_by_hand() -> None:
    full = log_of(0.5, 0.3, 0.15, 0.05)[None]
    swapped_tail = log_of(0.5, 0.3, 0.05, 0.15)[None, None]
    # up to 80 % both nuclei are the same top two tokens; from 90 % on the third differs
    assert recovered_nucleus(full, swapped_tail).item() == 80
    assert recovered_nucleus(full, full[None]).item() == 99
    other = log_of(0.1, 0.3, 0.15, 0.45)[None, None]
    assert recovered_nucleus(full, other).item() == 0
    wider = log_of(0.4, 0.35, 0.2, 0.05)[None, None]  # its nucleus of 50 % has two tokens, the full model's one
    assert recovered_nucleus(full, wider).item() == 40  # although the nuclei of 60, 70, 90 and 99 % are equal


@given(st.integers(0, 1000))
def test_means_agree_with_torchmetrics_and_do_not_depend_on_batches(seed: int) -> None:
    full, masked = random_logp(seed, 9, 6), random_logp(seed + 1, 3, 9, 6)
    labels = torch.tensor([0, 1, 2, -1, 4, 5, 0, -1, 2])
    whole, batched = SubgraphMetrics(3), SubgraphMetrics(3)
    whole.update(DistributionPair(full, masked), labels)
    for batch in (slice(0, 4), slice(4, 5), slice(5, 9)):
        batched.update(DistributionPair(full[batch], masked[:, batch]), labels[batch])
    found = whole.compute()
    for name, value in batched.compute().items():
        assert_close(value, found[name])
    for k in range(3):
        assert_close(found["kl"][k].float(), torchmetrics_kl(full, masked[k], log_prob=True), atol=1e-5, rtol=1e-4)
        labelled = labels >= 0
        expected = -masked[k, labelled].gather(-1, labels[labelled, None]).mean()
        assert_close(found["cross_entropy"][k].float(), expected, atol=1e-5, rtol=1e-5)
    assert_close(found["top1"], (full.argmax(-1) == masked.argmax(-1)).double().mean(-1))


def test_a_perfect_subgraph_has_no_distance_and_recovers_every_nucleus() -> None:
    full = random_logp(0, 4, 6)
    meter = SubgraphMetrics(1)
    meter.update(DistributionPair(full, full[None]), torch.tensor([1, 2, 3, -1]))
    found = {name: value.item() for name, value in meter.compute().items()}
    assert (found["kl"], found["tv"], found["top1"], found["nucleus_median"]) == (0, 0, 1, 99)
    assert found["cross_entropy"] == found["full_cross_entropy"]


def test_results_that_are_not_finite_are_none_and_dashes() -> None:
    """Of a mask, and of one of two random ones; infinity is no number of JSON either."""
    row = nan_to_none({"kl": math.inf, "tv": math.nan, "js": math.nan, "cross_entropy": math.nan})
    row |= {"s": 1, "fraction": 0.1, "heads": 1, "mlps": 0, "top1": 0.0, "nucleus_median": 0, "full_cross_entropy": 2.0}
    row["controls"] = {"random": mean_std([{"kl": 1.0, "tv": 0.5, "top1": 0.0}, {"kl": None, "tv": None, "top1": 0.0}])}
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert (row["controls"]["random"]["kl_mean"], row["controls"]["random"]["top1_mean"]) == (None, 0)
    titles, cells = table([row])
    found = dict(zip(titles, cells, strict=True))
    assert [found[name] for name in ("KL", "random KL", "TV", "JS", "CE", "full CE")] == ["-"] * 5 + ["2.000"]
