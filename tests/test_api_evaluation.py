"""`evaluate` and `baselines` from Python: which texts, with which settings, and what baselines choose by."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from api_settings import FAST, TEXTS
from conftest import refused
from transformers import PreTrainedModel

import masklearn as ml
from masklearn.api import evaluating
from masklearn.cli import evaluate
from masklearn.mask_file import ModelId
from masklearn.models import fingerprint
from masklearn.tiny import tasks


@pytest.fixture(scope="module")
def bank() -> ml.LearnedBank:
    return ml.learn(ml.load_lm(), TEXTS, **FAST)


def test_a_bank_is_evaluated_on_other_texts_and_from_its_file(
    bank: ml.LearnedBank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = ["the king sings .", "the birds near the cat wait .", "the dog near the king runs ."]
    capsys.readouterr()
    evaluated = ml.evaluate(bank, [*TEXTS, *others])
    n_learned = len(set(bank.data.learned_texts))
    assert evaluated.texts.startswith(f"{len(TEXTS) + 3 - n_learned} texts")
    shown = capsys.readouterr().out
    assert f"{n_learned} texts are left out" in shown and "Evaluation:" in shown
    evaluated = ml.evaluate(bank, others, progress=False)
    assert evaluated.texts.startswith("3 texts") and capsys.readouterr().out == ""
    assert "learned on all of its texts" in refused(lambda: ml.evaluate(bank, TEXTS[:1]))
    assert ml.evaluate(bank, TEXTS, include_learned=True).texts.startswith(f"{len(TEXTS)} texts")
    assert evaluated.metrics["kl"].tolist() != bank.metrics["kl"].tolist()
    dotted = tmp_path / "v1.2"
    dotted.mkdir()
    assert bank.save(dotted) == dotted / "mask.safetensors"
    again = ml.evaluate(dotted, pd.DataFrame({"text": others}))
    assert again.metrics["kl"].tolist() == pytest.approx(evaluated.metrics["kl"].tolist())
    own = ml.evaluate(bank)
    assert own.metrics["kl"].tolist() == pytest.approx(bank.metrics["kl"].tolist())
    assert "give the texts" in refused(lambda: ml.evaluate(bank.mask))


def test_other_texts_are_read_with_the_settings_of_the_run(tmp_path: Path) -> None:
    rows = [{"text": "unread", "prompt": text, "reply": " ."} for text in TEXTS]
    columns = {"text_column": "prompt", "answer_column": "reply"}
    of_run = {"bos": "always", "max_length": 5, "truncation": "left", "positions": "last"}
    bank = ml.learn(texts=rows, **columns, **of_run, **FAST)
    others = ["the king near the cat sings .", "the birds near the cat wait .", "the dog near the king runs ."]
    found = ml.evaluate(bank, others, progress=False)
    begin = found.data.load_tokenizer().bos_token_id
    assert [(len(ids), ids[0]) for ids in found.data.parts["all"].ids] == [(5, begin)] * 3
    of_texts = found.results["data"]
    assert of_texts.items() >= of_run.items() and of_texts["text_column"] is of_texts["answer_column"] is None
    changed = ml.evaluate(bank, others, max_length=4, positions="all", progress=False).results["data"]
    assert changed.items() >= (of_run | {"max_length": 4, "positions": "all"}).items()
    read = ml.evaluate(bank, [{"prompt": text, "text": "unread"} for text in others], progress=False)
    assert read.metrics["kl"].tolist() == found.metrics["kl"].tolist()
    assert (read.results["data"]["text_column"], read.results["data"]["answer_column"]) == ("prompt", None)
    (tmp_path / "others.txt").write_text("\n".join(others), encoding="utf-8")
    from_file = ml.evaluate(bank, tmp_path / "others.txt", progress=False)
    assert from_file.metrics["kl"].tolist() == found.metrics["kl"].tolist()
    chosen = ml.evaluate(bank, [{"prompt": "", "text": text} for text in others], text_column="text", progress=False)
    assert chosen.metrics["kl"].tolist() == found.metrics["kl"].tolist()


def test_other_texts_are_read_with_the_tokenizer_of_the_run() -> None:
    tokenizer = ml.load_tokenizer()
    bank = ml.learn(ml.load_lm(), TEXTS, tokenizer=tokenizer, **FAST)
    others = ["the king sings .", "the birds near the cat wait ."]
    assert ml.evaluate(bank, others, progress=False).data.load_tokenizer() is tokenizer
    assert ml.evaluate(bank, others, tokenizer="embedded", progress=False).results["data"]["tokenizer"] == "embedded"


def test_no_setting_of_an_evaluation_is_ignored(bank: ml.LearnedBank) -> None:
    data = ml.MaskData(texts=["the king sings .", "the birds near the cat wait ."])
    assert "Give settings of texts to it" in refused(lambda: ml.evaluate(bank, data, positions="last"))
    assert "steps is a setting of learn" in refused(lambda: ml.evaluate(bank, TEXTS, steps=3))
    for settings in ({"positions": "last"}, {"batch_size": 4}, {"tokenizer": "embedded"}, {"limit": 3}):
        (name,) = settings
        for each in (bank, bank.mask):
            message = refused(lambda each=each, settings=settings: ml.evaluate(each, **settings))
            assert f"{name} is given without texts" in message and f"evaluate(bank, texts, {name}=" in message
    assert "Did you mean positions" in refused(lambda: ml.evaluate(bank, postions="last"))


def test_an_evaluated_bank_keeps_apart_what_it_was_learned_on(bank: ml.LearnedBank) -> None:
    others = [*TEXTS, *islice(tasks.texts(1), 24)]
    evaluated = ml.evaluate(bank, others, progress=False)
    assert bank.learned_on is bank.data is evaluated.learned_on is not evaluated.data
    again = ml.evaluate(evaluated, progress=False)
    assert again.texts == evaluated.texts and again.split == "all"
    assert again.metrics["kl"].tolist() == evaluated.metrics["kl"].tolist()
    guided = ml.baselines(evaluated, "norm", progress=False)
    assert guided["kl"].tolist() == ml.baselines(bank, "norm", others, progress=False)["kl"].tolist()
    assert guided["kl"].unstack()["learned"].tolist() == evaluated.metrics["kl"].tolist()
    unknown = ml.evaluate(bank.mask, others, progress=False)
    assert unknown.learned_on is None
    assert "choose by the texts" in refused(lambda: ml.baselines(unknown, "norm"))


def test_a_data_module_stays_whole_when_learned_texts_are_left_out(bank: ml.LearnedBank) -> None:
    data = ml.MaskData(texts=[*TEXTS, "the birds near the cat wait ."])
    assert not ml.evaluate(bank, data, progress=False).texts.startswith("25 texts")
    assert ml.evaluate(bank, data, include_learned=True, progress=False).texts.startswith("25 texts")


def test_texts_of_groups_without_masks_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However many there are: 64 are the most that are learned without asking."""
    rows = [{"text": text, "kind": f"k{i % 2}"} for i, text in enumerate(TEXTS)]
    bank = ml.learn(texts=rows, scope="column:kind", **FAST)
    others = [{"text": text, "kind": f"k{i}"} for i, text in enumerate(islice(tasks.texts(1), 70))]
    bank.save(tmp_path)
    path = tmp_path / "others.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in others), encoding="utf-8")
    capsys.readouterr()
    data = ml.MaskData(texts=others, scope="column:kind", max_groups=70)
    for given in (others, data):
        found = ml.evaluate(bank, given, baselines="norm")
        assert found.mask.groups == ("k0", "k1") and found.texts.startswith("2 texts")
    assert len(data.groups.names) == len(data.parts["all"]) == 70
    assert evaluate(["--mask", str(tmp_path), "--data.path", str(path)]) == 0
    line = "68 values of the column 'kind' have no masks, and their texts are left out: k2, k3"
    assert capsys.readouterr().out.count(line) == 3
    message = refused(lambda: ml.evaluate(bank, others[2:]))
    assert "masks for the values k0, k1 of the column 'kind', and all of its texts have others: k2, k3" in message


