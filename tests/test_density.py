"""Density curves, phases, nuclei, composition and overlap, by numbers worked out on paper."""

# pyright: reportGeneralTypeIssues=false
# (pandas annotates comparisons as anything)

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import studies
import torch
from edge_reference import edge_lm, text
from families import BY_NAME
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import GRAPH, SIZES, falling, measured, of_edges

from masklearn import density
from masklearn.density import comparison, composition, curves, phases
from masklearn.density.headline import headline
from masklearn.edges import edge_bank, importance
from masklearn.mask_file import ModelId
from masklearn.selection.baselines import matched_masks
from masklearn.text_bank import EdgeBank

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
    tv = [[1.0, 0.95, 0.5, 0.1, 0.08, 0.06]] * 10
    head, refinement = phases.phases(measured(tv, sizes=(1, 2, 3, 5, 8, 12)), seed=0)
    assert (head["s"], head["low"], head["high"]) == (2, 2, 2)
    assert refinement["s"] == pytest.approx(refinement["low"]) == pytest.approx(refinement["high"])
    assert refinement["share"] == refinement["in_order"] == 1.0
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


def test_every_draw_recovers_a_nucleus_by_itself() -> None:
    """The top token: one draw of the only input recovers it at five nodes, the other at one node, but not at two."""
    one, tv = measured([[1.0] * 4]), torch.tensor([[[1.0, 1.0, 0.5, 0.5]], [[0.5, 1.0, 1.0, 0.5]]]).mT.double()
    sampled = replace(one, results={"random": studies.results(one.mask.mask[None], tv, studies.full_model(1, {}))})
    assert curves.nuclei(sampled)["median"][0] == (1 / 20 + 5 / 20) / 2
    assert sampled.inputs_by_size()["nucleus_1"].tolist() == [0.5, 0, 0.5, 1]


def test_the_unigram_crossover_matches_values_worked_out_by_hand() -> None:
    """KL from the full model is twice the TV; KL from the unigram is 1 nat."""
    tv = [[0.9, 0.6, 0.4, 0.1]] * 3
    table = curves.unigram_crossover([measured(tv)]).set_index("kind")
    assert table.loc["learned", "median"] == 5 / 20
    shares = curves.unigrams(measured(tv), 0)
    shares = shares[shares["kind"] == "learned"]["nearer_to_unigram"]
    assert shares.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("n", [1, 9, 10])
def test_fewer_than_ten_inputs_have_no_p_value_and_no_interval(n: int) -> None:
    table = curves.unigrams(measured([[0.9, 0.6, 0.4, 0.1]] * n), 0)
    for column in ("nearer_to_unigram_p", "excess_p", "unigram_kl_low", "unigram_kl_high"):
        assert (table[table["kind"] == "learned"][column].isna() == (n < 10)).all()


def test_heads_and_mlps_have_no_excess_over_subgraphs_that_have_as_many() -> None:
    """Ten draws with the heads and MLPs of each mask, at other places: the mean of their numbers is not quite equal."""
    one = measured([[0.9, 0.6, 0.4, 0.1]] * 3)
    draws = matched_masks(10, one.results["learned"].masks[0], GRAPH)
    matched = replace(one.results["random-matched"], masks=draws)
    one = replace(one, results={**one.results, "random-matched": matched})
    table = composition.composition(one, 0)
    table = table[(table["kind"] == "learned") & table["part"].isin(["heads", "MLPs"])]
    assert len(table) and (table["excess"] == 0).all() and not (table["excess_p"] < 1).any()


def test_the_share_of_random_subgraphs_nearer_to_the_unigram_is_that_of_their_draws() -> None:
    """Two draws with a KL of 0.2 and of 3 nats, mean 1.6, and 1 nat from the unigram: one of them is nearer."""
    one = measured([[0.9, 0.6, 0.4, 0.1]] * 3)
    draws = torch.stack([torch.full((4, 3), kl, dtype=torch.float64) for kl in (0.2, 3.0)])
    matched = one.results["random-matched"]
    texts = matched.texts | {"kl": draws, "unigram_kl": torch.ones_like(draws)}
    one = replace(one, results={**one.results, "random-matched": replace(matched, texts=texts)})
    table = curves.unigrams(one, 0).set_index(["kind", "s"])
    assert table.loc[("random-matched", 1), "nearer_to_unigram"] == 0.5
    assert table.loc["learned", "excess"].tolist() == [0.5, 0.5, -0.5, -0.5]
    assert math.isnan(table.loc[("random-matched", 1), "excess"])


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


