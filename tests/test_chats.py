"""How chats become tokens: the template's begin token, the answer, and the end of its turn."""

from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import BEGIN, byte_tokenizer, shown
from test_tokens import CHAT, data_of, scored_targets
from transformers import AddedToken


@pytest.mark.parametrize("begin", [True, False])
def test_a_rendered_chat_has_the_tokens_of_the_chat_template(begin: bool, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(begin=True)
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    data = data_of(tmp_path, [{"text": text}], tokenizer)
    assert data.parts["all"].ids == [expected]
    assert expected.count(BEGIN) == 1


def test_a_chat_has_no_begin_token_where_the_rule_asks_for_none(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(begin=True)
    for settings, end in (({}, ""), ({"positions": "completion"}, "</s>")):
        data = data_of(tmp_path, [{"messages": CHAT}], tokenizer, bos="never", **settings)
        assert shown(tokenizer, data.parts["all"].ids[0]) == "<user>Hi</s>\n<assistant>Yes" + end


CHATS: dict[str, dict[str, Any]] = {
    "messages": {"messages": CHAT},
    "ShareGPT": {"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]},
    "prompt and completion": {"prompt": CHAT[:1], "completion": CHAT[1:]},
    "prompt of messages": {"prompt": CHAT[:1], "completion": "Yes"},
}


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_goes_through_the_template_up_to_its_end_of_turn(name: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(begin=True)
    data = data_of(tmp_path, [CHATS[name]], tokenizer, positions="completion")
    assert shown(tokenizer, data.parts["all"].ids[0]) == "<s><user>Hi</s>\n<assistant>Yes</s>"
    assert shown(tokenizer, scored_targets(data)) == "Yes</s>"
    for positions in ("all", "last"):  # nothing follows the end of the last turn, so nothing is predicted there
        whole = data_of(tmp_path, [CHATS[name]], tokenizer, positions=positions)
        assert shown(tokenizer, whole.parts["all"].ids[0]) == "<s><user>Hi</s>\n<assistant>Yes"


def test_plain_texts_become_a_chat_on_request_and_a_question_is_left_open(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    data = data_of(tmp_path, [{"prompt": "Hi", "completion": "Yes"}], tokenizer, positions="completion", chat=True)
    assert shown(tokenizer, data.parts["all"].ids[0]) == "<s><user>Hi</s>\n<assistant>Yes</s>"
    for row, settings in (({"text": "Hi"}, {"chat": True}), ({"messages": CHAT[:1]}, {})):
        data = data_of(tmp_path, [row], tokenizer, positions="last", **settings)
        assert shown(tokenizer, data.parts["all"].ids[0]) == "<s><user>Hi</s>\n<assistant>"


def test_a_template_that_renders_an_open_question_differently_is_split_at_the_answer(tmp_path: Path) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    tokenizer = byte_tokenizer(chat=template + "{% if add_generation_prompt %}<assistant><think>{% endif %}")
    data = data_of(tmp_path, [{"messages": CHAT}], tokenizer, positions="completion")
    assert shown(tokenizer, scored_targets(data)) == "Yes"


ENDS_OF_TURN = {"Gemma": "<turn_end>\n", "Phi-3": "<turn_end>\n</s>", "ChatML": "</s>\n"}
BEFORE_ANSWER = {"nothing": "", "a channel": "<channel>final<pad>"}
"""What templates write between the role and the answer; a token's name may hold the answer."""


@pytest.mark.parametrize("before", BEFORE_ANSWER)
@pytest.mark.parametrize("end", ENDS_OF_TURN)
@pytest.mark.parametrize("answer", ["Yes", "s", "n"])
def test_nothing_is_scored_behind_the_end_of_turn(answer: str, end: str, before: str, tmp_path: Path) -> None:
    """It need not be the tokenizer's end token, nor its only special token."""
    answered = BEFORE_ANSWER[before] + "{{ m.content }}" + ENDS_OF_TURN[end]
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}</s>\n{% else %}<assistant>"
        + answered
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = byte_tokenizer(chat=template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn_end>"]})
    tokenizer.add_tokens([AddedToken("<channel>", special=True)])
    rows = [{"messages": [CHAT[0], {"role": "assistant", "content": answer}]}]
    data = data_of(tmp_path, rows, tokenizer, positions="completion")
    scored = BEFORE_ANSWER[before] + answer + ENDS_OF_TURN[end].split("\n")[0]
    assert shown(tokenizer, scored_targets(data)) == scored


def test_without_a_begin_token_a_template_that_opens_turns_with_it_stays_whole(tmp_path: Path) -> None:
    """In ChatML the first token of a turn may be the tokenizer's begin token."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m.content }}{% endfor %}"
    first, second = ({"role": role, "content": content} for role, content in (("system", "Hi"), ("user", "Yes")))
    whole = data_of(tmp_path, [{"messages": [first, second]}, {"messages": [second]}], tokenizer, bos="never")
    assert [shown(tokenizer, ids) for ids in whole.parts["all"].ids] == ["<s>Hi<s>Yes", "Yes"]
