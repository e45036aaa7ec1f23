"""Evidence on masks: the tests' p-values, stability, completeness, and resampled texts."""

from collections import Counter
from fnmatch import fnmatch
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import by_hand, refused, texts, tiny_llama
from torch import Tensor
from torch.testing import assert_close

from masklearn.data import Batch, MaskData
from masklearn.evaluation.holm import holm
from masklearn.evidence import circuit_tests as tests
from masklearn.evidence.circuit_tests import Circuit, corrected, run_tests
from masklearn.evidence.completeness import adversary, n_adversary_masks, nodes_per_round
from masklearn.evidence.hypotheses import (
    at_least_p,
    at_most_p,
    equivalence_p,
    fewest_draws,
    fewest_texts,
    independence_p,
)
from masklearn.evidence.intervals import mean_interval
from masklearn.evidence.plan import EvidencePlan
from masklearn.evidence.resampled_texts import bootstrapped, half, shuffled
from masklearn.evidence.stability import chance_jaccard, near_optimal, overlap
from masklearn.evidence.text_scores import TextScores, kl_between, score_texts
from masklearn.graph import NodeGraph
from masklearn.masking import MaskedLM
from masklearn.objective import kl_divergence

GRAPH = NodeGraph(3, 4)
PLANT = ("a0.h1", "a0.h3", "a2.h2", "m2")


# --- p-values ---------------------------------------------------------------------------------------------------------


def test_the_tests_reject_from_the_counts_that_the_binomial_distribution_gives() -> None:
    assert equivalence_p(69, 100) <= 0.05 < equivalence_p(68, 100)
    assert equivalence_p(257, 400) <= 0.05 < equivalence_p(256, 400)
    assert_close(equivalence_p(31, 100), equivalence_p(69, 100))
    assert equivalence_p(50, 100) == pytest.approx(1)
    assert round(at_least_p(96, 100), 3) == 0.024
    assert at_least_p(95, 100) > 0.05
    assert at_most_p(84, 100) <= 0.05 < at_most_p(85, 100)
    assert fewest_draws(1) == 29
    assert fewest_texts(1) == 7


def test_a_verdict_that_no_node_is_superfluous_names_none() -> None:
    """One of three sizes has p = 0.03, which the correction for their number makes 0.09."""
    note = f"not tested: m0; {tests.SUPERFLUOUS}a0.h1"
    found = [tests.Outcome(tests.MINIMALITY, "g", s, 9, p=p, note=note) for s, p in ((1, 0.03), (2, 1.0), (3, 1.0))]
    (first, *_), (alone,) = corrected(found), corrected(found[:1])
    assert first.verdict == "no superfluous node found" and first.note == "not tested: m0"
    assert alone.verdict == "has superfluous nodes" and alone.note == note


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_independence_finds_a_dependence_without_correlation() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    assert independence_p(x, x**2) == pytest.approx(1 / 1001)
    assert independence_p(x, rng.normal(size=60)) > 0.05


def test_the_interval_of_a_mean_holds_it() -> None:
    mean, low, high = mean_interval(torch.arange(20, dtype=torch.float64), 0)
    assert low < mean == 9.5 < high
    assert mean_interval(torch.ones(12, dtype=torch.float64), 0) == (1, 1, 1)


# --- stability --------------------------------------------------------------------------------------------------------


def test_the_chance_of_overlap_is_that_of_all_pairs_of_masks() -> None:
    graph = NodeGraph(2, 2)
    heads, mlps = [0, 1, 3, 4], [2, 5]
    all_masks = [{*h, *m} for h in combinations(heads, 2) for m in combinations(mlps, 1)]
    pairs = [(a, b) for a in all_masks for b in all_masks]
    expected = [
        np.mean([len(a & b & kind) / len((a | b) & kind) for a, b in pairs])
        for kind in ({*heads, *mlps}, {*heads}, {*mlps})
    ]
    assert chance_jaccard(graph, (2, 1), (2, 1)) == pytest.approx(expected)


def test_the_overlap_of_two_masks_by_hand() -> None:
    graph = NodeGraph(2, 2)
    masks = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 0, 0]]).bool()
    found = overlap(masks, masks.float(), graph)
    assert (found.jaccard, found.heads, found.mlps) == pytest.approx((1 / 2, 1 / 3, 1))
    same = overlap(masks[[0, 0]], masks[[0, 0]].float(), graph)
    assert (same.jaccard, same.weighted, same.rank_correlation) == pytest.approx((1, 1, 1))


