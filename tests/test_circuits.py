"""Banks of circuits that are given by the names of their nodes."""

from pathlib import Path

import pytest
import torch
from conftest import refused
from transformers import PreTrainedModel

import masklearn as ml
from masklearn.cli import evaluate

SMALL, LARGE = ["m0", "a0.h1"], ["m0", "m1", "a1.h0"]


@pytest.fixture(scope="module")
def embedded() -> PreTrainedModel:
    return ml.load_lm()


def test_a_circuit_keeps_the_nodes_named(embedded: PreTrainedModel) -> None:
    bank = ml.circuit(embedded, LARGE, SMALL, [*SMALL, "m3", "m2", "m0"])
    assert bank.sizes.tolist() == [2, 3, 4]
    names = bank.graph.names
    assert [name for name, kept in zip(names, bank.select(s=2), strict=True) if kept] == ["a0.h1", "m0"]
    assert [name for name, kept in zip(names, bank.select(s=3), strict=True) if kept] == ["m0", "a1.h0", "m1"]


def test_a_circuit_is_of_a_model_by_name_and_has_the_values_of_its_ablation() -> None:
    bank = ml.circuit("embedded", SMALL)
    assert bank.sizes.tolist() == [2] and bank.ablation.name == "zero"
    assert "a list of names" in refused(lambda: ml.circuit("embedded", "a0.h1"))
    message = refused(lambda: ml.circuit("embedded", SMALL, ablation="mean"))  # pyright: ignore[reportArgumentType]
    assert message == "ablation 'mean' has no values. Take that of a bank: ablation=Mask.load(FILE).ablation"


def test_a_circuit_is_evaluated_saved_and_opened_as_a_bank(embedded: PreTrainedModel, tmp_path: Path) -> None:
    bank = ml.circuit(embedded, SMALL)
    bank.save(tmp_path / "mine.safetensors")
    opened = ml.Mask.load(tmp_path / "mine.safetensors")
    assert torch.equal(opened.mask, bank.mask)
    metrics = ml.evaluate(opened, task="names", positions="last", limit=10, progress=False).metrics
    assert metrics.index.tolist() == [2]
    assert 0 < metrics.loc[2, "kl"] < metrics.loc[2, "random kl_mean"]


def test_baselines_that_choose_by_texts_need_those_that_masks_were_learned_on(
    embedded: PreTrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A circuit of nodes that somebody named was learned on none, and no others take their place."""
    ml.circuit(embedded, SMALL).save(tmp_path / "mine.safetensors")
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "the {noun} sings ."}}\n' for noun in ("king", "bird")))
    flags = ["--mask", str(tmp_path / "mine.safetensors"), "--data.path", str(tmp_path / "texts.jsonl")]
    assert evaluate([*flags, "--baselines", "[norm, attribution]"]) == 2
    message = capsys.readouterr().err
    assert "by which baselines (attribution, norm) are computed. Leave them out" in message
    assert evaluate([*flags, "--baselines", "[random]"]) == 0


@pytest.mark.parametrize(
    ("circuits", "words"),
    [
        ([], "has no nodes"),
        ([[]], "has no nodes"),
        ([["a9.h9"]], "no node 'a9.h9'; its nodes are heads from a0.h0 to a3.h7 and MLPs from m0 to m3"),
        ([["m0"], ["m1"]], r"circuits have \[1, 1\] nodes"),
    ],
)
def test_wrong_circuits_are_named(embedded: PreTrainedModel, circuits: list[list[str]], words: str) -> None:
    with pytest.raises(ml.UserError, match=words):
        ml.circuit(embedded, *circuits)


def test_a_circuit_of_a_wrapped_model_is_one_of_the_model_inside(embedded: PreTrainedModel) -> None:
    plain = ml.circuit(embedded, ["m0", "a0.h1"])
    for lm in (torch.compile(embedded, backend="eager"), torch.nn.DataParallel(embedded)):
        assert ml.circuit(lm, (name for name in ("m0", "a0.h1"))).model == plain.model
    assert "has no nodes" in refused(lambda: ml.circuit(embedded, (name for name in ())))
