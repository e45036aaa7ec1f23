"""Texts that masks were learned on, recognised under another name, and kept out of evaluation."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import refused
from test_mask_file import bank

import masklearn as ml
from masklearn.cli.evaluation_texts import choose_settings, evaluation_texts
from masklearn.data import leave_out_learned
from masklearn.data.encoded import text_hash

TEXTS = [f"the {noun} {verb} ." for noun in ("dog", "cat", "bird", "king") for verb in ("runs", "sings", "waits")]
OTHERS = [f"the {noun} near the dogs waits ." for noun in ("dog", "cat", "bird")]


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def data_on(path: str, **settings: object) -> ml.MaskData:
    data = ml.MaskData(path=path, **settings)  # pyright: ignore[reportArgumentType]
    data.setup()
    return data


@pytest.fixture
def learned(tmp_path: Path) -> tuple[str, ml.Mask]:
    """A file, and a mask that was learned on it."""
    path = write(tmp_path / "train.jsonl", TEXTS)
    texts = torch.tensor(data_on(path).learned_texts)
    return path, replace(bank(), learned_texts=texts, config={"data": {"path": path}})


def evaluated_on(mask: ml.Mask, path: str, part: str | None = None) -> tuple[list[str], list[str]]:
    """The texts that a mask is evaluated on, and what the user is told."""
    texts = evaluation_texts("mask", mask, {"path": path}, part)  # pyright: ignore[reportArgumentType]
    data = data_on(texts.settings["path"])
    known = mask.learned_texts.tolist()
    notices = []
    if texts.are_others:
        notices = leave_out_learned(data, texts.split, known, texts.all_requested, "--part all")
    tokenizer = data.load_tokenizer()
    return [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in data.parts[texts.split].ids], notices


def test_a_copy_of_the_training_file_is_not_reported_as_held_out(learned: tuple[str, ml.Mask], tmp_path: Path) -> None:
    path, mask = learned
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(path, tmp_path / "elsewhere" / "copy.jsonl")
    held_out = data_on(path).parts["test"]
    texts, (notice,) = evaluated_on(mask, str(copy))
    assert len(texts) == len(held_out) == 1
    assert notice.startswith("11 texts are left out")
    texts, (notice,) = evaluated_on(mask, str(copy), "all")
    assert len(texts) == 12
    assert "learned on 11 of these texts" in notice
    assert evaluated_on(mask, path)[1] == []  # its own file: the test split alone


def test_overlaps_are_counted_whatever_the_order_and_the_limits(learned: tuple[str, ml.Mask], tmp_path: Path) -> None:
    _, mask = learned
    held_out = [text for text in TEXTS if text not in known_texts(mask)]
    mixed = write(tmp_path / "mixed.jsonl", [*OTHERS, *TEXTS[::-1]])
    assert sorted(evaluated_on(mask, mixed)[0]) == sorted([*OTHERS, *held_out])
    assert evaluated_on(mask, write(tmp_path / "others.jsonl", OTHERS)) == (OTHERS, [])


def known_texts(mask: ml.Mask) -> list[str]:
    """The texts whose hashes a mask holds."""
    return [text for text in TEXTS if text_hash(text) in mask.learned_texts.tolist()]


def test_texts_that_are_all_known_are_refused_and_old_mask_files_say_that_they_do_not_know(
    learned: tuple[str, ml.Mask], tmp_path: Path
) -> None:
    _, mask = learned
    known = write(tmp_path / "known.jsonl", known_texts(mask))
    assert "the masks were learned on all of its texts" in refused(lambda: evaluated_on(mask, known))
    assert len(evaluated_on(mask, known, "all")[0]) == 11
    old = replace(mask, learned_texts=torch.zeros(0, dtype=torch.int64))
    assert "does not say which texts" in evaluated_on(old, known)[1][0]


def test_every_text_in_a_packed_chunk_is_known(tmp_path: Path) -> None:
    packed = data_on(write(tmp_path / "train.jsonl", TEXTS), pack=True, max_length=8)
    hashes = {h for text in packed.parts["all"].encoded for h in text.hashes}
    whole = data_on(write(tmp_path / "train.jsonl", TEXTS))
    assert hashes == {h for text in whole.parts["all"].encoded for h in text.hashes}
    assert len(hashes) == len(TEXTS)
    assert max(len(text.hashes) for text in packed.parts["all"].encoded) > 1


def test_hashes_do_not_depend_on_how_texts_are_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", TEXTS)
    found = [
        [text.hashes for text in data_on(path, **settings).parts["all"].encoded]
        for settings in ({}, {"max_length": 3}, {"positions": "random"}, {"bos": "never"})
    ]
    assert all(other == found[0] for other in found)


def test_texts_are_known_however_a_file_splits_them_and_equal_ones_have_one_name(tmp_path: Path) -> None:
    split = [{"prompt": text[:7], "completion": text[7:]} for text in TEXTS]
    (tmp_path / "split.jsonl").write_text("".join(json.dumps(row) + "\n" for row in split))
    whole, rows = data_on(write(tmp_path / "whole.jsonl", TEXTS)), data_on(str(tmp_path / "split.jsonl"))
    for one, other in ((whole, rows), (rows, whole)):
        known = frozenset(h for text in one.parts["all"].encoded for h in text.hashes)
        assert len(other.parts["all"].without(known)) == 0
    twice = data_on(write(tmp_path / "twice.jsonl", [*TEXTS, TEXTS[2]])).parts["all"]
    assert twice.text_names == [*map(str, range(len(TEXTS))), "2"]
    assert twice.distinct().names == [*map(str, range(len(TEXTS)))]


def test_a_mask_file_keeps_the_hashes_and_old_files_load_without(tmp_path: Path, learned: tuple[str, ml.Mask]) -> None:
    _, mask = learned
    mask.save(tmp_path / "mask.safetensors")
    assert torch.equal(ml.Mask.load(tmp_path / "mask.safetensors").learned_texts, mask.learned_texts)
    bank().save(tmp_path / "old.safetensors")
    assert len(ml.Mask.load(tmp_path / "old.safetensors").learned_texts) == 0
    with pytest.raises(ValueError, match="learned texts are torch.float32"):
        replace(mask, learned_texts=torch.zeros(2))


def test_scoring_completions_changes_the_texts_and_so_their_splits() -> None:
    own = {"path": "a.jsonl", "positions": "last"}
    assert choose_settings("mask", own, {"positions": "all", "answer_ids": "ignore"}, any_split=False)[1] is False
    message = refused(lambda: choose_settings("mask", own, {"positions": "completion"}, any_split=False))
    assert "--data.positions would change which texts are held out" in message
