"""Finished parts of the evidence: each is kept for what it depends on, and for nothing else."""

from dataclasses import replace
from pathlib import Path

import torch
from conftest import Run, tiny_llama

import masklearn as ml
from masklearn.data import MaskData
from masklearn.data.digests import texts_digest
from masklearn.evidence.kept_parts import KeptParts, inputs_of
from masklearn.evidence.plan import EvidencePlan
from masklearn.evidence.resampled_texts import bootstrapped, half, with_order
from masklearn.masking import MaskedLM


def test_a_part_is_kept_for_the_same_inputs_alone(tmp_path: Path) -> None:
    first, other = KeptParts(tmp_path, {"bank": "a", "plan": {"seed": 0}}), KeptParts(tmp_path, {"bank": "b"})
    assert first.part("tests", lambda: [{"p": 0.1, "n": float("nan")}])[0]["p"] == 0.1
    assert first.part("tests", list)[0]["p"] == 0.1
    assert not other.has("tests")
    assert other.part("tests", lambda: "new") == first.part("transfer", lambda: "new") == "new"
    assert KeptParts().part("tests", lambda: "again") == "again"


def test_a_part_depends_on_the_settings_that_it_uses(tmp_path: Path) -> None:
    plan = {"draws": 60, "pairs": 3, "steps": 2, "polish_budget": 0.3, "seed": 0}
    kept = KeptParts(tmp_path, {"bank": "a", "plan": plan})
    for name in ("tests-0-4", "pairs-0-4", "stability-x", "controls-0", "transfer-0"):
        kept.part(name, list)
    for changed, invalid in (
        ({"draws": 61}, {"tests-0-4"}),
        ({"pairs": 4}, {"pairs-0-4"}),
        ({"steps": 3}, {"stability-x", "controls-0"}),
        ({"seed": 1}, {"tests-0-4", "pairs-0-4", "stability-x", "controls-0", "transfer-0"}),
    ):
        now = KeptParts(tmp_path, {"bank": "a", "plan": plan | changed})
        assert {path.stem for path in tmp_path.iterdir() if not now.has(path.stem)} == invalid


def test_texts_and_banks_have_digests(run: Run) -> None:
    data, mask = MaskData(limit=20), ml.Mask.load(run.folder)
    data.setup("fit")
    assert texts_digest(data) == texts_digest(with_order(data, 5)) != texts_digest(bootstrapped(data, 0))
    masked_lm, plan = MaskedLM(tiny_llama()), EvidencePlan()
    same = inputs_of(masked_lm, mask, data, plan)
    assert inputs_of(masked_lm, mask, data, replace(plan, bootstraps=9, transfer=["x"])) == same
    changed = (replace(mask, scores=mask.scores + 1), data, plan), (mask, data, replace(plan, pairs=1))
    changed += ((mask, half(data, 0, True), plan),)
    assert all(inputs_of(masked_lm, *given) != same for given in changed)
    in_bfloat16 = MaskedLM(tiny_llama().to(torch.bfloat16))
    assert inputs_of(in_bfloat16, mask, data, plan) != same
