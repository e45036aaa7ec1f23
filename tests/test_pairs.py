"""Pairs of texts and texts with answers: the files of other circuit tools, and the metrics of answers."""

import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st

import masklearn as ml
from masklearn.data import resampling
from masklearn.data.columns import Columns, RequestedColumns
from masklearn.data.encoded import Encoded
from masklearn.data.resampling import add_resample_texts
from masklearn.data.texts import RowReader, Text
from masklearn.tiny import tasks

NOUNS = ("dog", "cat", "bird", "king", "poet")


def read_row(row: dict[str, Any], **requested: str) -> Text:
    return RowReader(Columns.of("the file", list(row), RequestedColumns(**requested)))(0, row)


CLEAN, CORRUPTED = "the dog near the dogs", "the cat near the dogs"
KNOWN_FILES: dict[str, tuple[dict[str, Any], Text]] = {
    "ours": (
        {"clean": CLEAN, "corrupted": CORRUPTED, "answer": " runs", "wrong_answer": " run"},
        Text(0, CLEAN, "", CORRUPTED, (" runs",), (" run",)),
    ),
    "EAP, ids": (
        {"": 470, "clean": CLEAN, "corrupted": CORRUPTED, "corrupted_hard": "x", "correct_idx": 7, "incorrect_idx": 9},
        Text(0, CLEAN, "", CORRUPTED, (7,), (9,)),
    ),
    "EAP, years": (
        {"clean": CLEAN, "corrupted": CORRUPTED, "label": 97},
        Text(0, CLEAN, "", CORRUPTED, (97,)),  # words follow from all texts together: see test_answers.py
    ),
    "Edge-Pruning": (
        {"clean": "1 + 2 = <predict>3</predict> .", "corrupted": "1 + 5 = <predict>6</predict> ."},
        Text(0, "1 + 2 =", "", "1 + 5 =", (" 3",), (" 6",)),
    ),
    "auto-circuit": (
        {"clean": CLEAN, "corrupt": CORRUPTED, "answers": [" runs", " sings"], "wrong_answers": [" run"]},
        Text(0, CLEAN, "", CORRUPTED, (" runs", " sings"), (" run",)),
    ),
    "labels of another kind": ({"text": CLEAN, "label": 1, "answer": "x"}, Text(0, CLEAN, "")),
}


@pytest.mark.parametrize("name", KNOWN_FILES)
def test_rows_of_recognised_formats_are_read_without_flags(name: str) -> None:
    row, expected = KNOWN_FILES[name]
    assert read_row(row) == expected


def test_flags_say_which_column_is_which() -> None:
    row = {"prompt": CLEAN, "other": CORRUPTED, "next": 3, "token_id": 8, "text": "x"}
    requested = {"text": "prompt", "corrupted": "other", "answer": "next", "wrong": "token_id"}
    assert read_row(row, **requested) == Text(0, CLEAN, "", CORRUPTED, ("3",), (8,))
    with pytest.raises(ml.UserError, match="no column 'nxt'; it has prompt, .*--data.answer_column"):
        read_row(row, **requested | {"answer": "nxt"})
    with pytest.raises(ml.UserError, match="row 1: 'next' holds None, which is not an answer.*--data.answer_column"):
        read_row(row | {"next": None}, **requested | {"wrong": "next"})
    with pytest.raises(ml.UserError, match="'other' holds 3, which is not text.*--data.corrupted_column"):
        read_row(row | {"other": 3}, **requested)


def test_corrupted_texts_have_the_clean_ones_as_their_pairs_and_none_of_their_answers() -> None:
    row = {"clean": CLEAN, "corrupted": CORRUPTED, "answer": " runs", "wrong_answer": " run"}
    assert read_row(row, text="corrupted") == Text(0, CORRUPTED, "", CLEAN)
    assert read_row({"prompt": CLEAN, "corrupted": CORRUPTED}, text="corrupted") == Text(0, CORRUPTED, "")


def test_a_completion_follows_a_prompt_and_nothing_else() -> None:
    answered = {"prompt": "Q: ", "completion": "yes"}
    assert read_row(answered | {"text": "Q: yes"}) == read_row(answered) == Text(0, "Q: ", "", completion="yes")
    assert read_row({"text": "Q: yes", "completion": "yes"}) == Text(0, "Q: yes", "")
    assert read_row({"text": "Q: ", "completion": "yes"}, completion="completion").completion == "yes"


def rows(n: int = 5) -> list[dict[str, Any]]:
    return [
        {
            "clean": f"the {noun} near the dogs",
            "corrupted": f"the {noun}s near the dogs",
            "answer": " runs",
            "wrong_answer": " run",
        }
        for noun in NOUNS[:n]
    ]


