"""Answers in the files of the field: read as what was meant, whatever tokenizer their ids are of."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokenizer import byte_tokenizer, saved
from conftest import SHARED, refused, tiny_llama

import masklearn as ml
from masklearn.data.answers import spaced
from masklearn.data.columns import RequestedColumns
from masklearn.data.sources import Source
from masklearn.data.texts import Text
from masklearn.evaluation import implausible_answers
from masklearn.masking import MaskedLM

Row = dict[str, Any]
DIGITS = [f"{year:02d}" for year in range(100)]
IOI = [
    ("Then, Aaron and Amber were working at the house. Aaron decided to give a drink to", "Amber", "Aaron"),
    ("When Amy and Laura got a snack at the house, Laura decided to give it to", "Amy", "Laura"),
    ("Then, Laura, and Aaron had lunch, and Laura gave a necklace to", "Aaron", "Laura"),
]
NAME_IDS = {"Aaron": 26757, "Amber": 47764, "Amy": 14235, "Laura": 16753}
COUNTRY: Row = {"clean": " Kabul, the capital of", "capital": "Kabul", "country": "Afghanistan", "country_idx": 8037}
WRONG_COUNTRY: Row = {
    "corrupted": " London, the capital of", "corrupted_country": "United Kingdom", "corrupted_country_idx": 1578,
}  # fmt: skip
FILES: dict[str, tuple[list[Row], list[tuple[list[str], list[str]]]]] = {
    "greater-than": (
        [
            {"clean": "The plan lasted from the year 1697 to the year 16", "corrupted": "x", "correct_idx": "97"},
            {"clean": "The price ranges from $ 1403 to $ 14", "corrupted": "x", "correct_idx": "3"},
            {"clean": "1208, 1216, 1256, 12", "corrupted": "x", "correct_idx": "56"},
        ],
        [(DIGITS[98:], DIGITS[:98]), (DIGITS[4:], DIGITS[:4]), (DIGITS[57:], DIGITS[:57])],
    ),
    "years in a label": (
        [{"clean": "The war lasted from 1798 to 17", "corrupted": "x", "label": 98}],
        [(DIGITS[99:], DIGITS[:99])],
    ),
    "indirect objects": (
        [
            {"clean": text, "corrupted": "x", "correct_idx": NAME_IDS[right], "incorrect_idx": NAME_IDS[wrong]}
            for text, right, wrong in IOI
        ],
        [([f" {right}"], [f" {wrong}"]) for _, right, wrong in IOI],
    ),
    "gender bias": (
        [
            {"clean": f"The {job} slept because", "corrupted": f"The {person} slept because", "label": label,
             "clean_answer_idx": 339 + 334 * (1 - label), "corrupted_answer_idx": 339 + 334 * label}
            for job, person, label in [("poet", "man", 0), ("banker", "woman", 1)]
        ],
        [([" she"], [" he"]), ([" he"], [" she"])],
    ),
    "hypernyms": (
        [{"clean": ", gemstones and other", "corrupted": ", moths and other", "answers": "['gem', 'gems']",
          "answers_idx": "[16840, 23685]", "corrupted_answers": "['insects', 'bugs']", "corrupted_answers_idx": "[7]"}],
        [([" gem", " gems"], [" insects", " bugs"])],
    ),
    "capitals": ([COUNTRY | WRONG_COUNTRY], [([" Afghanistan"], [" United Kingdom"])]),
    "nested": (
        [{"prompt": "Mary and John left. John spoke to", "meta": {"io": "Mary", "s": ["John"]},
          "twin": {"prompt": "Mary and John left. Ann spoke to"}}],
        [([" Mary"], [" John"])],
    ),
}  # fmt: skip
"""Rows as the files of EAP, EAP-IG and MIB have them, and the right and wrong answers that are meant."""
FLAGS = {"nested": RequestedColumns("prompt", "twin.prompt", "meta.io", "meta.s")}


def read(folder: Path, rows: list[Row], columns: RequestedColumns | None = None) -> tuple[list[Text], list[str]]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(path), None, None, "train", None, columns or RequestedColumns(), None, 0).read()


@pytest.mark.parametrize("name", FILES)
def test_answers_of_the_fields_files_are_those_meant(name: str, tmp_path: Path) -> None:
    rows, expected = FILES[name]
    texts, _ = read(tmp_path, rows, FLAGS.get(name))
    assert [([*text.answers], [*text.wrong]) for text in texts] == expected
    if name == "nested":
        assert texts[0].corrupted == "Mary and John left. Ann spoke to"


def test_names_that_do_not_agree_with_the_ids_are_not_taken(tmp_path: Path) -> None:
    """If the ids of right and wrong answers are exchanged in some rows, the task is another one."""
    rows, _ = FILES["indirect objects"]
    swapped = rows[0] | {"correct_idx": rows[0]["incorrect_idx"], "incorrect_idx": rows[0]["correct_idx"]}
    assert [text.answers for text in read(tmp_path, [*rows, swapped])[0]] == [(47764,), (14235,), (26757,), (26757,)]


def test_texts_that_are_not_of_the_task_have_no_answers(tmp_path: Path) -> None:
    rows, _ = FILES["years in a label"]
    texts, notices = read(tmp_path, [*rows * 9, {"clean": "an ode", "corrupted": "x", "label": 3}])
    assert [len(text.answers) for text in texts] == [1] * 9 + [0]
    assert notices[1] == "1 of 10 texts are not of this task and have no answers"


@pytest.mark.parametrize(("row", "column"), [
    ({"clean": "a dog", "corrupted": "a cat", "label": 1}, "label"),
    ({"clean": "a dog", "corrupted": "a cat", "plural": 1}, "plural"),
    ({"text": "a dog", "answer": "runs"}, "answer"),
])  # fmt: skip
def test_a_column_of_answers_that_is_not_used_is_named(row: Row, column: str, tmp_path: Path) -> None:
    (text,), (notice,) = read(tmp_path, [row])
    assert text.answers == ()
    assert f"the column {column!r} is not used" in notice.lower()


@pytest.mark.parametrize(("text", "answer", "expected"), [
    ("the capital of", "Rome", " Rome"), ("whose capital,", "Rome", " Rome"), ("Q: who?", "Ann", " Ann"),
    ("2 + 2 =", "4", "4"), ("Answer: (", "B", "B"), ("the year 17", "52", "52"), ("it costs 3.", "5", "5"),
    ("in the year", "1752", " 1752"), ("a dog ", "runs", "runs"), ("the dog", ".", "."), ("a dog\n", "runs", "runs"),
    ("日本の首都は", "東京", "東京"), ("首都:", "東京", "東京"), ("言語は", "Python", "Python"), ("カタカナ", "ｱ", "ｱ"),
    ("人", "々", "々"), ("เมืองหลวงของ", "ไทย", "ไทย"), ("ເມືອງ", "ລາວ", "ລາວ"), ("ភ្នំពេញ", "ខ្មែរ", "ខ្មែរ"),
    ("မြို့တော်သည", "မြန်မာ", "မြန်မာ"), ("한국의 수도는", "서울", " 서울"), ("столица", "Рим", " Рим"),
])  # fmt: skip
def test_words_get_the_space_with_which_they_continue_the_text(text: str, answer: str, expected: str) -> None:
    (found,), notices = spaced([Text(0, text, "", "x", (answer,), (answer,))])
    assert (found.answers, found.wrong) == ((expected,), (expected,))
    assert len(notices) == (expected != answer)
    assert spaced([Text(0, text, "", "x", (answer,), (" x",))])[0][0].answers == (answer,)  # the file writes spaces


@pytest.mark.parametrize("row", [
    {"clean": "The capital of Norway is", "corrupted": "The capital of France is", "answer": "Oslo",
     "wrong_answer": "Lima"},
    {"clean": IOI[1][0], "corrupted": IOI[1][0], "correct_idx": NAME_IDS["Amy"], "incorrect_idx": NAME_IDS["Laura"]},
], ids=["words", "ids"])  # fmt: skip
def test_answers_begin_a_message_without_a_space(row: Row, tmp_path: Path) -> None:
    data = data_of(tmp_path, [row], chat=True, max_length=512)
    right, wrong = ("O", "L") if "answer" in row else ("A", "L")
    assert f"Its right answers: {right!r}; wrong answers: {wrong!r}" in data.preview


# --- token ids --------------------------------------------------------------------------------------------------------


def data_of(folder: Path, rows: list[Row], **settings: Any) -> ml.MaskData:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ml.MaskData(path=str(path), tokenizer=saved(folder / "tokenizer", byte_tokenizer()), **settings)
    data.setup()
    return data


def ids(*words: str) -> list[Row]:
    """Pairs whose answers are ids of the byte tokenizer, where `X` is the answer to `XY, XY, Z`."""
    vocabulary = byte_tokenizer().get_vocab()
    return [{"clean": w[1:], "corrupted": w[1:], "correct_idx": vocabulary[w[0]], "incorrect_idx": 5} for w in words]


def test_ids_that_cannot_be_checked_are_refused_with_what_they_would_be(tmp_path: Path) -> None:
    message = refused(lambda: data_of(tmp_path, ids("xab", "ycd", "zef")))
    assert "text 1 has the right answer 'x' and the wrong answer '#'" in message
    assert "--data.answer_ids this-tokenizer" in message
    data = data_of(tmp_path, ids("xab", "ycd", "zef"), answer_ids="this-tokenizer")
    assert "Its right answers: 'x'; wrong answers: '#'" in data.preview
    ignored = data_of(tmp_path, ids("xab", "ycd", "zef"), answer_ids="ignore")
    assert not any(text.answers for text in ignored.parts["all"].encoded)
    foreign = [row | {"correct_idx": 47764} for row in ids("xab", "ycd", "zef")]
    message = refused(lambda: data_of(tmp_path, foreign, answer_ids="this-tokenizer"))
    assert "for example 47764" in message


def test_ids_that_occur_in_their_texts_are_this_tokenizers(stories: Path, tmp_path: Path) -> None:
    tokenizer = ml.load_tokenizer(str(stories / "models" / "stories260k"))
    (lily,) = tokenizer(" Lily", add_special_tokens=False)["input_ids"][-1:]
    rows = [{"clean": f"{day} Lily went to", "correct_idx": lily} for day in "abc"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ml.MaskData(path=path, lm=str(stories / "models" / "stories260k"), answer_column="correct_idx")
    data.setup()
    assert {text.answers for text in data.parts["all"].encoded} == {(lily,)}


def test_the_years_of_a_file_can_be_requested_as_ids(tmp_path: Path) -> None:
    rows, _ = FILES["greater-than"]
    rows = [row | {"corrupted": row["clean"]} for row in rows]
    data = data_of(tmp_path, rows, answer_ids="this-tokenizer")
    assert [text.answers for text in data.parts["all"].encoded] == [(97,), (3,), (56,)]


# --- plausibility -----------------------------------------------------------------------------------------------------


def test_answers_that_the_full_model_does_not_expect_are_warned_of(tmp_path: Path) -> None:
    """The most and the least probable next tokens of 50; one that occurs in the text is no surprise."""
    lm = tiny_llama()
    tokens = torch.randint(3, 50, (6, 5), generator=torch.Generator().manual_seed(0))
    order = lm(tokens).logits[:, -1].argsort()
    path = tmp_path / "rows.jsonl"
    for rank, row_tokens, warned in ((-1, tokens, False), (0, tokens, True), (0, None, False)):
        rows = []
        for text, answer in zip(tokens.tolist(), order[:, rank].tolist(), strict=True):
            rows.append({"tokens": text if row_tokens is not None else [answer, *text[1:]], "answer_idx": answer})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = ml.MaskData(
            path=path, answer_column="answer_idx", answer_ids="this-tokenizer", positions="last",
            tokenizer=saved(tmp_path / "tokenizer", byte_tokenizer()),
        )  # fmt: skip
        data.setup()
        warning = implausible_answers(MaskedLM(lm), data)
        assert bool(warning) == warned
    assert implausible_answers(MaskedLM(lm), data_of(tmp_path, [{"text": "ab"}])) == ""


def test_the_ioi_file_of_another_tokenizer_is_scored_with_its_names(stories: Path) -> None:
    """As token ids of other tokenizers its answers were words such as billing and pets."""
    data = ml.MaskData(path=SHARED / "data" / "ioi.csv", lm=str(stories / "models" / "stories260k"), limit=50)
    texts, notices = data.source.read()
    assert "the task is indirect object identification" in notices[0]
    for text in texts:
        (right,), (wrong,) = text.answers, text.wrong
        assert isinstance(text.text, str) and isinstance(right, str) and isinstance(wrong, str)
        assert text.text.count(right.strip()) == 1 < text.text.count(wrong.strip())
