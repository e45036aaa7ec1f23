"""Finished parts of the evidence: each is kept for what it depends on, and for nothing else."""

from dataclasses import replace
from pathlib import Path

import torch
from conftest import Run, tiny_llama

import masklearn as ml
from masklearn.data import MaskData
from masklearn.evidence.gather import Sources
from masklearn.evidence.kept_parts import KeptParts, inputs_of, texts_digest
from masklearn.evidence.plan import EvidencePlan
from masklearn.evidence.rediscovery import Variant
from masklearn.evidence.resampled_texts import bootstrapped, half, with_order
from masklearn.masking import MaskedLM


def test_a_part_is_kept_for_the_same_inputs_alone(tmp_path: Path) -> None:
    first, other = KeptParts(tmp_path, {"bank": "a", "plan": {"seed": 0}}), KeptParts(tmp_path, {"bank": "b"})
    assert first.part("tests", lambda: [{"p": 0.1, "n": float("nan")}])[0]["p"] == 0.1
    assert first.part("tests", list)[0]["p"] == 0.1
    assert not other.has("tests")
    assert other.part("tests", lambda: "new") == first.part("transfer", lambda: "new") == "new"
    assert KeptParts().part("tests", lambda: "again") == "again"


def test_controls_without_a_task_are_not_those_with_it() -> None:
    """By default the embedded model has a control of another task, and with `--plan.transfer` it has none."""
    task = Variant("task-copy", 1, lambda data: data, 0)
    with_task, without = Sources([], {"copy": task}), Sources([])
    assert with_task.controls_part(0) != without.controls_part(0) != without.controls_part(1)


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
