"""Evidence: controls with search budgets, completeness and pairs on models solved by hand, and the summary."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from test_evidence import GRAPH, planted
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from wandb_file import OfflineRun

import masklearn as ml
from masklearn import tracking
from masklearn.cli.evidence_sources import OtherRun, masks_of_runs
from masklearn.data import Batch, MaskData
from masklearn.evidence import circuit_tests as tests
from masklearn.evidence.bench import Bench
from masklearn.evidence.circuit_tests import Circuit, run_tests
from masklearn.evidence.completeness import completeness_row, pair_rows
from masklearn.evidence.control_tables import control_table
from masklearn.evidence.controls import search_shares
from masklearn.evidence.hypotheses import fewest_paired_texts, independence_p
from masklearn.evidence.intervals import mean_interval, too_few_texts
from masklearn.evidence.kept_parts import KeptParts
from masklearn.evidence.plan import EvidencePlan
from masklearn.evidence.rediscovery import Variant
from masklearn.evidence.sources import Sources
from masklearn.evidence.summary import paragraph
from masklearn.evidence.text_scores import TextScores
from masklearn.evidence.verdicts import verdict_table
from masklearn.mask_file import ModelId
from masklearn.masking import MaskedLM
from masklearn.selection.scorer import MaskScorer

# --- statistics -------------------------------------------------------------------------------------------------------


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


# --- benches ----------------------------------------------------------------------------------------------------------


class HandBench(Bench):
    """A bench with given batches as the texts of every split."""

    def __init__(self, *args: Any, batches: Sequence[Batch], **settings: Any) -> None:
        super().__init__(*args, **settings)
        object.__setattr__(self, "batches", batches)
        object.__setattr__(self, "scored", [])

    batches: Sequence[Batch]
    scored: list[int]
    """Subgraphs that were run, in each call."""

    def texts(self, group: int) -> Sequence[Batch]:
        return self.batches

    def selection_texts(self, group: int, n: int) -> Sequence[Batch]:
        return self.batches

    def scorer(self, group: int) -> MaskScorer:
        return MaskScorer(self.masked_lm, self.batches, [0])

    def scores(self, group: int, masks: Sequence[Tensor], phase: str) -> list[TextScores]:
        self.scored.append(sum(map(len, masks)))
        return super().scores(group, masks, phase)


def bank_of(masked_lm: MaskedLM, *masks: Tensor) -> ml.Mask:
    """A bank of some masks of one group, each of a size of its own."""
    sizes = torch.tensor([int(mask.sum()) for mask in masks])
    model, bits = ModelId("model", None, masked_lm.layout.fingerprint), torch.stack(masks)[None]
    return ml.Mask(bits, bits.float(), sizes, masked_lm.graph, model)


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


# --- controls ---------------------------------------------------------------------------------------------------------


def found_controls(
    folder: Path, masks: Mapping[str, Tensor], n_texts: int = 40, others: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], list[int]]:
    """The control rows of the planted mask by control, the verdict, and what was run."""
    masked_lm, plant, (batch,) = planted()
    batches, bank = [batch.select(torch.arange(40) < n_texts)], bank_of(masked_lm, plant)
    kept = KeptParts(folder, {"texts": n_texts})
    bench = HandBench(masked_lm, bank, MaskData(), EvidencePlan(seeds=2), kept=kept, batches=batches)
    again: Any = Learned(bank, masks)
    other_runs = {name: {int(mask.sum()): mask[None]} for name, mask in (others or {}).items()}
    rows, missing = control_table(bench, again, Sources([], other_runs=other_runs))
    assert not missing
    empty: dict[str, Any] = {key: [] for key in ("tests", "stability", "near_optimal", "completeness")}
    verdicts = verdict_table(empty | {"controls": rows}, [("dataset", 4)], {"controls"})
    (verdict,) = [row for row in verdicts if row["claim"] == "beats controls"]
    return {row["control"]: row for row in rows}, verdict, bench.scored


def elsewhere(n_of_plant: int) -> Tensor:
    """A mask of as many heads and MLPs as the plant, with some of its nodes."""
    plant, rest = ("a0.h1", "a0.h3", "a2.h2", "m2"), ("a1.h0", "a1.h1", "a1.h2", "m1")
    return torch.tensor([name in (*plant[:n_of_plant], *rest[n_of_plant:]) for name in GRAPH.names])


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
    masks |= {f"seed-{i}": elsewhere(0) for i in (1, 2)}
    rows, verdict, _ = found_controls(tmp_path, masks)
    row = rows["untrained model"]
    assert row["low"] > 0 > row["again_high"]  # the mask of the run, whose search was longer, beats it
    assert (row["verdict"], row["again"]) == ("not beaten", 2)
    assert rows["shuffled texts"]["again_difference"] == 0
    assert row["again_kl"] == pytest.approx(rows["shuffled texts"]["kl"])
    assert rows["random-matched"]["verdict"] == "beaten"
    assert rows["random-matched"]["again_kl"] is None
    assert row["search"] == pytest.approx(100 / 300 * 1.3 / 3)
    assert "14% of the run's search for learned controls, over 2 masks learned again" in verdict["measured"]


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
    ]  # fmt: skip
    found = masks_of_runs(bank, runs, {"path": "a"})
    assert {name: [*masks] for name, masks in found.items()} == {"b": [4], "c: x": [4], "c: y": [4]}
    assert torch.equal(found["b"][4], plant.roll(1)[None])
    assert torch.equal(found["c: y"][4], plant.roll(1).flip(-1)[None])


# --- completeness and pairs -------------------------------------------------------------------------------------------


def hand_llama(*heads: tuple[int, int, int, int]) -> MaskedLM:
    """A model of width 4 with two layers of two heads, in which some heads copy a dimension into another.

    Each is given as layer, head, the dimension that it reads and the one that it writes, with attention to all tokens
    alike. A token is +1 or -1 in dimension 0, and the logits read dimension 3 alone.
    """
    config = LlamaConfig(
        vocab_size=8, hidden_size=4, intermediate_size=2, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=2, rms_norm_eps=1e-12, tie_word_embeddings=False,
    )  # fmt: skip
    lm: Any = LlamaForCausalLM(config).eval().requires_grad_(False)
    for block in lm.model.layers:
        for part in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj, block.self_attn.o_proj):
            part.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    for layer, head, source, target in heads:
        lm.model.layers[layer].self_attn.v_proj.weight[2 * head, source] = 1
        lm.model.layers[layer].self_attn.o_proj.weight[target, 2 * head] = 1000
    lm.model.embed_tokens.weight.zero_()
    lm.model.embed_tokens.weight[:, 0] = torch.tensor([1.0, -1.0] * 4)
    lm.lm_head.weight.zero_()
    lm.lm_head.weight[0, 3] = 1
    return MaskedLM(lm)


def hand_bench(masked_lm: MaskedLM, *names: str, n_texts: int = 12) -> HandBench:
    mask = torch.tensor([name in names for name in masked_lm.graph.names])
    ids = torch.randint(0, 8, (n_texts, 5), generator=torch.Generator().manual_seed(0))
    everywhere, index = torch.ones_like(ids, dtype=torch.bool), torch.arange(n_texts)
    last = torch.zeros_like(everywhere)
    last[:, -1] = True  # five signs never cancel
    batches = [Batch(ids, everywhere, last, index, torch.zeros_like(index))]
    return HandBench(masked_lm, bank_of(masked_lm, mask), MaskData(), EvidencePlan(), batches=batches)


BACKUPS = hand_llama((0, 0, 0, 3), (0, 1, 0, 3))
"""Two heads write the same; as the last norm divides by their sum, either is as good as both."""
CHAIN = hand_llama((0, 0, 0, 2), (1, 0, 2, 3))
"""The second head passes on what the first has written; without either nothing comes out."""


def test_a_circuit_without_a_backup_is_incomplete() -> None:
    alone = completeness_row(hand_bench(BACKUPS, "a0.h0"), 0, 1)
    assert (alone["verdict"], alone["closed"]) == ("incomplete", "a0.h0")
    assert alone["run_kl"] == pytest.approx(0, abs=1e-4)
    assert alone["low"] > 0.1
    both = completeness_row(hand_bench(BACKUPS, "a0.h0", "a0.h1"), 0, 2)
    assert (both["verdict"], both["excess"]) == ("no gap found", pytest.approx(0, abs=1e-4))


def test_nine_texts_give_no_verdict_on_completeness() -> None:
    row = completeness_row(hand_bench(BACKUPS, "a0.h0", n_texts=9), 0, 1)
    assert row["verdict"] == "not tested"
    empty: dict[str, Any] = {key: [] for key in ("tests", "stability", "near_optimal", "controls")}
    verdicts = verdict_table(empty | {"completeness": [row]}, [("dataset", 1)], {"completeness"})
    (verdict,) = [row for row in verdicts if row["claim"] == "complete"]
    assert (verdict["verdict"], verdict["measured"]) == ("not tested", "9 texts; at least 10 are needed")


def test_backups_interact_positively_and_links_of_a_chain_negatively() -> None:
    """The KL of nothing is c: closing a backup costs 0 and both cost c; closing a link or both links cost c."""
    for model, names, sign, kind in (
        (BACKUPS, ("a0.h0", "a0.h1"), 1, "redundant"),
        (CHAIN, ("a0.h0", "a1.h0"), -1, "either suffices to break it"),
    ):
        bench = hand_bench(model, *names)
        (nothing,) = bench.scores(0, [torch.zeros(1, model.graph.n_nodes, dtype=torch.bool)], "")
        (row,) = pair_rows(bench, 0, 2)
        assert (row["node"], row["other"], row["kind"]) == (*names, kind)
        assert row["interaction"] == pytest.approx(sign * float(nothing.mean_kl[0]), rel=1e-3)
    masked_lm, plant, batches = planted()
    less = plant & elsewhere(3)  # its KL is not zero
    bench = HandBench(masked_lm, bank_of(masked_lm, less), MaskData(), EvidencePlan(pairs=2), batches=batches)
    (row,) = pair_rows(bench, 0, 3)
    i, j = (torch.tensor([name == row[key] for name in GRAPH.names]) for key in ("node", "other"))
    (found,) = bench.scores(0, [torch.stack([less, less & ~i, less & ~j, less & ~i & ~j])], "")
    none, first, second, both = found.mean_kl.tolist()
    assert none > 0.01
    assert row["interaction"] == pytest.approx((both - first) - (second - none))
    unrelated = hand_bench(BACKUPS, "a0.h0", "a1.h1")  # the second does nothing
    assert [row["kind"] for row in pair_rows(unrelated, 0, 2)] == ["none found"]


# --- telling ----------------------------------------------------------------------------------------------------------


def evidence_tables() -> dict[str, list[dict[str, Any]]]:
    """Two sizes of one group, with a control, bootstraps and an adversary at the first."""
    cell = {"group": "dataset", "s": 4}
    control = cell | {"control": "x", "run_kl": 1.234, "difference": 0.5, "low": 0.25, "high": 0.75}
    verdicts = [
        cell | {"claim": "beats controls", "verdict": "yes", "measured": "m"},
        cell | {"claim": "stable", "verdict": "no", "measured": "m"},
        cell | {"claim": "complete", "verdict": "no", "measured": "m"},
        {"group": "dataset", "s": 7, "claim": "beats controls", "verdict": "not tested", "measured": "9 texts"},
    ]
    return {
        "verdicts": verdicts,
        "controls": [control | {"difference": 2.0}, control],
        "stability": [cell | {"source": "bootstrap", "jaccard": 0.3, "chance": 0.04, "run_kl": 1.234}],
        "completeness": [cell | {"excess": 2.0, "low": 1.0, "high": 3.0, "run_kl": 1.234}],
        "transfer": [{"group": "dataset", "s": 7, "what": "own texts", "kl": 0.25}],
    }


def test_the_paragraph_has_numbers_and_intervals() -> None:
    facts = {
        "model": "m",
        "texts": "t",
        "n_texts": 12,
        "draws": 103,
        "rediscoveries": 3,
        "steps": 40,
        "ablation": "zero",
    }
    text = paragraph(evidence_tables(), facts)
    assert "KL from the full model, in nats: 1.23 at s = 4, 0.25 at 7." in text
    assert (
        "Beats controls (nearest control, KL minus the mask's): yes at s = 4 (+0.5, 95 % interval 0.25 to 0.75)" in text
    )
    assert "; not tested at s = 7." in text
    assert "Stable (Jaccard index over bootstraps): no at s = 4 (0.30, by chance 0.04)." in text
    assert "Complete (KL that closing adds): no at s = 4 (+2, 95 % interval 1 to 3)." in text


def test_evidence_is_logged_as_tables_and_a_summary_of_verdicts(tmp_path: Path) -> None:
    tables = evidence_tables() | {"pairs": []}
    assert "offline" in tracking.log_evidence(tmp_path, {"model": "m", "draws": 103}, tables)
    wandb.teardown()  # writes the rest of the file
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    logged = OfflineRun.read(folder)
    assert logged.config["draws"] == 103
    assert logged.summary["evidence/stable/dataset/s=4"] == "no"
    assert logged.summary["evidence/beats controls/dataset/s=7"] == "not tested"
    (path,) = logged.column("evidence/controls/path")
    table = json.loads((logged.files / path).read_text())
    difference = table["columns"].index("difference")
    assert [row[difference] for row in table["data"]] == [2.0, 0.5]
    assert not logged.column("evidence/pairs/path")
