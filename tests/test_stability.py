"""Stability: masks that are learned again are compared with each other, with the run's, and with chance."""

import csv
import json
import math
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import one_line, refused, tiny_llama
from torch import Tensor

import masklearn as ml
from masklearn.cli import evaluate
from masklearn.data import MaskData
from masklearn.data.batching import SplitDataset
from masklearn.evidence.plan import EvidencePlan
from masklearn.evidence.rediscovery import BOOTSTRAP, HALF, PARAPHRASE, SEED, Rediscoverer, Variant, variants
from masklearn.evidence.resampled_texts import half, in_other_words
from masklearn.evidence.stability import Overlap, overlap, rivals
from masklearn.evidence.verdicts import CLAIMS, UNKNOWN, verdict_table
from masklearn.graph import NodeGraph
from masklearn.mask_file import ModelId
from masklearn.masking import MaskedLM
from masklearn.tiny import tasks


def written(path: Path, n: int) -> str:
    """A file of texts, each with another one in the column `said`."""
    texts = [*islice(tasks.texts(), 2 * n)]
    rows = [{"text": text, "said": said} for text, said in zip(texts[:n], texts[n:], strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def fitted(path: str, **settings: Any) -> MaskData:
    data = MaskData(path, **settings)
    data.setup("fit")
    return data


# --- overlap ----------------------------------------------------------------------------------------------------------


def test_the_weighted_overlap_is_of_probabilities_that_sum_to_the_size() -> None:
    """Of two nodes, one open: log-odds that differ by 2 log 3 give 3/4 and 1/4; equal ones 1/2 each, wherever they
    lie. The smaller ones sum to 3/4, the larger ones to 5/4."""
    graph, masks = NodeGraph(1, 1), torch.tensor([[1, 0], [1, 0]]).bool()
    scores = torch.tensor([[10 + 2 * math.log(3), 10.0], [-7.0, -7.0]])
    assert overlap(masks, scores, graph).weighted == pytest.approx(0.6, abs=1e-4)
    both = overlap(torch.ones_like(masks), scores, graph)  # all nodes open, whatever their scores
    assert both.weighted == pytest.approx(1, abs=1e-4)


def test_masks_are_compared_with_the_first_alone() -> None:
    graph = NodeGraph(1, 4)
    masks = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]]).bool()
    every = overlap(masks, masks.float(), graph)
    with_first = overlap(masks, masks.float(), graph, with_first=True)
    assert (every.jaccard, every.low, every.high) == pytest.approx((2 / 9, 0, 1 / 3))  # 0, 1/3 and 1/3
    assert (with_first.jaccard, with_first.low, with_first.high) == pytest.approx((1 / 6, 0, 1 / 3))
    single = overlap(masks[:1], masks[:1].float(), graph)
    assert single.n == 1
    assert all(math.isnan(value) for name, value in asdict(single).items() if name != "n")


def test_rivals_do_as_well_as_the_run_by_hand() -> None:
    run = torch.tensor([1, 1, 0]).bool()
    masks = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 1, 1], [1, 0, 1]]).bool()
    found = rivals(run, 1.0, masks, torch.tensor([1.0, 1.019, 0.5, 1.03]))
    assert (found.reached, found.others, found.nearest_kl) == (3, 1, 0.5)
    assert found.run_jaccard == pytest.approx(1 / 3)
    assert rivals(run, 0.1, masks, torch.tensor([0.3, 0.4, 0.5, 0.6])).reached == 0


# --- verdicts ---------------------------------------------------------------------------------------------------------

CELL = {"group": "dataset", "s": 3}


def row_of(masks: Tensor, run: Tensor, graph: NodeGraph, source: str = BOOTSTRAP) -> dict[str, Any]:
    """A row of the table of overlaps."""

    def compared(masks: Tensor, with_first: bool) -> Overlap:
        return overlap(masks, masks.float(), graph, with_first)

    with_run = asdict(compared(torch.cat([run[None], masks]), True))
    return CELL | {"source": source} | asdict(compared(masks, False)) | {f"run_{k}": v for k, v in with_run.items()}


