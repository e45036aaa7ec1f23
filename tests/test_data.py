import json
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st
from text_files import TEXTS, write

import masklearn as ml
from masklearn.data import BlockPlan
from masklearn.data.batching import SplitDataset, StepSampler
from masklearn.data.encoded import Encoded
from masklearn.data.splits import Groups
from masklearn.data.texts import Text
from masklearn.tiny import tasks


def test_a_batch_by_hand(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", ["dog cat", "the dog runs .", "a"])
    vocabulary = ml.load_tokenizer().get_vocab()
    start, dog, cat, the, runs, stop = (vocabulary[token] for token in ("<s>", "dog", "cat", "the", "runs", "."))
    for positions, scored in {
        "all": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]],
        "last": [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]],
    }.items():
        data = ml.MaskData(path=str(path), positions=positions, batch_size=2)  # pyright: ignore[reportArgumentType]
        data.setup()
        batch = next(iter(data.loader("all")))
        assert batch.input_ids.tolist() == [[start, dog, cat, 0, 0], [start, the, dog, runs, stop]]
        assert batch.real.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
        assert batch.scored.int().tolist() == scored
        assert batch.text_index.tolist() == [0, 1]


def split(texts: list[str], values: list[str] | None = None) -> dict[str, list[int]]:
    """Split texts, in groups by their values if there are any."""
    rows = [Text(i, text, value) for i, (text, value) in enumerate(zip(texts, values or texts, strict=True))]
    return Groups.of_scope("column:c" if values else "dataset", rows, len(texts)).split(texts)


def test_masks_are_selected_on_validation_texts_and_training_texts_where_these_are_few() -> None:
    groups = Groups(("a", "b"), [0, 0, 0, 0, 1, 1, 1, 1, 1], held_out=True)
    splits = {"train": [0, 1, 3, 5, 7], "validation": [2, 4, 8], "test": [6]}
    assert groups.selection(splits, 1) == [2, 4, 8]
    assert groups.selection(splits, 2) == [0, 2, 4, 8]
    assert groups.selection(splits, 9) == [0, 1, 2, 3, 4, 5, 7, 8]
    sorted_file = Groups(("a",), [0] * 12, held_out=True)
    assert sorted_file.selection({"train": [*range(10)], "validation": [10], "test": [11]}, 3) == [0, 5, 10]
    one_text_each = Groups(("a", "b"), [0, 1], held_out=False)
    assert one_text_each.selection({"train": [0, 1], "validation": [0, 1], "test": [0, 1]}, 9) == [0, 1]


@given(st.lists(st.text(), min_size=3), st.randoms())
def test_a_split_depends_on_content_alone(texts: list[str], rng) -> None:
    splits = split(texts)
    assert sorted(i for indices in splits.values() for i in indices) == list(range(len(texts)))
    split_of = {texts[i]: name for name, indices in splits.items() for i in indices}
    assert all(split_of[texts[i]] == name for name, indices in splits.items() for i in indices)  # equal texts together
    shuffled = texts * 2
    rng.shuffle(shuffled)
    assert {shuffled[i]: name for name, indices in split(shuffled).items() for i in indices} == split_of


@given(st.lists(st.tuples(st.text(max_size=2), st.sampled_from("abc")), min_size=9), st.randoms())
def test_equal_texts_of_different_groups_are_in_the_same_split(rows: list[tuple[str, str]], rng) -> None:
    """Otherwise one group would be tested on texts that another is trained on. Order changes nothing here either."""
    texts, values = [text for text, _ in rows], [value for _, value in rows] + ["d", "d"]
    texts += ["twice", "twice"]  # a repeated value: otherwise every text could be a group of its own
    splits = split(texts, values)
    split_of = {texts[i]: name for name, indices in splits.items() for i in indices}
    assert all(split_of[texts[i]] == name for name, indices in splits.items() for i in indices)
    order = rng.sample(range(len(texts)), len(texts))
    shuffled = split([texts[i] for i in order], [values[i] for i in order])
    assert {texts[order[i]]: name for name, indices in shuffled.items() for i in indices} == split_of