def write(path: Path, content: Any) -> str:
    lines = content if path.suffix == ".jsonl" else [content]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.json", "prompts.json"])
def test_a_batch_of_pairs_by_hand(tmp_path: Path, name: str) -> None:
    content: Any = rows()
    if name == "prompts.json":
        content = {"word_idxs": {"x": 1}, "prompts": [
            {"clean": row["clean"], "corrupt": row["corrupted"], "answers": [row["answer"], " waits"],
             "wrong_answers": [row["wrong_answer"]]} for row in rows()]}  # fmt: skip
    data = ml.MaskData(path=write(tmp_path / name, content), positions="last")
    data.setup("fit")
    vocabulary = ml.load_tokenizer().get_vocab()
    batch = next(iter(data.loader("all")))
    start, the, near, dogs = (vocabulary[token] for token in ("<s>", "the", "near", "dogs"))
    assert batch.input_ids.tolist() == [[start, the, vocabulary[noun], near, the, dogs] for noun in NOUNS]
    assert batch.corrupted is not None and batch.answers is not None and batch.wrong is not None
    assert batch.corrupted.tolist() == [[start, the, vocabulary[f"{noun}s"], near, the, dogs] for noun in NOUNS]
    right = [vocabulary["runs"], *([vocabulary["waits"]] if name == "prompts.json" else [])]
    assert batch.answers.tolist() == [sorted(right)] * 5
    assert batch.wrong.tolist() == [[vocabulary["run"]]] * 5


def test_pairs_of_unequal_length_are_left_out_with_a_notice(tmp_path: Path) -> None:
    pairs = rows()
    pairs[1]["corrupted"] = "the cat"
    data = ml.MaskData(path=write(tmp_path / "pairs.jsonl", pairs))
    data.setup("fit")
    assert [text.row for text in data.parts["all"].encoded] == [0, 2, 3, 4]
    (notice,) = data.notices
    expected = "1 of 5 pairs are left out, as their token lengths differ; the first is text 2 of 6 tokens, with 3"
    assert notice.startswith(expected)
    for pair in pairs:
        pair["corrupted"] = "the cat"
    data = ml.MaskData(path=write(tmp_path / "bad.jsonl", pairs))
    with pytest.raises(
        ml.UserError, match="every pair has .* another token length.*text 1 of 6 tokens, with 3.*corrupted_column"
    ):
        data.setup("fit")


def test_ambiguous_answers_and_ids_of_another_tokenizer_are_ignored_with_a_notice(tmp_path: Path) -> None:
    pairs = rows()
    pairs[0]["wrong_answer"] = " runs"
    data = ml.MaskData(path=write(tmp_path / "pairs.jsonl", pairs))
    data.setup("fit")
    assert [bool(text.answers) for text in data.parts["all"].encoded] == [False, True, True, True, True]
    assert data.notices[0].startswith("In 1 of 5 texts a right and a wrong answer begin with the same token")
    ids = [{"clean": r["clean"], "corrupted": r["corrupted"], "correct_idx": 47764, "incorrect_idx": 3} for r in rows()]
    data = ml.MaskData(path=write(tmp_path / "ids.jsonl", ids))
    data.setup("fit")
    assert data.notices[0].startswith(
        "Answers are ignored: they hold token ids of another tokenizer, for example 47764"
    )
    assert next(iter(data.loader("all"))).answers is None


@pytest.mark.parametrize("given", ["318.0", "[12, -3]", -4])  # pandas writes the first for a column with a gap
def test_a_value_that_is_not_a_token_id_is_rejected(given: object, tmp_path: Path) -> None:
    ids = [{"clean": r["clean"], "corrupted": r["corrupted"], "correct_idx": 12, "incorrect_idx": 3} for r in rows()]
    ids[2]["correct_idx"] = given
    data = ml.MaskData(path=write(tmp_path / "ids.jsonl", ids))
    with pytest.raises(ml.UserError, match="row 3: 'correct_idx' holds .*, which is not a token id"):
        data.setup("fit")


def test_a_text_with_an_answer_is_not_truncated(tmp_path: Path) -> None:
    data = ml.MaskData(path=write(tmp_path / "pairs.jsonl", rows()), max_length=4)
    with pytest.raises(
        ml.UserError, match="5 of 5 texts with answers are longer .* --data.max_length 6, .* --data.truncation left"
    ):
        data.setup("fit")