def verdicts(n_nodes: int = 9, **tables: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """Verdict and what was measured of the two claims."""
    nodes = [CELL] * n_nodes
    found = verdict_table({"tests": [], "nodes": nodes, **tables}, [("dataset", 3)], ["stability"])
    return {row["claim"]: (row["verdict"], row["measured"]) for row in found if row["claim"] in ("stable", "unique")}


def test_a_mask_is_not_stable_if_its_rediscoveries_agree_on_others() -> None:
    graph = NodeGraph(1, 20)
    again, run = torch.zeros(3, 21, dtype=torch.bool), torch.zeros(21, dtype=torch.bool)
    again[:, :3] = run[10:13] = True
    verdict, measured = verdicts(stability=[row_of(again, run, graph)])["stable"]
    assert verdict == "no"
    assert "Jaccard 1.00 (1.00 to 1.00, chance 0.09; heads 1.00, chance 0.09), with the run's mask 0.00" in measured
    assert "nan" not in measured  # there is no MLP
    assert verdicts(stability=[row_of(again, again[0], graph)])["stable"][0] == "yes"
    assert verdicts(stability=[row_of(run[None].expand(3, -1), again[0], graph)])["stable"][0] == "no"


def test_agreement_that_chance_gives_shows_no_stability() -> None:
    graph, run = NodeGraph(1, 35), torch.ones(36, dtype=torch.bool)
    run[:3] = False
    verdict, measured = verdicts(stability=[row_of(run[None].expand(3, -1), run, graph)])["stable"]
    assert verdict == UNKNOWN
    assert measured.startswith("random masks of this size have a Jaccard index of 0.8")


def test_one_mask_in_other_words_is_told_beside_the_run() -> None:
    graph, run = NodeGraph(1, 8), torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0]).bool()
    verdict, measured = verdicts(stability=[row_of(run[None].roll(1), run, graph, PARAPHRASE)])["stable"]
    assert verdict == UNKNOWN
    assert measured.startswith("fewer than two bootstraps: paraphrase (1): Jaccard with the run's mask 0.50 ")
    assert verdicts(stability=[], near_optimal=[]) == {
        "stable": (UNKNOWN, "fewer than two bootstraps"), "unique": (UNKNOWN, "the masks were not learned again"),
    }  # fmt: skip


def test_a_mask_is_unique_only_if_a_search_that_does_as_well_finds_it_again() -> None:
    def unique(run_kl: float, *again: tuple[list[int], float]) -> tuple[str, str]:
        run, masks = torch.tensor([1, 1, 1, 0]).bool(), torch.tensor([mask for mask, _ in again]).bool()
        found = rivals(run, run_kl, masks, torch.tensor([kl for _, kl in again]))
        of_run = {"n": 1, "jaccard": 1.0, "kl": run_kl, "searched": 1 + len(again), "run_kl": run_kl}
        return verdicts(near_optimal=[CELL | of_run | asdict(found)])["unique"]

    same, other = [1, 1, 1, 0], [0, 1, 1, 1]
    assert unique(1.0, (same, 1.0), (other, 1.5))[0] == "yes"
    assert unique(1.0, (same, 1.0), (other, 1.01))[0] == "no"
    verdict, measured = unique(4e-5, (same, 0.3), (other, 0.76))
    assert verdict == UNKNOWN
    assert "none of 2 rediscoveries comes within 2 % of its KL 4e-05; the nearest has 0.3" in measured
    verdict, measured = unique(1.0, (other, 0.5))  # the lowest KL is that of one mask, but not of this one
    assert verdict == "no"
    assert "other nodes: 1, Jaccard down to 0.50, KL down to 0.5" in measured
    whole = {"n": 1, "jaccard": 1.0, "kl": 0.0, "searched": 2, "run_kl": 0.0, "reached": 1, "others": 0}
    assert verdicts(3, near_optimal=[CELL | whole])["unique"][0] == UNKNOWN
    assert set(verdicts()) < {*CLAIMS}


# --- rediscoveries ----------------------------------------------------------------------------------------------------


