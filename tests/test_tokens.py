"""How texts become tokens: begin and end tokens, truncation and completions, and what is shown of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokenizer import BEGIN, END, byte_tokenizer, saved, shown
from conftest import SHARED, refused
from transformers import AutoTokenizer

import masklearn as ml
from masklearn.data.text_tokenizer import TextTokenizer
from masklearn.evaluation import measure
from masklearn.masking import MaskedLM

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]


def data_of(folder: Path, rows: list[dict[str, Any]], tokenizer: Any = None, **settings: Any) -> ml.MaskData:
    """The rows as a file, tokenised."""
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if tokenizer is not None:
        settings["tokenizer"] = saved(folder / "tokenizer", tokenizer)
    data = ml.MaskData(path=path, **settings)
    data.setup()
    return data


def scored_targets(data: ml.MaskData, index: int = 0) -> list[int]:
    """The tokens that the scored positions of a text predict."""
    batch = data.collate([data.parts["all"][index]])
    (positions,) = batch.scored.nonzero()[:, 1:].T.tolist()
    ids = [*batch.input_ids[0].tolist(), None]
    return [ids[position + 1] for position in positions]


# --- begin and end tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["dog", "<s>dog"])
@pytest.mark.parametrize(("begin", "bos", "expected"), [
    (True, "auto", 1), (True, "always", 1), (True, "never", None), (False, "always", 1), (False, "auto", None),
])  # fmt: skip
def test_a_text_begins_with_one_begin_token_where_the_rule_says_so(
    begin: bool, bos: Any, expected: int | None, written: str
) -> None:
    """A begin token that the text writes out is its own where the rule asks for none."""
    tokenizer = byte_tokenizer(begin=begin)
    (ids,) = TextTokenizer(tokenizer, "the file", "a model", bos).ids([written])
    in_text = written.count("<s>")
    assert ids.count(BEGIN) == (in_text if expected is None else expected)
    assert shown(tokenizer, ids).removeprefix("<s>") == "dog"


@pytest.mark.parametrize("begin", [True, False])
def test_nothing_is_scored_behind_an_end_token(begin: bool, tmp_path: Path) -> None:
    """A tokenizer that appends one had `last` scored behind it."""
    tokenizer = byte_tokenizer(begin=begin, end=True)
    data = data_of(tmp_path, [{"text": "dog"}, {"text": "cat</s>"}], tokenizer, positions="last")
    assert [shown(tokenizer, ids).removeprefix("<s>") for ids in data.parts["all"].ids] == ["dog", "cat"]
    assert data.preview.endswith("o|[g]")


def test_always_without_a_begin_token_takes_the_end_token_and_refuses_without_both() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    assert TextTokenizer(tokenizer, "the file", "a model", "always").ids(["ab"])[0][0] == END
    tokenizer.eos_token = None
    assert "data.bos is always" in refused(lambda: TextTokenizer(tokenizer, "it", "a model", "always").ids(["ab"]))


def test_texts_of_pretrained_tokenizers_keep_their_tokens(stories: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(stories / "models" / "stories260k")
    texts = [json.loads(line)["text"] for line in (SHARED / "data" / "stories.jsonl").read_text().splitlines()[:50]]
    assert TextTokenizer(tokenizer, "", "").ids(texts) == tokenizer(texts)["input_ids"]
    assert TextTokenizer(tokenizer, "", "").ids(["<s>" + text for text in texts]) == tokenizer(texts)["input_ids"]


# --- truncation -------------------------------------------------------------------------------------------------------


def test_texts_whose_end_counts_are_not_cut_on_the_right(tmp_path: Path) -> None:
    """Ten prompts of 212 tokens were scored at token 128, in the middle of an example."""
    rows = [{"text": f"{i}" * 212} for i in range(10)] + [{"text": "short"}]
    message = refused(lambda: data_of(tmp_path, rows, byte_tokenizer(), positions="last"))
    assert "10 of 11 texts are longer than data.max_length 128, and their end counts" in message
    assert "--data.max_length 212" in message
    assert "--data.truncation left" in message
    for positions in ("all", "random"):
        data = data_of(tmp_path, rows, byte_tokenizer(), positions=positions)
        assert data.longest_text <= 128


@pytest.mark.parametrize("begin", [True, False])
def test_truncation_on_the_left_keeps_the_begin_token_and_the_end(begin: bool, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(begin=begin)
    rows = [{"clean": "abcdefgh", "corrupted": "ABCDEFGH", "answer": " i"}]
    data = data_of(tmp_path, rows, tokenizer, positions="last", max_length=4, truncation="left")
    (text,) = data.parts["all"].encoded
    kept = "<s>fgh" if begin else "efgh"
    assert shown(tokenizer, text.ids) == kept
    assert shown(tokenizer, text.corrupted or []) == kept.replace("efgh", "EFGH").replace("fgh", "FGH")
    data = data_of(
        tmp_path, rows, tokenizer, positions="completion", max_length=5, truncation="left", answer_column="answer"
    )
    assert shown(tokenizer, data.parts["all"].ids[0]).endswith("gh i")
    assert shown(tokenizer, scored_targets(data)) == " i"


def test_truncation_on_the_left_keeps_no_token_ids_that_are_not_the_begin_token(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(begin=True)
    rows = [{"tokens": [5, 6, 7, 8]}, {"tokens": [BEGIN, 6, 7, 8]}]
    data = data_of(tmp_path, rows, tokenizer, max_length=3, truncation="left")
    assert data.parts["all"].ids == [[6, 7, 8], [BEGIN, 7, 8]]


# --- completions ------------------------------------------------------------------------------------------------------


def test_every_token_of_a_completion_is_scored_and_none_of_the_prompt(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(begin=True, end=True)
    rows: list[dict[str, Any]] = [{"prompt": "2+2=", "completion": "four"}, {"prompt": "A", "completion": " b"}]
    data = data_of(tmp_path, rows, tokenizer, positions="completion")
    assert [shown(tokenizer, ids) for ids in data.parts["all"].ids] == ["<s>2+2=four", "<s>A b"]
    assert [shown(tokenizer, scored_targets(data, i)) for i in range(2)] == ["four", " b"]
    assert data.preview.endswith("<s>|2|+|2|[=]|[f]|[o]|[u]|r")


def test_a_prompt_that_ends_with_the_end_token_keeps_its_completion(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(begin=True, end=True)
    rows: list[dict[str, Any]] = [{"prompt": f"A{tokenizer.eos_token}", "completion": " b"}]
    data = data_of(tmp_path, rows, tokenizer, positions="completion")
    assert shown(tokenizer, scored_targets(data, 0)) == " b"


def test_a_pair_is_completed_with_its_answer(tmp_path: Path) -> None:
    rows = [{"clean": "a dog", "corrupted": "a cat", "answer": [" runs", " sits"], "wrong_answer": " flies"}]
    tokenizer = byte_tokenizer()
    data = data_of(tmp_path, rows, tokenizer, positions="completion", batch_size=1)
    (text,) = data.parts["all"].encoded
    assert shown(tokenizer, text.ids) == "a dog runs"
    assert shown(tokenizer, text.corrupted or []) == "a cat runs"
    assert shown(tokenizer, scored_targets(data)) == " runs"
    assert "counts by its first" not in "".join(data.notices)
    notices = data_of(tmp_path, rows, tokenizer, positions="last").notices
    assert "counts by its first. --data.positions completion scores all of them" in "".join(notices)


def test_the_log_probability_of_a_whole_answer_agrees_with_whole_logits(tmp_path: Path) -> None:
    """And the metrics of the answer's first token are taken where it follows the prompt."""
    rows = [
        {"clean": "the dog near", "corrupted": "the cat near", "answer": " the king runs", "wrong_answer": " dogs"},
        {"clean": "a dog", "corrupted": "a cat", "answer": " sings", "wrong_answer": " dogs"},
    ]
    data = data_of(tmp_path, rows, positions="completion")
    masked_lm = MaskedLM(ml.load_lm())
    mask = torch.rand(1, 1, 36, generator=torch.Generator().manual_seed(0)) > 0.5
    (row,), _ = measure(masked_lm, mask, data.loader("all"))
    full_logp, masked_logp, difference = [], [], []
    for text in data.parts["all"].encoded:
        ids, n = torch.tensor([text.ids]), text.prompt_length
        targets = ids[0, n:, None]
        assert len(targets) in (1, 3)
        full = masked_lm.lm(ids).logits[0].log_softmax(-1)[n - 1 : -1]
        with ml.gated(masked_lm.lm, mask[0, 0]):
            masked = masked_lm.lm(ids).logits[0].log_softmax(-1)[n - 1 : -1]
        full_logp.append(full.gather(1, targets).sum().item())
        masked_logp.append(masked.gather(1, targets).sum().item())
        difference.append((masked[0, list(text.answers)] - masked[0, list(text.wrong)]).item())
    assert row["full_answer_logp"] == pytest.approx(sum(full_logp) / 2, abs=1e-3)
    assert row["answer_logp"] == pytest.approx(sum(masked_logp) / 2, abs=1e-3)
    assert row["logit_diff"] == pytest.approx(sum(difference) / 2, abs=1e-4)