def sampler(lengths: list[int], batch_size: int, steps: int, seed: int = 0, first: int = 0) -> StepSampler:
    """All texts of one group."""
    return StepSampler([range(len(lengths))], lengths, BlockPlan([[0]], steps, batch_size), seed, first)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 5),
    first=st.integers(0, 20),
)
def test_a_step_sees_the_same_inputs_wherever_the_run_resumed(
    lengths: list[int], batch_size: int, seed: int, first: int
) -> None:
    steps = list(sampler(lengths, batch_size, 20, seed))
    assert list(sampler(lengths, batch_size, 20, seed, first)) == steps[first:]
    assert len(steps) == len(sampler(lengths, batch_size, 20, seed, first)) == 20
    size = min(len(lengths), batch_size)
    assert all(len(batch) == size for batch in steps)
    epoch = [i for batch in steps[: len(lengths) // size] for i in batch]
    assert len(set(epoch)) == len(epoch)


def test_every_step_of_a_block_has_texts_of_all_its_groups_and_no_others() -> None:
    members = [[0], [1, 2, 3, 4], [5, 6]]
    steps = list(StepSampler(members, [1] * 7, BlockPlan([[0, 1], [2]], 4, batch_size=2), seed=0))
    assert len(steps) == 8
    for step in steps[:4]:
        assert step[0] == 0 and len(step) == 3 and set(step[1:]) < {1, 2, 3, 4}
    assert set(steps[0][1:]) | set(steps[1][1:]) == {1, 2, 3, 4}  # an epoch
    assert all(set(step) == {5, 6} for step in steps[4:])


def test_texts_of_similar_length_share_a_batch() -> None:
    lengths = torch.randint(1, 100, (320,), generator=torch.Generator().manual_seed(0)).tolist()
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in sampler(lengths, 16, 20))
    assert padded < 1.2 * sum(lengths)
    assert sum(max(lengths[i : i + 16]) * 16 for i in range(0, 320, 16)) > 1.7 * sum(lengths)  # in file order


def languages(path: Path, values: list[object]) -> str:
    """Write texts with a column `lang` of these values."""
    rows = [{"text": text, "lang": value} for text, value in zip(TEXTS, values, strict=False)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_scopes_by_hand(tmp_path: Path) -> None:
    path = languages(tmp_path / "texts.jsonl", ["en", "fr", 3] * 4)
    by_scope = {}
    for scope in ("dataset", "input", "column:lang"):
        data = ml.MaskData(path=path, scope=scope, batch_size=2)
        data.setup("fit")
        parts = [len(data.parts[part]) for part in ("train", "validation", "test")]
        by_scope[scope] = data.groups.names, parts, data.texts_per_group
        assert list(data.parts["all"].groups) == data.groups.of_text
    assert by_scope == {
        "dataset": (("dataset",), [10, 1, 1], 2),
        "input": (tuple(map(str, range(12))), [12, 12, 12], 1),
        "column:lang": (("en", "fr", "3"), [6, 3, 3], 2),
    }


def test_blocks_are_even_and_the_longest_texts_come_first(tmp_path: Path) -> None:
    data = ml.MaskData(path=str(write(tmp_path / "t.jsonl", [*TEXTS[:4], "dog", TEXTS[4] + " dog dog"])), scope="input")
    data.setup()
    plan = data.block_plan(groups_per_block=4, steps=10)
    assert [len(block) for block in plan.blocks] == [3, 3]
    assert plan.blocks[0][0] == 5 and plan.blocks[1][-1] == 4
    assert plan.total_steps == 20 and plan.at(13) == (1, 3)


@pytest.mark.parametrize(
    ("scope", "values", "message"),
    [
        ("column:language", ["en"] * 12, "has no column 'language'; it has text, lang. Name one with --model.scope"),
        (
            "column:lang",
            list("abcdefghijkl"),
            "one value per text, so that 12 groups .* up to 12 times .*max_groups 12",
        ),
        ("column:lang", ["en"] * 11 + [None], "row 12: 'lang' holds None, which is not a group name"),
        ("column:lang", ["en"] * 11 + [float("nan")], "row 12: 'lang' holds nan, which is not a group name"),
        ("column:lang", ["en"] * 10 + ["fr"] * 2, "group 'fr' of .* holds 2 different texts.*--model.scope input"),
        ("inputs", ["en"] * 12, "model.scope is 'inputs'; choose dataset .*, input .*, or column:NAME"),
    ],
)
def test_invalid_scopes_are_rejected(tmp_path: Path, scope: str, values: list[object], message: str) -> None:
    with pytest.raises(ml.UserError, match=message):
        ml.MaskData(path=languages(tmp_path / "texts.jsonl", values), scope=scope).setup("fit")


def test_a_column_may_give_a_group_for_every_text_when_allowed(tmp_path: Path) -> None:
    path = languages(tmp_path / "texts.jsonl", list("abcdefghijkl"))
    data = ml.MaskData(path=path, scope="column:lang", max_groups=12)
    data.setup("fit")
    assert data.groups.names == tuple("abcdefghijkl")
    assert len(data.parts["train"]) == len(data.parts["test"]) == 12  # no text is held out


@pytest.mark.parametrize(("settings", "message"), [
    ({"task": "names", "text_column": "x"}, "embedded names texts have no column 'x'"),
    ({"completion_column": "x"}, "embedded mixed texts have no column 'x'"),
    ({"task": "copy", "split": "test"}, "data.split is 'test', but the embedded copy texts have no splits"),
    ({"subset": "en"}, "data.subset is for a dataset of the hub, and texts come from the embedded mixed texts"),
    ({"path": "texts.txt", "subset": "en"}, "data.subset is for a dataset of the hub, and texts come from texts.txt"),
    ({"texts": ["a dog"], "subset": "en"}, "data.subset is for a dataset of the hub, and texts come from a list of 1"),
])  # fmt: skip
def test_settings_that_a_source_cannot_follow_are_refused(settings: dict, message: str) -> None:
    assert message in refused(lambda: ml.MaskData(**settings))


def test_the_embedded_texts_have_no_columns_to_group_by() -> None:
    with pytest.raises(ml.UserError, match="the embedded mixed texts have no column 'task'. Give texts with columns"):
        ml.MaskData(scope="column:task").setup()


def test_texts_are_truncated_and_limited() -> None:
    data = ml.MaskData(task="mixed", max_length=5, limit=20)
    data.setup()
    assert len(data.parts["all"]) == 20
    assert max(map(len, data.parts["all"].ids)) == 5


def test_short_texts_are_left_out_with_skip_short(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", ["", *TEXTS, ""])
    with pytest.raises(
        ml.UserError, match=r"2 of 14 texts are shorter than two tokens, the first is text 1.*skip_short"
    ):
        ml.MaskData(path=str(path)).setup()
    data = ml.MaskData(path=str(path), skip_short=True)
    data.setup()
    assert len(data.parts["all"]) == len(TEXTS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "data.batch_size is 0; it must be at least 1"),
        ({"max_length": 1}, "data.max_length is 1"),
        ({"limit": 0}, "data.limit is 0"),
        ({"path": "x.txt", "task": "names"}, "both given"),
        ({"lm": "gpt2"}, "no text is given"),
    ],
)
def test_invalid_settings_are_rejected(settings: dict, message: str) -> None:
    with pytest.raises(ml.UserError, match=message):
        ml.MaskData(**settings)


def test_a_limited_number_of_texts_is_spread_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    rows = [{"text": text, "group": "ab"[i % 4 == 0]} for i, text in enumerate(islice(tasks.texts(0), 200))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ml.MaskData(path=str(path), scope="column:group")
    data.setup()
    for most in (1, 7, 40, None):
        indices = torch.cat([batch.text_index for batch in data.loader("train", max_texts=most)])
        for members in data.train_indices_by_group:
            taken = [i for i, index in enumerate(members) if index in indices]
            assert len(taken) == min(most or len(members), len(members))
            gaps = {after - before for before, after in pairwise(taken)}
            assert taken[0] == 0 and (len(taken) == 1 or max(gaps) - min(gaps) <= 1)


def test_texts_truncated_to_the_same_tokens_are_in_the_same_split() -> None:
    data = ml.MaskData(task="mixed", limit=500, max_length=6)
    data.setup()
    held_out = {tuple(row) for part in ("validation", "test") for row in data.parts[part].ids}
    assert not held_out & {tuple(row) for row in data.parts["train"].ids}


def test_pad_tokens_of_the_text_itself_count(tmp_path: Path) -> None:
    """Padding is determined by length, not by token: many tokenizers pad with a token that also occurs in texts."""
    data = ml.MaskData(path=str(write(tmp_path / "texts.jsonl", ["dog <pad> cat", "dog", "cat cat"])))
    data.setup()
    batch = next(iter(data.loader("all")))
    assert torch.equal(batch.real.sum(1), torch.tensor([4, 2, 3]))


def test_a_loader_gives_texts_of_the_requested_groups() -> None:
    data = ml.MaskData(task="names", limit=12, scope="input")
    data.setup()
    data.parts["all"] = SplitDataset([Encoded(0, "", [1, 2])] * 7, [0, 1, 0, 2, 1, 0, 1])
    indices = [[int(i) for batch in data.loader("all", groups, 2, most) for i in batch.text_index]
              for groups, most in ((None, None), (None, 2), ({0, 2}, None), ([1], 1))]  # fmt: skip
    assert indices == [list(range(7)), [0, 1, 2, 3, 4], [0, 2, 3, 5], [1]]


def test_a_loader_by_length_gives_the_same_texts_with_less_padding() -> None:
    data = ml.MaskData(limit=40, positions="random", scope="input", batch_size=8)
    data.setup()
    in_file_order, sorted_ = (list(data.loader("all", by_length=by_length)) for by_length in (False, True))
    indices = [index for batch in sorted_ for index in batch.text_index.tolist()]
    assert sorted(indices) == list(range(40)) and indices != list(range(40))
    lengths = [n for batch in sorted_ for n in batch.real.sum(1).tolist()]
    assert lengths == sorted(lengths) == [len(data.parts["all"].ids[index]) for index in indices]
    assert sum(batch.real.numel() for batch in sorted_) < 0.7 * sum(batch.real.numel() for batch in in_file_order)


def test_held_out_texts_are_capped_and_the_cap_is_said(tmp_path: Path) -> None:
    rows = [{"text": text, "group": "ab"[i % 4 == 0]} for i, text in enumerate(islice(tasks.texts(0), 300))]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole, capped = (ml.MaskData(path=path, scope="column:group", **s) for s in ({}, {"max_test": 10}))
    whole.setup()
    capped.setup()
    assert capped.parts["train"].ids == whole.parts["train"].ids
    for name in ("validation", "test"):
        assert len(whole.parts[name]) > 20
        assert len(capped.parts[name]) == 10
        assert [*capped.parts[name].groups].count(0) == 5
        assert {*map(tuple, capped.parts[name].ids)} <= {*map(tuple, whole.parts[name].ids)}
    assert not whole.notices
    n = len(whole.parts["validation"]) + len(whole.parts["test"])
    assert capped.notices[-1].startswith(f"{n - 20} of {n} held-out inputs are not used")
    alone = ml.MaskData(path=path, scope="input", max_test=10)
    alone.setup()
    assert len(alone.parts["test"]) == 300
    with pytest.raises(ml.UserError, match="data.max_test is 0"):
        ml.MaskData(max_test=0)