def test_one_mask_for_all_inputs_has_the_gini_index_of_the_nodes_that_its_edges_use() -> None:
    """A subgraph of few edges uses many nodes, so that the share of its edges says nothing on their use."""
    nodes = measured(falling(5), kept=studies.masks(1).expand(5, -1, -1))
    table = composition.inequality(of_edges(nodes, shares=(0.001, 0.002, 0.005, 0.01)))
    own = table[table["kind"] == "s-trace"]
    assert own["gini"].tolist() == pytest.approx([1 - s / GRAPH.n_nodes for s in SIZES])
    assert own["one_mask_for_all"].tolist() == pytest.approx(own["gini"].tolist())


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30).filter(lambda use: sum(use) > 0.1))
def test_the_gini_index_is_half_the_mean_difference_over_the_mean(use: list[float]) -> None:
    values = np.array(use)
    expected = np.abs(values[:, None] - values).mean() / (2 * values.mean())
    assert composition.gini(values) == pytest.approx(expected, abs=1e-9)


def test_overlap_is_one_for_equal_masks_and_zero_for_disjoint_ones() -> None:
    one = torch.stack([kept("m0"), kept("m0", "m1")])[None].expand(4, -1, -1)
    other = torch.stack([kept("m2"), kept("m2", "m1")])[None].expand(4, -1, -1)
    banks = [measured([[0.5, 0.4]] * 4, name, (1, 2), masks) for name, masks in (("a", one), ("b", one), ("c", other))]
    table = comparison.mask_overlaps(banks).set_index(["one", "other", "s"])
    assert table.loc[("a", "b", 2), "overlap"] == 1
    assert table.loc[("a", "c", 1), "overlap"] == 0
    assert table.loc[("a", "c", 2), "overlap"] == 0.5
    assert table.loc[("a", "c", 2), "by_chance"] == pytest.approx(2 / 20)
    banks[2] = measured([[0.5, 0.4]] * 4, "c", (1, 2), other, fingerprint="beef")
    assert set(comparison.mask_overlaps(banks)["other"]) == {"b"}


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 2), min_size=1, max_size=5))
def test_the_overlap_by_chance_is_that_of_all_orders(pairs: list[tuple[float, float]]) -> None:
    one, other = map(np.array, zip(*pairs, strict=True))
    every = [np.minimum(one, order).sum() for order in itertools.permutations(other)]
    assert comparison._shuffled_overlap(one, other) == pytest.approx(np.mean(every))


def test_values_of_a_column_have_overlaps_of_their_own() -> None:
    """Two values share one of two nodes; the kind norm has the same nodes for both."""
    masks = torch.stack([kept("m0", "m1"), kept("m0", "m2")])[:, None]
    one = measured([[0.5], [0.4]], "langs", (2,), masks)
    config = {"model": {"scope": "column:language"}}
    norm = replace(one.results["norm"], masks=kept("m0", "m3").expand(1, 1, 2, -1))
    mask = replace(one.mask, config=config, groups=("de", "fr"))
    one = replace(one, mask=mask, results={**one.results, "norm": norm})
    table = comparison.mask_overlaps([one]).set_index(["one", "other"])
    pair = table.loc[("langs: de", "langs: fr")]
    assert (pair["overlap"], pair["by_norm"]) == (0.5, 1)
    assert table.loc[("langs", "langs: de"), "overlap"] == pytest.approx(0.75)  # uses 1 and 1/2, each with 1


# --- sizes that cannot hold a path ------------------------------------------------------------------------------------


def test_a_path_takes_one_edge_for_each_level_of_the_bank_that_is_read_back(tmp_path: Path) -> None:
    """Of 160 edges, a path of four layers takes 8 (5 %), or 4 (2.5 %) where they run in parallel."""
    one = of_edges(measured(falling(2), sizes=(1, 2, 5, 10)), n_edges=160)
    assert isinstance(one.mask, EdgeBank) and one.n_short_sizes == 0
    small = replace(one.mask, shares=(0.01, 0.025, 0.049, 0.05))
    for bank, n_short in ((small, 3), (replace(small, parallel=True), 1)):
        bank.save(tmp_path / "mask.safetensors")
        assert replace(one, mask=EdgeBank.load(tmp_path / "mask.safetensors")).n_short_sizes == n_short


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_banks_know_the_path_of_their_models_graph(name: str) -> None:
    model, ids = edge_lm(BY_NAME[name].build()), text()
    bank = edge_bank(model, [ids], ["a text"], [0.1], ModelId("tiny", None, "0"))
    assert bank.path_edges == importance(model, ids).graph.path_edges