def test_missing_completions_and_templates_are_named(tmp_path: Path) -> None:
    message = refused(lambda: data_of(tmp_path, [{"text": "a dog"}], byte_tokenizer(), positions="completion"))
    assert "text 1 of" in message and "--data.completion_column" in message
    message = refused(lambda: data_of(tmp_path, [{"messages": CHAT}], byte_tokenizer(chat=None)))
    assert "cannot write these messages" in message and "--data.tokenizer" in message
    rows = [{"prompt": "a", "completion": "b" * 9}]
    message = refused(lambda: data_of(tmp_path, rows, byte_tokenizer(), positions="completion", max_length=9))
    assert "--data.max_length 10" in message


# --- tokens as they are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["tokens", "input_ids"])
def test_tokens_are_used_as_they_are(column: str, tmp_path: Path) -> None:
    rows = [{column: [5, 1, 4]}, {column: [7, 8, 0, 0], "attention_mask": [1, 1, 0, 0]}]
    data = data_of(tmp_path, rows, byte_tokenizer(begin=True, end=True))
    assert data.parts["all"].ids == [[5, 1, 4], [7, 8]]
    message = refused(lambda: data_of(tmp_path, [{column: [5, 700]}], byte_tokenizer()))
    assert "row 1: there is no token 700 among the 259" in message
    message = refused(lambda: data_of(tmp_path, [{column: ["a", "b"]}], byte_tokenizer()))
    assert "is neither text nor a list of token ids" in message


