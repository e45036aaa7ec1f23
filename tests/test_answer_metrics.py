"""Metrics of texts with answers: by hand, by whole logits, and their areas over sizes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pairs import rows, write
from torch import Tensor

import masklearn as ml
from masklearn.evaluation.answer_metrics import AnswerMetrics, faithfulness
from masklearn.evaluation.bank_report import measure
from masklearn.evaluation.measure import _with_completions
from masklearn.evaluation.mib import answer_areas
from masklearn.masking import MaskedLM
from masklearn.sizes import MIB_FRACTIONS, resolve_sizes


def test_answers_by_hand() -> None:
    """Two texts with a vocabulary of four tokens; a third has no answer and does not count."""
    p = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]]])
    answers, wrong = torch.tensor([[3, 1], [0, -1], [-1, -1]]), torch.tensor([[2, -1], [1, 2], [-1, -1]])
    metrics = AnswerMetrics(1)
    metrics.update(p.log().repeat(2, 1, 1), answers, wrong)
    found = metrics.compute()
    first = (math.log(0.4) + math.log(0.2)) / 2 - math.log(0.3)
    assert found["logit_diff"].item() == pytest.approx((first + math.log(7)) / 2)
    assert found["prob_diff"].item() == pytest.approx(((0.6 - 0.3) + (0.7 - 0.2)) / 2)
    assert found["accuracy"].item() == found["full_accuracy"].item() == 1
    without_wrong = AnswerMetrics(1)
    without_wrong.update(
        p.log().repeat(2, 1, 1), answers[:, :1].roll(1, 0), None
    )  # no right answer is the most probable token
    found = without_wrong.compute()
    assert found["logit_diff"].isnan().all()
    assert found["accuracy"].item() == pytest.approx(0)


def test_areas_by_hand_at_the_sizes_of_mib() -> None:
    sizes = resolve_sizes("mib", 156)
    assert sizes == [1, 3, 7, 15, 31, 78]
    faithful = [0.1, 0.3, 0.2, 0.9, 1.2, 1.1]

    def scores(sizes: list[int], faithful: list[float], n_nodes: int, of_input: float = 0.0) -> dict[str, Any]:
        references = {"empty": {"faithfulness": 0.0}, "input": {"faithfulness": of_input}}
        rows = zip(sizes, faithful, strict=True)
        return answer_areas([{"s": s, "faithfulness": f, "references": references} for s, f in rows], n_nodes) or {}

    found = scores(sizes, faithful, 156)
    y = torch.tensor([0, 0, 0, *faithful, 1]).double()
    x = torch.tensor(MIB_FRACTIONS).double()
    assert found["over"] == "mib"
    assert found["cpr"] == pytest.approx(torch.trapezoid(y, x).item(), abs=1e-6)
    assert found["cmd"] == pytest.approx(torch.trapezoid((1 - y).abs(), x).item(), abs=1e-6)
    assert resolve_sizes("mib-input", 156) == [2, 6, 14, 30, 77]  # 157 nodes, of which the embedding is one
    found = scores([2, 6, 14, 30, 77], faithful[1:], 156, of_input=0.1)
    assert found["over"] == "mib-input"
    assert found["cpr"] == pytest.approx(torch.trapezoid(y, x).item(), abs=1e-6)
    assert [point["s"] for point in found["curve"]] == [-1, -1, -1, 0, 2, 6, 14, 30, 77, 156]
    other = scores([50], [1.0], 100)
    assert (other["over"], other["cpr"], other["cmd"]) == ("sizes", pytest.approx(0.75), pytest.approx(0.25))


def test_faithfulness_by_hand() -> None:
    row = {"logit_diff": 2.0, "full_logit_diff": 3.0, "prob_diff": 0.5, "full_prob_diff": 0.9}
    assert faithfulness(row, {"logit_diff": 1.0, "prob_diff": 0.1}) == pytest.approx(0.5)
    without_wrong = row | {"logit_diff": None, "full_logit_diff": None}
    assert faithfulness(without_wrong, {"logit_diff": None, "prob_diff": 0.1}) == pytest.approx(0.5)
    assert faithfulness(row, {"logit_diff": 3.0}) is None
    not_finite = row | {"logit_diff": None, "prob_diff": 0.5}
    assert faithfulness(not_finite, {"logit_diff": 1.0, "prob_diff": 0.1}) is None
    assert faithfulness(row, {"logit_diff": None, "prob_diff": 0.1}) is None


def test_outputs_that_are_not_finite_have_no_difference() -> None:
    p = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]]])
    metrics = AnswerMetrics(1)
    logp = torch.cat([p.log(), torch.full_like(p, torch.nan)])
    metrics.update(logp, torch.tensor([[3, -1], [0, 1]]), torch.tensor([[2, 1], [1, -1]]))
    found = metrics.compute()
    assert found["logit_diff"].isnan() and found["prob_diff"].isnan() and found["accuracy"] == 0
    assert found["full_accuracy"] == 1 and found["full_prob_diff"].item() == pytest.approx((0.4 - 0.5 + 0.8 - 0.1) / 2)


def test_whole_completions_without_a_finite_loss_have_no_log_probability() -> None:
    rows = [{"cross_entropy": 2.0, "full_cross_entropy": 1.0}, {"cross_entropy": None, "full_cross_entropy": 1.0}]
    found = _with_completions(rows, [2, 4])
    assert [row["answer_logp"] for row in found] == [-6.0, None]
    assert [row["full_answer_logp"] for row in found] == [-3.0, -3.0]


def test_answer_metrics_agree_with_whole_logits(tmp_path: Path) -> None:
    """For two masks of the embedded model under resample ablation from its pairs."""
    data = ml.MaskData(path=write(tmp_path / "pairs.jsonl", rows()))
    data.setup("fit")
    masked_lm = MaskedLM(ml.load_lm(), ml.Ablation("resample"))
    masks = torch.rand(2, 1, 36, generator=torch.Generator().manual_seed(0)) > 0.5
    found, _ = measure(masked_lm, masks, data.loader("all"))
    batch = next(iter(data.loader("all")))
    assert batch.corrupted is not None
    vocabulary = ml.load_tokenizer().get_vocab()
    for mask, row in zip(masks[:, 0], found, strict=True):
        with ml.gated(masked_lm.lm, mask, masked_lm.resampled(batch.corrupted)):
            logits: Tensor = masked_lm.lm(batch.input_ids).logits[:, -1]
        right, wrong = logits[:, vocabulary["runs"]], logits[:, vocabulary["run"]]
        assert row["logit_diff"] == pytest.approx((right - wrong).mean().item(), abs=1e-4)
        assert row["accuracy"] == pytest.approx((right > wrong).float().mean().item())
        full = masked_lm.lm(batch.input_ids).logits[:, -1].softmax(-1)
        expected = (full[:, vocabulary["runs"]] - full[:, vocabulary["run"]]).mean().item()
        assert row["full_prob_diff"] == pytest.approx(expected, abs=1e-5)


def test_a_single_subgraph_is_measured_as_several_are() -> None:
    """Metrics of one element, which torchmetrics squeezes, keep their shape."""
    data = ml.MaskData(task="names", limit=20, positions="last")
    data.setup("fit")
    masked_lm = MaskedLM(ml.load_lm())
    masks = torch.rand(2, 1, 36, generator=torch.Generator().manual_seed(0)) > 0.5
    both, by_group = measure(masked_lm, masks, data.loader("all"))
    one, one_by_group = measure(masked_lm, masks[:1], data.loader("all"))
    assert one[0] == pytest.approx(both[0], abs=1e-5) and one_by_group.shape == (2, 1, 1)
    torch.testing.assert_close(one_by_group, by_group[:, :1], atol=1e-5, rtol=0)