def test_sizes_shorter_than_a_path_take_no_segment_of_the_curve() -> None:
    """TV is flat where no path fits, falls by 0.9 in the octave from 6 nodes to 12, and then by 0.05 to the whole."""
    sizes = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18)
    falling_tv = [0.95 - 0.9 * math.log2(size / 6) for size in (6, 8, 10, 12)]
    tv = [[0.97] * 5 + falling_tv + [0.05 * math.log(20 / size, 20 / 12) for size in (14, 16, 18)]] * 6
    one = of_edges(measured(tv, sizes=sizes), n_edges=27)  # a path of 8 edges takes 0.296 of them, six nodes are 0.3
    assert one.n_short_sizes == 5
    curve = phases.MeanCurve.of(one, one.own_kind)
    assert 10**curve.x == pytest.approx([*(size / 20 for size in sizes[5:]), 1])
    fit = curve.fit(curve.tv.mean(1)[None])[0]
    assert len(fit.slopes) == 2 and fit.refinement == pytest.approx(math.log10(12 / 20))
    assert phases.phases(one, seed=0)[1]["slopes"].count(";") == 1
    whole = replace(one, mask=replace(one.mask, parallel=True))  # 4 edges: 0.148
    assert len(phases.MeanCurve.of(whole, one.own_kind).x) == 11


def test_a_bank_whose_sizes_are_all_shorter_than_a_path_has_no_phases() -> None:
    study = density.study([of_edges(measured(falling(5)), n_edges=10)])
    assert len(study.tables["phases"]) == 0
    assert "4 of the 4 sizes of a run cannot hold a path" in " ".join(study.notes)
    assert "at least 3 sizes that can hold a path" in study.tables["findings"]["flips_with"].iloc[0]
    assert headline(study.measurements).startswith("No density curve")


def test_a_curve_that_rises_with_size_gets_a_note() -> None:
    """The first bank's TV rises by 0.1 for every input at two nodes, and by 0.1 for half, or -0.1, at ten."""
    tv = [[0.6, 0.7, 0.3, 0.4 if i % 2 else 0.2] for i in range(10)]
    assert curves.rises(measured(tv), 0) == [2]
    assert curves.rises(measured(falling(10)), 0) == []
    assert curves.rises(measured(tv[:1]), 0) == []
    assert curves.rises(of_edges(measured(tv), n_edges=100), 0) == []  # a path takes 8 of them, one node is 5 %
    notes = density.study([measured(tv), measured(falling(10), "falling")]).notes
    assert [note for note in notes if "rises" in note] == [
        "mean TV of the learned subgraphs of a run rises with size, up to 2 nodes, by more than the interval of the "
        "difference allows: a sign of too weak a search (--model.steps)"
    ]


def test_a_curve_that_falls_to_its_end_has_its_phases_in_order_in_no_resample() -> None:
    """TV falls by 0.05 an octave up to eight nodes, and by more and more after."""
    bank = measured([[0.9, 0.85, 0.8, 0.75, 0.5, 0.3]] * 10, sizes=(1, 2, 4, 8, 12, 15))
    assert phases.phases(bank, seed=0)[1]["in_order"] == 0
    row = density.study([bank]).tables["findings"].set_index("finding").loc["two phases"]
    assert row["flips_with"].endswith("it is 0.0000")


def test_two_phases_of_edges_are_set_beside_the_shares_of_mlp_and_residual_edges() -> None:
    tv = [[0.9, 0.8, 0.5, 0.3, 0.1, 0.05]] * 10
    nodes = measured(tv, sizes=(1, 2, 5, 8, 12, 15))
    for bank, expected in ((of_edges(nodes), True), (nodes, False)):
        row = density.study([bank]).tables["findings"].set_index("finding").loc["two phases"]
        assert ("of all edges MLPs' are 10.00% and residual ones 20.00%" in row["measured"]) == expected
