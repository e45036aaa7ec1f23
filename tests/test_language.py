"""The embedded language, its tasks and its model."""

import math
import random
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import masklearn as ml
from masklearn.tiny import MODEL_FOLDER, language, tasks
from masklearn.tiny.train import build_tokenizer, measure


def test_the_entropy_of_a_choice_among_eight_is_log_8() -> None:
    choices = list(language.truth(["pick", "eight", "of"]))
    assert language.entropy(choices[3]) == pytest.approx(math.log(8))


def test_the_indirect_object_is_the_name_that_does_not_give() -> None:
    *_, answer = language.truth("mary and john went to the park . john gave a book to".split())
    assert answer == {"mary": 1.0}


def test_a_token_outside_the_language_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="token 1, 'or'"):
        list(language.truth(["mary", "or", "john"]))


@given(st.integers(0, 10**9))
def test_the_true_distributions_sum_to_1_and_include_every_token_written(seed: int) -> None:
    tokens = language.write(random.Random(seed))
    choices = list(language.truth(tokens))
    assert len(choices) == len(tokens)
    assert tokens[-1] == language.END
    for token, choice in zip(tokens, choices, strict=True):
        assert sum(choice.values()) == pytest.approx(1)
        assert choice[token] > 0


def test_tokens_are_drawn_from_the_true_distributions() -> None:
    """Then the ratio of code length to entropy converges to 1."""
    rng = random.Random(0)
    surprisal = entropy = 0.0
    for _ in range(3000):
        tokens = language.write(rng)
        for token, choice in zip(tokens, language.truth(tokens), strict=True):
            surprisal -= math.log(choice[token])
            entropy += language.entropy(choice)
    assert surprisal / entropy == pytest.approx(1, abs=0.01)


def test_every_word_is_one_token() -> None:
    tokenizer, words = build_tokenizer(), language.vocabulary()
    rng = random.Random(0)
    for _ in range(50):
        tokens = language.write(rng)
        ids = tokenizer(" ".join(tokens))["input_ids"]
        assert [words[i] for i in ids] == [language.BEGIN, *tokens]


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from(list(tasks.TASKS)))
def test_a_corrupted_twin_has_the_same_length_and_other_answers(seed: int, task: str) -> None:
    for prompt in islice(tasks.prompts(task, seed), 5):
        clean, corrupted = prompt.text.split(), prompt.corrupted.split()
        assert len(clean) == len(corrupted)
        assert sum(a != b for a, b in zip(clean, corrupted, strict=True)) in (1, 2)
        assert prompt.answers and prompt.wrong_answers
        assert not set(prompt.answers) & set(prompt.wrong_answers)
        (*_, truth) = language.truth(clean)
        assert set(prompt.answers) == set(truth)


def test_equal_seeds_give_equal_prompts() -> None:
    for task in tasks.TASKS:
        first, again, other = ([*islice(tasks.prompts(task, seed), 20)] for seed in (3, 3, 4))
        assert first == again != other


def test_the_embedded_model_has_learned_its_language() -> None:
    """Measured on texts and prompts that were not used in training or for the model card."""
    report = measure(ml.load_lm(), ml.load_tokenizer(), n=200, seed=123_456_789)
    assert 0.98 < report.loss / report.entropy < 1.05
    assert set(report.solved) == {"names", "agreement", "years", "copy"}
    assert min(report.solved.values()) >= 0.95


def test_the_embedded_model_is_small() -> None:
    assert sum(file.stat().st_size for file in MODEL_FOLDER.iterdir()) < 4_000_000
