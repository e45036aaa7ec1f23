"""The study beyond the next token: prompts and answers, completions, altered texts, and along a generation."""

# pyright: reportGeneralTypeIssues=false
# (by pandas' own annotations a comparison may be anything)

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import refused
from studies import falling, measured, resample_little

import masklearn as ml
from masklearn.cli import evaluate, train
from masklearn.cli.generate import generate, run_generation
from masklearn.data.text_tokenizer import TextTokenizer
from masklearn.density import Study
from masklearn.density.answers import answer_densities
from masklearn.tiny import tasks

QUIET = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
QUICK = ["--model.scope", "input", "--model.steps", "2", "--model.polish", "0", "--model.sizes", "[1, 9, 35]", *QUIET]


@pytest.fixture(autouse=True)
def _own_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning warns if the process has arguments of its own."""
    monkeypatch.setattr(sys, "argv", ["train.py"])


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> list[Study]:
    """The studies that commands make, in place of drawings; with few resamples."""
    made: list[Study] = []

    def keep(out: Path, study: Study, config: object) -> tuple[list[Path], Path]:
        made.append(study)
        return [], out

    monkeypatch.setattr("masklearn.cli.study_command.draw_study", keep)
    monkeypatch.setattr("masklearn.cli.drawing.can_draw", lambda: False)
    resample_little(monkeypatch)
    return made


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prompts of the embedded language and what the embedded model makes of them."""
    folder = tmp_path_factory.mktemp("generated")
    prompts = [" ".join(text.split()[:5]) for text, _ in zip(tasks.texts(5), range(3), strict=False)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"text": prompt}) + "\n" for prompt in prompts))
    generate(str(folder / "prompts.jsonl"), str(folder / "generated.jsonl"), tokens=4)
    return folder / "generated.jsonl"


def study_of(file: Path, folder: Path, studies: list[Study], positions: str, *flags: str) -> Study:
    """The study of a file's texts, through the command line."""
    data = ["--data.path", str(file), "--data.positions", positions]
    assert train([*QUICK, *data, "--run.dir", str(folder / "run")]) == 0
    out = ["--out", str(folder / "study"), "--track", "false", "--study", "true"]
    assert evaluate(["--mask", str(folder / "run" / "mask.safetensors"), *out, *flags]) == 0
    return studies[-1]


def test_a_file_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("masklearn.cli.generate.load_lm", None)
    message = refused(lambda: generate(str(generated.with_name("prompts.jsonl")), str(tmp_path / "file" / "x.jsonl")))
    assert "cannot write" in message and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_generated_texts_are_the_models_own_greedy_tokens(generated: Path) -> None:
    lm, tokenizer = ml.load_lm(), ml.load_tokenizer()
    reader = TextTokenizer(tokenizer, "", "")
    for row in map(json.loads, generated.read_text().splitlines()):
        (ids,) = reader.ids([row["prompt"]])
        (new,) = reader.continuations([row["prompt"]], [row["completion"]], [ids])
        assert 1 <= len(new) <= 4
        for token in new:
            assert lm(input_ids=torch.tensor([ids])).logits[0, -1].argmax() == token
            ids = [*ids, token]


def test_a_generation_has_a_density_at_every_token_of_prompt_and_answer(
    generated: Path, tmp_path: Path, studies: list[Study]
) -> None:
    tables = study_of(generated, tmp_path, studies, "each").tables
    tokenizer = ml.load_tokenizer()
    rows = [json.loads(line) for line in generated.read_text().splitlines()]
    for text, tokens in tables["by_token"].groupby("text"):
        for part, name in (("prompt", "prompt"), ("answer", "completion")):
            found = "".join(tokens[tokens["part"] == part]["token"])
            assert found.split() == rows[text][name].split(), (part, tokenizer)
        assert tokens["normalized_density"].between(0, 1).all()
    (row,) = tables["prompt_answer"].query("kind == 'learned'").to_dict("records")
    by_part = tables["by_token"].groupby(["text", "part"])["normalized_density"].mean().unstack()
    assert row["texts"] == len(rows)
    assert row["difference"] == pytest.approx((by_part["answer"] - by_part["prompt"]).mean())
    assert "answer" in set(tables["relations"]["with"])


def test_a_completion_is_one_input_with_all_of_its_tokens(
    generated: Path, tmp_path: Path, studies: list[Study]
) -> None:
    """The full model's loss is the mean over the tokens of the completion."""
    study = study_of(generated, tmp_path, studies, "completion")
    lm, reader = ml.load_lm(), TextTokenizer(ml.load_tokenizer(), "", "")
    rows = [json.loads(line) for line in generated.read_text().splitlines()]
    inputs = study.tables["inputs"]
    assert len(inputs) == len(rows)
    for loss, row in zip(inputs["loss"], rows, strict=True):
        (ids,) = reader.ids([row["prompt"]])
        (new,) = reader.continuations([row["prompt"]], [row["completion"]], [ids])
        logp = lm(input_ids=torch.tensor([ids + new])).logits[0].log_softmax(-1)
        expected = -sum(logp[len(ids) - 1 + i, token].item() for i, token in enumerate(new)) / len(new)
        assert loss == pytest.approx(expected, abs=1e-4)


