"""Evidence: intervals over texts, and controls with their budgets of search."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hand_bench import HandBench, bank_of, elsewhere
from test_evidence import GRAPH, planted
from torch import Tensor

import masklearn as ml
from masklearn.cli.evidence_sources import OtherRun, masks_of_runs
from masklearn.data import MaskData
from masklearn.evidence import circuit_tests as tests
from masklearn.evidence import cost
from masklearn.evidence.circuit_tests import Circuit, run_tests
from masklearn.evidence.control_tables import Control, control_row, control_table
from masklearn.evidence.controls import search_shares
from masklearn.evidence.hypotheses import fewest_paired_texts, independence_p
from masklearn.evidence.intervals import mean_interval, too_few_texts
from masklearn.evidence.kept_parts import KeptParts
from masklearn.evidence.plan import EvidencePlan
from masklearn.evidence.rediscovery import Variant
from masklearn.evidence.sources import Sources
from masklearn.evidence.verdicts import verdict_table
from masklearn.mask_file import ModelId
from masklearn.masking import MaskedLM
from masklearn.selection import chunks
from masklearn.selection.attribution import single_ablation


def test_an_interval_needs_texts_and_misses_the_mean_of_ten_about_as_often_as_it_says() -> None:
    assert too_few_texts(9) == "9 texts; at least 10 are needed"
    assert np.isnan(mean_interval(torch.ones(9, dtype=torch.float64), 0)[1])
    normal = torch.randn(500, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    intervals = [mean_interval(values, 0) for values in normal]
    missed = sum(low > 0 or high < 0 for _, low, high in intervals)
    assert missed / 500 < 0.075  # plain percentiles: 10 %


def test_independence_can_be_rejected_for_many_masks() -> None:
    x, n_tests = np.random.default_rng(0).normal(size=60), 60
    assert n_tests * independence_p(x, x**2, n_tests=n_tests) <= 0.05 < n_tests * independence_p(x, x**2)
    assert [fewest_paired_texts(n) for n in (1, 252, 253)] == [7, 7, 8]
    masked_lm, _, batches = planted()
    elsewhere = torch.tensor([name in ("a1.h0", "a1.h1", "a1.h2", "m1") for name in GRAPH.names])
    circuit = Circuit(elsewhere, GRAPH, 29, 0)
    bench = HandBench(masked_lm, bank_of(masked_lm, elsewhere), MaskData(), EvidencePlan(), batches=batches)
    scores = bench.scores(0, circuit.subgraphs(), "Tests")
    (independence,) = [row for row in run_tests(circuit, "", scores, n_tests) if row.test == tests.INDEPENDENCE]
    assert independence.p is not None
    assert n_tests * independence.p <= 0.05


class Learned:
    """Rediscoveries that give chosen masks, in place of a search."""

    learning_tokens = 1000.0

    def __init__(self, bank: ml.Mask, masks: Mapping[str, Tensor]) -> None:
        self.mask, self.masks, self.plan = bank, masks, EvidencePlan()

    def settings(self, seed: int) -> dict[str, Any]:
        return {"steps": 100}

    def is_kept(self, variant: Variant) -> bool:
        return variant.name in self.masks

    def find(self, variant: Variant, masked_lm: MaskedLM | None = None) -> ml.Mask:
        return replace(self.mask, mask=self.masks[variant.name][None, None])


def found_controls(
    folder: Path, masks: Mapping[str, Tensor], n_texts: int = 40, others: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], list[int]]:
    """The control rows of the planted mask by control, the verdict, and what was run."""
    masked_lm, plant, (batch,) = planted()
    batches, bank = [batch.select(torch.arange(40) < n_texts)], bank_of(masked_lm, plant)
    kept = KeptParts(folder, {"texts": n_texts})
    bench = HandBench(masked_lm, bank, MaskData(), EvidencePlan(seeds=3), kept=kept, batches=batches)
    again: Any = Learned(bank, masks)
    other_runs = {name: {int(mask.sum()): mask[None]} for name, mask in (others or {}).items()}
    rows, missing = control_table(bench, again, Sources([], other_runs=other_runs))
    assert not missing
    empty: dict[str, Any] = {key: [] for key in ("tests", "stability", "near_optimal", "completeness")}
    verdicts = verdict_table(empty | {"controls": rows}, [("dataset", 4)], {"controls"})
    (verdict,) = [row for row in verdicts if row["claim"] == "beats controls"]
    return {row["control"]: row for row in rows}, verdict, bench.scored


def test_controls_say_of_a_plant_what_is_true(tmp_path: Path) -> None:
    _, _plant, _ = planted()
    masks = {"shuffled-1": elsewhere(0), "untrained-1": elsewhere(1)}
    rows, verdict, _ = found_controls(tmp_path, masks)
    assert [rows[name]["verdict"] for name in ("random-matched", "shuffled texts", "untrained model")] == ["beaten"] * 3
    assert rows["random-matched"]["run_kl"] == pytest.approx(0, abs=1e-5)
    ranks = rows["single-ablation ranks"]  # only the plant does anything, so that they find it
    assert (ranks["verdict"], ranks["note"], ranks["difference"]) == ("not beaten", "the same nodes", 0)
    assert verdict["verdict"] == "no"
    assert "single-ablation ranks" in verdict["measured"]
    assert "no mask was learned again with as much" in verdict["measured"]


def test_learned_controls_must_lose_to_masks_of_the_same_budget_too(tmp_path: Path) -> None:
    """Masks that are learned again find none of the plant here, and the control of an untrained model half of it."""
    masks = {"shuffled-1": elsewhere(0), "untrained-1": elsewhere(2)}
    masks |= {f"seed-{i}": elsewhere(0) for i in (1, 2, 3)}
    rows, verdict, _ = found_controls(tmp_path, masks)
    row = rows["untrained model"]
    assert row["low"] > 0 > row["again_high"]  # the mask of the run, whose search was longer, beats it
    assert (row["verdict"], row["again"]) == ("not beaten", 3)
    assert rows["shuffled texts"]["again_difference"] == 0
    assert row["again_kl"] == pytest.approx(rows["shuffled texts"]["kl"])
    assert rows["random-matched"]["verdict"] == "beaten"
    assert rows["random-matched"]["again_kl"] is None
    assert row["search"] == pytest.approx(100 / 300 * 1.3 / 3)
    assert "14% of the run's search for learned controls, over 3 masks learned again" in verdict["measured"]


def test_a_control_differs_from_equal_masks_by_nothing() -> None:
    """The mean of three equal numbers is off by rounding."""
    masked_lm, plant, batches = planted()
    bench = HandBench(masked_lm, bank_of(masked_lm, plant), MaskData(), EvidencePlan(), batches=batches)
    same = Control("x", {4: {"kl": [0.1] * 12, "same": True}}, is_learned=True)
    row = control_row(bench, 0, 4, same, same, [same.by_size] * 3)
    assert [row[f"again_{name}"] for name in ("difference", "low", "high")] == [0, 0, 0]


def test_a_search_that_is_a_third_as_long_and_polishes_less_has_a_seventh_of_the_budget() -> None:
    masked_lm, plant, _ = planted()
    bank = bank_of(masked_lm, plant)
    for of_run, shares in (
        ({"steps": 300}, (1.3 / 9, 0.3 / 9)),
        ({"steps": 200, "polish_budget": 1.0}, (1.3 / 4, 0.3 / 4)),
        ({"steps": 100, "polish": 0}, (1, 0.3)),
        ({"steps": 100, "polish_budget": None}, (0, 0)),
    ):
        again: Any = Learned(replace(bank, config={"model": of_run}), {})
        assert search_shares(again) == pytest.approx(shares)


def test_nine_texts_give_no_verdict_on_controls(tmp_path: Path) -> None:
    masks = {"shuffled-1": elsewhere(0), "untrained-1": elsewhere(1)}
    rows, verdict, _ = found_controls(tmp_path, masks, n_texts=9)
    assert {row["verdict"] for row in rows.values()} == {"not tested"}
    assert (verdict["verdict"], verdict["measured"]) == ("not tested", "9 texts; at least 10 are needed")


def test_controls_that_are_added_do_not_run_the_others_again(tmp_path: Path) -> None:
    masks = {"shuffled-1": elsewhere(0), "untrained-1": elsewhere(1)}
    first, _, scored = found_controls(tmp_path, masks)
    assert scored == [1 + 10 + 1 + 1, 1, 1]
    masks["seed-1"] = elsewhere(2)
    second, _, scored = found_controls(tmp_path, masks, others={"b": elsewhere(3)})
    assert scored == [1, 1]
    added = second.pop("another run: b")
    assert added["verdict"] == "beaten"
    assert {name: row["kl"] for name, row in second.items()} == {name: row["kl"] for name, row in first.items()}


def test_masks_of_another_run_on_the_same_model_and_other_texts_are_controls() -> None:
    masked_lm, plant, _ = planted()
    larger = plant | elsewhere(0)
    bank, other = bank_of(masked_lm, plant), bank_of(masked_lm, plant.roll(1), larger)
    both = torch.cat([other.mask, other.mask.flip(-1)])
    grouped = replace(other, groups=("x", "y"), mask=both, scores=both.float())
    elsewhere_learned = replace(other, model=ModelId("model", None, "another"))
    runs = [
        OtherRun("b", other, {"path": "b"}), OtherRun("seed", other, {"path": "a"}),
        OtherRun("c", grouped, {"path": "c"}), OtherRun("model", elsewhere_learned, {"path": "b"}),
        OtherRun("same texts", replace(other, learned_texts=torch.tensor([2, 1])), {"path": "a", "batch_size": 8}),
    ]  # fmt: skip
    found = masks_of_runs(replace(bank, learned_texts=torch.tensor([1, 2])), runs, {"path": "a"})
    assert {name: [*masks] for name, masks in found.items()} == {"b": [4], "c: x": [4], "c: y": [4]}
    assert torch.equal(found["b"][4], plant.roll(1)[None])
    assert torch.equal(found["c: y"][4], plant.roll(1).flip(-1)[None])


def test_the_estimate_knows_what_it_takes_to_close_every_node_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    masked_lm, plant, batches = planted()
    bank = bank_of(masked_lm, plant)
    bench = HandBench(masked_lm, bank, MaskData(), EvidencePlan(), batches=batches)
    monkeypatch.setattr(HandBench, "held_out_tokens", lambda *_: 0)
    again: Any = Learned(bank, {})
    spent, expected = list[float](), list[float]()
    for launch_flops in (2e7, 1.0):  # with whole forwards, and with shared layers
        monkeypatch.setitem(chunks.LAUNCH_FLOPS, "cpu", launch_flops)
        monkeypatch.setitem(chunks.READ_TOKENS, "cpu", 0 if launch_flops == 1 else 24)
        scorer = bench.scorer(0)
        single_ablation(scorer, GRAPH.n_nodes)
        spent.append(scorer.tokens.spent)
        expected.append(cost.expected_cost(bench, again, Sources([])).tokens["controls"])
    assert spent[1] < 0.9 * spent[0]
    assert expected[0] - expected[1] == pytest.approx(spent[0] - spent[1], rel=0.15)