def test_masks_near_the_lowest_kl_are_counted_once() -> None:
    masks = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1]]).bool()
    found = near_optimal(masks, [1.0, 1.0, 1.019, 1.03])
    assert (found.n, found.kl) == (2, 1.0)
    assert found.jaccard == pytest.approx(1 / 3)


# --- on models --------------------------------------------------------------------------------------------------------


def planted() -> tuple[MaskedLM, Tensor, list[Batch]]:
    """A model in which four nodes alone write anything, their mask, and texts."""
    lm = tiny_llama()
    plant = torch.tensor([name in PLANT for name in GRAPH.names])
    grid = GRAPH.by_layer(plant)
    for layer, kept in zip(lm.model.layers, grid, strict=True):
        for head in range(GRAPH.n_heads):
            layer.self_attn.o_proj.weight[:, head * 8 : head * 8 + 8] *= float(kept[head])
        layer.mlp.down_proj.weight *= float(kept[-1])
    ids = torch.randint(3, 50, (40, 6), generator=torch.Generator().manual_seed(2))
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    return MaskedLM(lm), plant, [Batch(ids, everywhere, everywhere, torch.arange(40), torch.zeros(40).long())]


def test_the_tests_find_a_plant_and_tell_it_from_more_nodes_and_from_others() -> None:
    masked_lm, plant, batches = planted()
    spare = plant.clone()
    spare[GRAPH.names.index("a1.h0")] = True
    elsewhere = torch.tensor([name in ("a1.h0", "a1.h1", "a1.h2", "m1") for name in GRAPH.names])
    outcomes = {}
    for name, mask in {"plant": plant, "spare": spare, "elsewhere": elsewhere}.items():
        circuit, scores, begin = Circuit(mask, GRAPH, 103, 0), [], 0
        blocks = circuit.subgraphs()
        every = score_texts(masked_lm, torch.cat(blocks), batches)
        for block in blocks:
            scores.append(every.select(slice(begin, begin + len(block))))
            begin += len(block)
        results = corrected(run_tests(circuit, name, scores, 1))
        outcomes[name] = {result.test: result for result in results}
    of_plant = outcomes["plant"]
    assert of_plant[tests.EQUIVALENCE].verdict == "no difference found"
    assert of_plant[tests.MINIMALITY].verdict == "no superfluous node found"
    assert not of_plant[tests.MINIMALITY].note
    assert of_plant[tests.SUFFICIENCY].verdict == "beats random subgraphs"
    assert of_plant[tests.NECESSITY].verdict == "needed more than random ones"
    assert outcomes["spare"][tests.MINIMALITY].note.endswith("a1.h0")
    of_elsewhere = outcomes["elsewhere"]
    assert of_plant[tests.INDEPENDENCE].verdict == "no dependence found"
    assert of_elsewhere[tests.INDEPENDENCE].verdict == "the rest still tells"
    assert of_elsewhere[tests.SUFFICIENCY].verdict == of_elsewhere[tests.NECESSITY].verdict == "not shown"


@pytest.mark.parametrize(
    ("names", "verdict", "note"),
    [
        (["a0.h1", "m0", "m1", "m2"], "no superfluous node found", "not tested, *: m0, m1, m2"),
        (["a0.h1", "m0", "m1"], "has superfluous nodes", "matter less *: m0, m1"),
        (["a1.h1", "m0", "m1", "m2"], "has superfluous nodes", "not tested, *: m0, m1, m2; matter less *: a1.h1"),
        (["m0", "m1", "m2"], "not tested", "not tested, *: m0, m1, m2"),
    ],
)
def test_nodes_are_compared_with_others_of_their_kind_or_not_at_all(names: list[str], verdict: str, note: str) -> None:
    """A node that is added lowers the KL by 1; closing a head of layer 0 raises it by 2, other nodes by 0."""
    mask = torch.tensor([name in names for name in GRAPH.names])
    less = torch.tensor([3.0 if name.startswith("a0") else 1.0 for name in names])
    kls = [torch.ones(2), torch.ones(1), torch.ones(1), less, torch.zeros(int((~mask).sum()))]
    scores = [TextScores(kl[:, None], torch.zeros(len(kl), 1), torch.zeros(1), "none") for kl in kls]
    results = corrected(run_tests(Circuit(mask, GRAPH, 1, 0), "", scores, 1))
    (minimality,) = [result for result in results if result.test == tests.MINIMALITY]
    assert minimality.verdict == verdict
    assert fnmatch(minimality.note, note)