def test_pairs_of_tokens_are_used_as_they_are(tmp_path: Path) -> None:
    """Resample ablation took another text of the file in place of the corrupted one."""
    rows: list[dict[str, Any]] = [
        {"tokens": [5, 1, 4], "twin": [6, 1, 4]},
        {"tokens": [7, 8, 9], "twin": [7, 9, 9]},
        {"tokens": [7, 8], "twin": [7]},
    ]
    data = data_of(tmp_path, rows, byte_tokenizer(begin=True), corrupted_column="twin")
    found = [(text.ids, text.corrupted) for text in data.parts["all"].encoded]
    assert found == [([5, 1, 4], [6, 1, 4]), ([7, 8, 9], [7, 9, 9])]
    assert data.notices[0].startswith("1 of 3 pairs are left out, as their token lengths differ")
    rows[0]["twin"] = [6, 700, 4]
    message = refused(lambda: data_of(tmp_path, rows, byte_tokenizer(), corrupted_column="twin"))
    assert "row 1: there is no token 700 among the 259" in message
    rows[0]["twin"] = [6, -1, 4]
    message = refused(lambda: data_of(tmp_path, rows, byte_tokenizer(), corrupted_column="twin"))
    assert "'twin' holds [6, -1, 4]" in message and "--data.corrupted_column" in message
    data = data_of(tmp_path, [{"tokens": [5, 1, 4], "corrupted": "abc"}], byte_tokenizer())
    assert shown(byte_tokenizer(), data.parts["all"].encoded[0].corrupted or []) == "abc"


def test_a_completion_of_tokens_is_refused(tmp_path: Path) -> None:
    rows = [{"tokens": [5, 1, 4], "prompt": "a", "completion": "b"}]
    tokens = {"text_column": "tokens", "completion_column": "completion"}
    message = refused(lambda: data_of(tmp_path, rows, byte_tokenizer(), **tokens))
    assert "'tokens' holds token ids, which the completion in 'completion' cannot follow" in message
    assert "--data.text_column" in message
    data = data_of(tmp_path, rows, byte_tokenizer())
    assert shown(byte_tokenizer(), data.parts["all"].ids[0]) == "ab"


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_the_first_text_is_shown_with_its_scored_positions_and_answers(tmp_path: Path) -> None:
    rows = [{"clean": "the dog\nab", "corrupted": "the cat\nab", "answer": " x", "wrong_answer": ["y", "z"]}]
    data = data_of(tmp_path, rows, byte_tokenizer(), positions="last")
    assert data.preview == (
        r"First text in tokens, the next token is scored after those in [ ]: t|h|e| |d|o|g|\n|a|[b]"
        "\nIts right answers: ' '; wrong answers: 'y', 'z'"
    )
    data = data_of(tmp_path, [{"text": "abcdefgh" * 10}], byte_tokenizer())
    assert data.preview.startswith(
        "First text in tokens, every next token is scored: a|b|c|d|e|f|g|h|... 48 more ...|a|b"
    )