def test_masks_of_texts_in_memory_are_not_evaluated_on_texts_of_the_generator(
    bank: ml.LearnedBank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank.save(tmp_path)
    assert evaluate(["--mask", str(tmp_path)]) == 2
    assert "texts given in Python" in capsys.readouterr().err


def test_a_model_that_is_loaded_by_its_name_goes_to_the_best_device(
    bank: ml.LearnedBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "best_device", lambda: "meta")
    devices: list[str | None] = []

    def load(lm: Any, revision: Any = None, dtype: Any = "float32", device: Any = None, **_: Any) -> PreTrainedModel:
        devices.append(device)
        return ml.load_lm(lm, revision, dtype)

    monkeypatch.setattr(evaluating, "load_lm", load)
    ml.evaluate(bank.mask, TEXTS[:4], baselines=(), include_learned=True, progress=False)
    ml.evaluate(bank.mask, TEXTS[:4], lm=ml.load_lm(), baselines=(), include_learned=True, progress=False)
    assert devices == ["meta", None]


def test_a_model_of_pickled_weights_is_evaluated_where_it_is_trusted(tmp_path: Path) -> None:
    lm, folder = ml.load_lm(), tmp_path / "pickled"
    lm.config.save_pretrained(folder)
    torch.save(lm.state_dict(), folder / "pytorch_model.bin")
    ml.load_tokenizer().save_pretrained(folder)
    mask = replace(ml.circuit(lm, ["a0.h1", "m0"]), model=ModelId(str(folder), None, fingerprint(lm)))
    assert "in Python allow_pickle=True" in refused(lambda: ml.evaluate(mask, TEXTS[:4], baselines=()))
    found = ml.evaluate(mask, TEXTS[:4], baselines=(), allow_pickle=True, trust_remote_code=True, progress=False)
    assert found.texts.startswith("4 texts") and found.data.trust_remote_code


def test_baselines_are_compared_with_the_learned_masks(bank: ml.LearnedBank) -> None:
    table = ml.baselines(bank, ["norm", "random"])
    assert table.index.tolist() == [(s, name) for s in (4, 18) for name in ("learned", "norm", "random")]
    kl, own = table["kl"].to_dict(), bank.metrics.to_dict()
    assert kl[4, "learned"] == pytest.approx(own["kl"][4])
    assert kl[4, "random"] == pytest.approx(own["random kl_mean"][4])
    assert "choose by the texts" in refused(lambda: ml.evaluate(bank.mask, TEXTS[:3], baselines=["norm"]))


def test_a_mistyped_baseline_is_one_clear_line(bank: ml.LearnedBank) -> None:
    for mistake in (lambda: ml.baselines(bank, "gredy"), lambda: ml.evaluate(bank, baselines=["random", "gredy"])):
        message = refused(mistake)
        assert "no baseline 'gredy'. Did you mean greedy? Choose from random, random-matched, inverse, norm" in message
    assert "norm kl" in ml.evaluate(bank, baselines="norm", progress=False).metrics


def test_guided_baselines_of_a_bank_without_settings_choose_by_kl(bank: ml.LearnedBank) -> None:
    bare = replace(bank, mask=replace(bank.mask, config={}))
    table, expected = (ml.baselines(each, "single-ablation", progress=False) for each in (bare, bank))
    assert table["kl"].tolist() == pytest.approx(expected["kl"].tolist())