def test_masks_of_clean_texts_are_measured_on_corrupted_ones(tmp_path: Path, studies: list[Study]) -> None:
    """The TV of the altered bank is that of the clean masks on the corrupted texts, recomputed. Two texts are equal."""
    prompts = [prompt for prompt, _ in zip(tasks.prompts("names", 1), range(3), strict=False)]
    pairs = [{"clean": prompt.text, "corrupted": prompt.corrupted} for prompt in prompts]
    pairs += pairs[:1]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    study = study_of(file, tmp_path, studies, "last", "--altered_column", "corrupted")
    clean, altered = study.measurements
    assert clean.resampled == "text" and clean.texts.tolist() == altered.texts.tolist() == ["0", "1", "2", "0"]
    assert altered.name == f"{clean.name} on corrupted"
    mask, lm, tokenizer = ml.Mask.load(tmp_path / "run"), ml.load_lm(), ml.load_tokenizer()
    for i, pair in enumerate(pairs):
        tokens = tokenizer(pair["corrupted"], return_tensors="pt", return_token_type_ids=False)
        full = lm(**tokens).logits[0, -1].softmax(-1)
        with ml.gated(lm, mask.mask[i, 1]):
            masked = lm(**tokens).logits[0, -1].softmax(-1)
        assert altered.values("learned", "tv")[1, i] == pytest.approx((full - masked).abs().sum().item() / 2, abs=1e-5)


def test_the_table_of_banks_has_the_ablation_of_the_evaluation_and_that_of_learning(
    tmp_path: Path, studies: list[Study]
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"{text}\n" for text, _ in zip(tasks.texts(), range(2), strict=False)))
    banks = study_of(file, tmp_path, studies, "last", "--ablation", "[zero, resample]").tables["banks"]
    assert banks["ablation"].tolist() == ["zero", "resample"]
    assert banks["learned under"].tolist() == ["zero", "zero"]


def test_prompt_and_answer_densities_match_values_worked_out_by_hand() -> None:
    """TV 0.8 at every size of the prompt's token and 0.4 of the answer's one or two, in ten texts."""
    names = [f"{text}:{at}" for text in range(10) for at in range(1, 3 + text % 2)]
    is_answer = [not name.endswith(":1") for name in names]
    tv = [[0.4 if answer else 0.8] * 4 for answer in is_answer]
    table = answer_densities(measured(tv, names=names, is_answer=is_answer), 0)
    (row,) = table[table["kind"] == "learned"].to_dict("records")
    assert row["texts"] == 10
    assert row["answer"] == pytest.approx(row["prompt"] / 2)
    for end in ("", "_low", "_high"):
        assert row[f"difference{end}"] == pytest.approx(-row["answer"])
    assert row["difference_p"] < 0.02
    assert len(answer_densities(measured(falling(4)), 0)) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--altered_column", "other"], "altered_column is for masks of single texts at fixed positions"),
    ],
)
def test_shared_masks_have_no_altered_texts(
    flags: list[str], message: str, run: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(["--mask", str(run.folder / "mask.safetensors"), *flags]) == 2
    assert message in capsys.readouterr().err


def test_generation_refuses_what_it_cannot_do(generated: Path, tmp_path: Path) -> None:
    prompts = str(generated.with_name("prompts.jsonl"))
    with pytest.raises(ml.UserError, match="already exists and is kept"):
        run_generation(["--path", prompts, "--out", str(generated)])
    with pytest.raises(ml.UserError, match="must be at least 1"):
        run_generation(["--path", prompts, "--out", str(tmp_path / "x.jsonl"), "--tokens", "0"])
    for top_p in ("-0.5", "0", "1.5"):
        with pytest.raises(ml.UserError, match="must be above 0 and at most 1"):
            run_generation(["--path", prompts, "--out", str(tmp_path / "x.jsonl"), f"--top_p={top_p}"])
    with pytest.raises(ml.UserError, match=r"exceed the \d+ that embedded reads.* --max_length 1"):
        run_generation(["--path", prompts, "--out", str(tmp_path / "x.jsonl"), "--tokens", "5000"])
    (tmp_path / "other.jsonl").write_text('{"story": "the dog"}\n')
    with pytest.raises(ml.UserError, match="it has story. Name one with --text_column"):
        run_generation(["--path", str(tmp_path / "other.jsonl"), "--out", str(tmp_path / "x.jsonl")])