def test_scores_of_texts_are_those_of_the_distributions(masked_lm: MaskedLM) -> None:
    batches, masks = texts(), torch.rand(5, masked_lm.graph.n_nodes) < 0.6
    found = score_texts(masked_lm, masks, [batches[0].select(batches[0].group == 3)])
    batch = batches[0].select(batches[0].group == 3)
    ids, real = batch.input_ids[batch.real][None], torch.ones(1, int(batch.real.sum()), dtype=torch.bool)
    full = masked_lm.unembed(masked_lm.full(ids, real)).log_softmax(-1)
    for mask, kl in zip(masks, found.kl, strict=True):
        masked = masked_lm.unembed(masked_lm(ids, real, mask.float()[None, None])[0]).log_softmax(-1)
        assert_close(float(kl[0]), kl_divergence(full, masked).mean().item(), atol=1e-5, rtol=1e-4)
    logp = full[:-1].gather(-1, ids[0, 1:, None]).mean()
    assert_close(float(found.full_score[0]), logp.item(), atol=1e-5, rtol=1e-4)


def test_the_kl_between_the_model_and_a_subgraph_is_that_of_the_subgraph(masked_lm: MaskedLM) -> None:
    batches, masks = texts(), torch.rand(3, masked_lm.graph.n_nodes) < 0.6
    found = kl_between(masked_lm, torch.ones_like(masks), masks, batches)
    assert_close(found, score_texts(masked_lm, masks, batches).kl, atol=1e-5, rtol=1e-4)
    of_group_9 = [i for i, batch in enumerate(torch.cat([b.group for b in batches]).tolist()) if batch == 9]
    assert_close(float(found[0, of_group_9[0]]), by_hand(masked_lm, masks[0], 9), atol=1e-5, rtol=1e-4)


def test_an_adversary_closes_a_fifth_of_the_nodes_in_a_few_rounds() -> None:
    assert nodes_per_round(1) == [1]
    assert nodes_per_round(27) == [1] * 5
    assert nodes_per_round(46) == [2, 1, 1, 1, 1, 1, 1, 1]
    assert n_adversary_masks(27) == 27 + 26 + 25 + 24 + 23


def test_an_adversary_closes_the_node_whose_backup_the_circuit_lacks(masked_lm: MaskedLM) -> None:
    mask, batches = torch.rand(masked_lm.graph.n_nodes) < 0.6, texts()
    closed = adversary(masked_lm, mask, batches)
    assert int(closed.sum()) == max(1, round(0.2 * int(mask.sum())))
    assert not (closed & ~mask).any()
    if int(closed.sum()) == 1:
        gaps = [
            kl_between(masked_lm, ~node[None], (mask & ~node)[None], batches).mean()
            for node in torch.eye(len(mask), dtype=torch.bool)[mask]
        ]
        assert_close(max(gaps), kl_between(masked_lm, ~closed[None], (mask & ~closed)[None], batches).mean())


# --- texts ------------------------------------------------------------------------------------------------------------


def content(data: MaskData, split: str) -> list[tuple[int, ...]]:
    return [tuple(ids) for ids in data.parts[split].ids]


def test_texts_are_resampled_within_the_splits_they_are_learned_on() -> None:
    data = MaskData(limit=40)
    data.setup("fit")
    first, second = (Counter(content(half(data, 0, is_second), "train")) for is_second in (False, True))
    assert first + second == Counter(content(data, "train"))
    resampled = bootstrapped(data, 0)
    assert {*content(resampled, "train")} < {*content(data, "train")}
    mixed = shuffled(data, 0)
    for text, original in zip(content(mixed, "train"), content(data, "train"), strict=True):
        assert text[0] == original[0]
        assert sorted(text) == sorted(original)
    assert content(mixed, "train") != content(data, "train")
    for changed in (half(data, 0, False), resampled, mixed):
        assert content(changed, "test") == content(data, "test")
        held_in = {*content(changed, "train"), *content(changed, "validation")}
        assert {*content(changed, "selection")} <= held_in
    assert len(resampled.parts["selection"]) == len(data.parts["selection"])


def test_a_plan_refuses_counts_below_their_minimum() -> None:
    assert "plan.draws is 0" in refused(lambda: EvidencePlan(draws=0))