@pytest.mark.parametrize(("name", "kept"), [("greater_than.csv", 1), ("ioi.csv", 1), ("stories_names.jsonl", 400)])
def test_files_of_other_circuit_tools_are_read_as_they_are(stories: Path, name: str, kept: int) -> None:
    lm = str(stories / "models" / "stories260k")
    data = ml.MaskData(path=str(SHARED / "data" / name), lm=lm, limit=400 if name.endswith("jsonl") else 100)
    data.setup("fit")
    assert len(data.parts["all"]) >= kept
    for text in data.parts["all"].encoded:
        assert text.corrupted is not None and len(text.corrupted) == len(text.ids)
    if name == "stories_names.jsonl":
        assert sum(bool(text.answers) for text in data.parts["all"].encoded) == 400 - 41


# --- other texts instead of corrupted ones ----------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(3, 5), min_size=2, max_size=5), min_size=1, max_size=12), st.integers(0, 3))
def test_a_text_without_a_pair_is_resampled_from_another(ids: list[list[int]], seed: int) -> None:
    texts = [Encoded(i, "", row) for i, row in enumerate(ids)]
    pool = list(range(0, len(ids), 2))
    found = add_resample_texts(texts, pool, seed)
    assert found == add_resample_texts(texts, pool, seed)
    for text in found:
        pooled = [ids[i] for i in pool]
        equal = [row for row in pooled if len(row) == len(text.ids) and row != text.ids]
        longer = [row[: len(text.ids)] for row in pooled if len(row) > len(text.ids)]
        longer = [row for row in longer if row != text.ids]
        if equal or longer:
            assert text.corrupted in (equal or longer)
        elif text.corrupted is None:
            assert all(text.ids[: len(row)] == row for row in pooled if len(row) <= len(text.ids))
        else:
            assert len(text.corrupted) == len(text.ids) and text.corrupted != text.ids


def test_longer_texts_are_searched_only_where_no_other_is_of_equal_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """To list them for every text takes a time that is quadratic in the texts."""
    searched = list[int]()

    def counted(lengths: list[int], n: int) -> int:
        searched.append(n)
        return bisect_right(lengths, n)

    monkeypatch.setattr(resampling, "bisect_right", counted)
    texts = [Encoded(i, "", [i, *[0] * n]) for i, n in enumerate((1, 1, 1, 2, 3, 3))]
    found = [text.corrupted for text in add_resample_texts(texts, range(6), 0)]
    assert searched == [3] and found[3] in ([4, 0, 0], [5, 0, 0])


def test_resampled_texts_come_from_the_training_split(tmp_path: Path) -> None:
    data = ml.MaskData(task="mixed", limit=60)
    data.setup("fit")
    train = [text.ids for text in data.parts["train"].encoded]
    for part in ("train", "validation", "test"):
        for text in data.parts[part].encoded:
            assert text.corrupted != text.ids
            assert text.corrupted is not None and len(text.corrupted) == len(text.ids)
            assert any(text.corrupted[: len(ids)] == ids[: len(text.ids)] for ids in train)


def test_the_embedded_tasks_have_pairs_and_answers() -> None:
    for task in ("names", "agreement", "years", "copy"):
        data, tokenizer = ml.MaskData(task=task, limit=20, positions="last"), ml.load_tokenizer()  # pyright: ignore
        data.setup("fit")
        assert not data.notices
        for text, prompt in zip(data.parts["all"].encoded, tasks.prompts(task, 0), strict=False):
            assert text.corrupted == tokenizer(prompt.corrupted)["input_ids"]
            assert set(tokenizer.convert_ids_to_tokens(text.answers)) == set(prompt.answers)
            assert set(tokenizer.convert_ids_to_tokens(text.wrong)) == set(prompt.wrong_answers)


# --- long texts -------------------------------------------------------------------------------------------------------


def test_packing_concatenates_texts_and_cuts_chunks(tmp_path: Path) -> None:
    lines = ["the dog runs .", "the cat sings .", "the bird waits near the dogs ."]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    data = ml.MaskData(path=str(tmp_path / "texts.txt"), max_length=4, pack=True)
    data.setup()
    stream = [token for row in ml.load_tokenizer()(lines)["input_ids"] for token in row]
    chunks = [stream[i : i + 4] for i in range(0, len(stream), 4)]
    assert data.parts["all"].ids == [chunk for chunk in chunks if len(chunk) > 1]
    pairs = ml.MaskData(path=write(tmp_path / "pairs.jsonl", rows()), pack=True)
    with pytest.raises(ml.UserError, match="holds pairs or answers, which cannot be packed"):
        pairs.setup()
    with pytest.raises(ml.UserError, match="data.pack joins the texts and splits them into chunks"):
        ml.MaskData(task="names", pack=True, scope="input")