def test_texts_in_other_words_are_the_same_rows_in_another_column(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", 30)
    data, other = fitted(path), fitted(path, text_column="said")
    changed = in_other_words(data, other)
    worded = {text.row: text.ids for text in other.parts["all"].encoded}
    for name in ("train", "validation", "selection"):
        assert [text.row for text in changed.parts[name].encoded] == [text.row for text in data.parts[name].encoded]
        assert all(text.ids == worded[text.row] for text in changed.parts[name].encoded)
    assert changed.parts["test"] is data.parts["test"]
    lacking = data.parts["train"].encoded[0].row
    kept = [text for text in other.parts["all"].encoded if text.row != lacking]
    other.parts["all"] = SplitDataset(kept, [0] * len(kept))
    assert "has no text there" in refused(lambda: in_other_words(data, other))


def test_halves_are_left_out_by_default_where_texts_are_too_few(tmp_path: Path) -> None:
    few, enough = (fitted(written(tmp_path / f"{n}.jsonl", n)) for n in (8, 30))

    def sources(data: MaskData, halves: int | None) -> list[str]:
        return [variant.source for variant in variants(EvidencePlan(seeds=1, bootstraps=0, halves=halves), data, None)]

    assert sources(few, None) == [SEED]
    assert sources(enough, None) == [SEED, HALF, HALF]
    assert sources(few, 1) == [SEED, HALF, HALF]
    assert "plan.halves" in refused(lambda: half(few, 0, False) and half(few, 0, True))


def test_masks_of_another_precision_or_version_are_learned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, lm = MaskData(limit=20), tiny_llama()
    data.setup("fit")
    masked_lm = MaskedLM(lm)
    model = ModelId("tiny", None, masked_lm.layout.fingerprint)
    kept = torch.ones(1, 1, masked_lm.graph.n_nodes).bool()
    mask = ml.Mask(kept, kept.float(), torch.tensor([15]), masked_lm.graph, model)
    again, variant = (
        Rediscoverer(masked_lm, mask, data, EvidencePlan(), tmp_path),
        Variant(SEED, 1, lambda data: data, 0),
    )
    monkeypatch.setattr(Rediscoverer, "_learn", lambda *_: mask)
    again.find(variant)
    assert again.is_kept(variant)
    assert not replace(again, masked_lm=MaskedLM(tiny_llama().to(torch.bfloat16))).is_kept(variant)
    monkeypatch.setattr("masklearn.evidence.rediscovery.masklearn_version", lambda: "another")
    assert not again.is_kept(variant)


def test_a_small_run_is_compared_with_its_paraphrases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts that are too few to halve stop nothing unless halves are asked for."""
    path = written(tmp_path / "rows.jsonl", 8)
    lm = ml.load_lm()
    masked_lm, data = MaskedLM(lm), fitted(path)
    order = torch.randperm(masked_lm.graph.n_nodes, generator=torch.Generator().manual_seed(0))
    kept = torch.stack([order < 4, order < 18])[None]
    model = ModelId("embedded", None, masked_lm.layout.fingerprint)
    config = {"model": {"lm": "embedded", "steps": 2, "draws": 1}, "data": {"path": path}}
    run = ml.Mask(kept, -order[None, None].float(), torch.tensor([4, 18]), masked_lm.graph, model, config=config)
    run = replace(run, learned_texts=torch.tensor(data.learned_texts))
    run.save(tmp_path / "mask.safetensors")
    plan = ["--plan.parts", "[stability]", "--plan.paraphrase_column", "said", "--plan.steps", "2"]
    plan += ["--plan.seeds", "0", "--plan.bootstraps", "0", "--plan.polish_budget", "0"]
    command = ["--mask", str(tmp_path / "mask.safetensors"), "--evidence", "true", "--track", "false", *plan]
    assert evaluate(command) == 0
    with (tmp_path / "evidence" / "tables" / "stability.csv").open() as file:
        rows = [*csv.DictReader(file)]
    again = ml.Mask.load(tmp_path / "evidence" / "rediscovered" / "paraphrase-1.safetensors")
    expected = (run.mask & again.mask).sum(-1) / (run.mask | again.mask).sum(-1)
    assert [(row["source"], row["s"], row["n"]) for row in rows] == [
        ("paraphrase", "4", "1"),
        ("paraphrase", "18", "1"),
    ]
    assert [float(row["run_jaccard"]) for row in rows] == pytest.approx(expected[0].tolist())
    assert all(0 < float(row["run_chance"]) < 1 for row in rows)
    not_tested = json.loads((tmp_path / "evidence" / "evidence.json").read_text())["not_tested"]
    assert {gap.split(":")[0] for gap in not_tested if gap.startswith("Stability under")} == {
        "Stability under other seeds", "Stability under bootstraps of the texts", "Stability under halves of the texts",
    }  # fmt: skip
    capsys.readouterr()
    assert evaluate([*command, "--plan.halves", "1"]) == 2
    assert "plan.halves: a group has a single text" in one_line(capsys)
