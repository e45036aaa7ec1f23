"""From masks of single texts to the density study, through the command line."""

# pyright: reportGeneralTypeIssues=false
# (by pandas' own annotations a comparison may be anything)

import json
import math
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import torch
from studies import resample_little
from wandb_file import OfflineRun

import masklearn as ml
from masklearn import evaluation
from masklearn.cli import evaluate, train
from masklearn.cli.study_banks import seconds_of_learning
from masklearn.data import Batch
from masklearn.evaluation.metrics import DistributionPair, TextMetrics, unigram
from masklearn.masking import MaskedLM
from masklearn.report.style import RC_PARAMS
from masklearn.tiny import language, tasks

QUICK = ["--model.scope", "input", "--model.steps", "3", "--model.polish", "0", "--trainer.logger", "false"]
SIZES = ["--model.sizes", "[1, 3, 9, 20, 35]"]


@dataclass
class FinishedStudy:
    """Two runs and their study, in a folder."""

    folder: Path
    output: str

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / "study" / "tables" / f"{name}.csv")


def learn(folder: Path, *flags: str) -> str:
    """Train in a folder; the mask file."""
    assert train([*QUICK, *SIZES, *flags, "--run.dir", str(folder)]) == 0
    return str(folder / "mask.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """A bank of several texts and one of every position of a text, and their study, as a user makes it."""
    folder = tmp_path_factory.mktemp("studies")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])
        resample_little(patch)
        patch.setitem(RC_PARAMS, "pdf.fonttype", 3)  # TrueType takes a third of the time
        patch.setattr("masklearn.cli.drawing.can_draw", lambda: False)  # the two runs draw nothing
        masks = [
            learn(folder / "one", "--data.positions", "random", "--data.limit", "8"),
            learn(folder / "words", "--data.positions", "each", "--data.limit", "1"),
        ]
        capture = pytest.MonkeyPatch()
        lines: list[str] = []
        capture.setattr("builtins.print", lambda *args, **_: lines.append(" ".join(map(str, args))))
        code = evaluate([*(flag for mask in masks for flag in ("--mask", mask)), "--out", str(folder / "study")])
        capture.undo()
    assert code == 0, lines
    return FinishedStudy(folder, "\n".join(lines))


def test_a_study_writes_page_figures_metrics_and_tables(finished: FinishedStudy) -> None:
    study = finished.folder / "study"
    assert (study / "report.html").stat().st_size > 100_000
    assert {path.suffix for path in (study / "figures").iterdir()} == {".png", ".pdf"}
    assert len(json.loads((study / "metrics.json").read_text())) == 2
    table = pd.read_parquet(study / "tables" / "inputs_by_size.parquet")
    assert set(table["kind"]) == {"learned", "random", "random-matched", "norm", "inverse"}
    assert len(table[table["bank"] == "one"]) == 5 * 5 * 8
    assert f"{study / 'report.html'}" in finished.output


def test_the_studys_means_are_those_of_the_evaluation(finished: FinishedStudy) -> None:
    """With one scored position in every input, the mean over inputs is the mean over positions."""
    sizes = json.loads((finished.folder / "study" / "metrics.json").read_text())[0]["sizes"]
    curve = finished.table("curve").set_index(["bank", "kind", "s"])
    for row in sizes:
        for name in ("kl", "tv"):
            assert curve.loc[("one", "learned", row["s"]), name] == pytest.approx(row[name])
            assert curve.loc[("one", "norm", row["s"]), name] == pytest.approx(row["controls"]["norm"][name])
            expected = row["controls"]["random"][f"{name}_mean"]
            assert curve.loc[("one", "random", row["s"]), name] == pytest.approx(expected)


def test_densities_can_be_computed_from_the_tables(finished: FinishedStudy) -> None:
    inputs = pd.read_parquet(finished.folder / "study" / "tables" / "inputs.parquet").set_index(["bank", "input"])
    by_size = pd.read_parquet(finished.folder / "study" / "tables" / "inputs_by_size.parquet")
    rows = by_size[(by_size["bank"] == "one") & (by_size["kind"] == "learned") & (by_size["input"] == "3")]
    points = [*zip(rows["fraction"].map(math.log10), rows["tv"], strict=True), (0.0, 0.0)]
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    assert inputs.loc[("one", "3"), "density_learned"] == pytest.approx(area)


def test_the_properties_of_an_input_agree_with_model_and_language(finished: FinishedStudy) -> None:
    """Context, entropies, loss and unigram surprisal of every input, recomputed."""
    inputs = pd.read_parquet(finished.folder / "study" / "tables" / "inputs.parquet")
    lm, tokenizer = ml.load_lm(), ml.load_tokenizer()
    for _, row in inputs[inputs["bank"] == "one"].iterrows():
        ids = tokenizer(row["context_text"], return_tensors="pt", return_token_type_ids=False)
        logp = lm(**ids).logits[0, -1].log_softmax(-1)
        assert row["entropy"] == pytest.approx(-(logp.exp() * logp).sum().item(), abs=1e-4)
        assert row["context"] == ids["input_ids"].shape[1]
        *_, choice = language.truth(row["context_text"].split())
        assert row["true_entropy"] == pytest.approx(language.entropy(choice))
        allowed = torch.tensor([tokenizer.get_vocab()[token] for token in choice])
        assert min(abs(row["loss"] + logp[allowed])) < 1e-4  # of a token that the language allows there
        assert row["next_rarity"] > 0


def test_banks_over_different_inputs_are_compared_on_common_inputs(finished: FinishedStudy) -> None:
    pair, *others = finished.table("across").to_dict("records")
    assert [row["kind"] for row in (pair, *others)] == ["learned", "norm", "random-matched"]
    assert pair["same_model"] and pair["n"] < 4
    assert "shared): one has 8 inputs from the embedded mixed texts, words has" in pair["note"]
    overlap = finished.table("overlap")
    assert ((overlap["overlap"] >= 0) & (overlap["overlap"] <= 1 + 1e-9)).all()


def test_every_token_of_a_text_has_a_density(finished: FinishedStudy) -> None:
    words = finished.table("by_token")
    assert words["at"].tolist() == list(range(1, len(words) + 1))
    assert "".join(words["token"]).split() == next(tasks.texts()).split()
    assert words["density"].notna().all()


def test_the_top_tokens_of_the_full_model_are_the_models_own(finished: FinishedStudy) -> None:
    thoughts = finished.table("thoughts")
    inputs = pd.read_parquet(finished.folder / "study" / "tables" / "inputs.parquet").set_index(["bank", "input"])
    shown = thoughts[(thoughts["bank"] == "one") & (thoughts["s"] == 36)].groupby("kind").get_group("learned")
    text = inputs.loc[("one", str(shown["input"].iloc[0])), "context_text"]
    lm, tokenizer = ml.load_lm(), ml.load_tokenizer()
    ids = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    top = lm(**ids).logits[0, -1].softmax(-1).topk(6)
    assert shown["probability"].tolist() == pytest.approx(top.values.tolist(), abs=1e-5)
    assert [token.strip() for token in shown["token"]] == [tokenizer.decode([i]).strip() for i in top.indices]


def test_a_study_is_logged_to_wandb(finished: FinishedStudy) -> None:
    (folder,) = (finished.folder / "study" / "wandb").glob("offline-run-*")
    run = OfflineRun.read(folder)
    for name in ("curve", "findings", "relations", "inputs"):
        (path,) = run.column(f"study/{name}/path")
        table = json.loads((run.files / path).read_text())
        assert len(table["data"]) > 0
    (picture,) = run.column("figures/one-curve-tv/path")
    assert (run.files / picture).read_bytes().startswith(b"\x89PNG")
    assert run.summary["finding/two phases/one"] in ("holds", "does not hold", "not known")
    assert run.config["mask"] and run.config["seed"] == 0


# --- positions --------------------------------------------------------------------------------------------------------


def positions(kind: str, **settings: object) -> ml.MaskData:
    data = ml.MaskData(positions=kind, limit=20, scope="input", **settings)
    data.prepare_data()
    data.setup()
    return data


def test_a_random_position_is_one_of_its_text_and_the_next_token_is_kept() -> None:
    whole, cut = positions("all").parts["all"], positions("random")
    texts = cut.parts["all"]
    lengths = set()
    for i in range(20):
        n = len(texts.ids[i])
        assert texts.ids[i] == whole.ids[i][:n] and 3 <= n <= len(whole.ids[i])
        (scored,) = cut.collate([texts[i]]).scored.tolist()
        assert scored == [False] * (n - 2) + [True, False]
        lengths.add(n)
    assert len(lengths) > 5
    assert positions("random").parts["all"].ids == texts.ids
    assert positions("random", seed=1).parts["all"].ids != texts.ids


def test_each_position_of_a_text_is_an_input() -> None:
    whole, cut = positions("all").parts["all"], positions("each").parts["all"]
    first_text = [(name, ids) for name, ids in zip(cut.names, cut.ids, strict=True) if name.startswith("0:")]
    assert first_text == [(f"0:{at}", whole.ids[0][: at + 1]) for at in range(1, len(whole.ids[0]))]
    assert len(set(cut.names)) == len(cut.names)


def test_inputs_of_one_text_are_never_split() -> None:
    data = ml.MaskData(positions="each", limit=30)
    data.prepare_data()
    data.setup()
    splits = ("train", "validation", "test")
    train, validation, test = ({name.split(":")[0] for name in data.parts[split].names} for split in splits)
    assert not train & test and not train & validation and not validation & test


# --- metrics of every text --------------------------------------------------------------------------------------------


def test_the_unigram_is_the_smoothed_share_of_counted_tokens() -> None:
    """Of two distinct tokens, half a count goes to each of four; a token outside the vocabulary is ignored."""
    probabilities = unigram({1: 3, 2: 1, 9: 5}, 4).exp()
    assert probabilities.tolist() == pytest.approx([0.5 / 6, 3.5 / 6, 1.5 / 6, 0.5 / 6])
    assert unigram({}, 4).exp().tolist() == pytest.approx([0.25] * 4)
    large = unigram(dict.fromkeys(range(1000), 2), 50_000).exp()
    assert large[:1000].sum().item() == pytest.approx(2 / 3 + 1000 / 3 / 50_000, rel=1e-4)  # half a count gives 0.09


def test_distances_from_the_unigram_match_values_worked_out_by_hand() -> None:
    """Over a unigram of 2/3 and 1/3: subgraphs that put 3/4 on the rarer token, and at the next position on the other.

    TV from the unigram is 5/12 and 1/12; the top token has a third, then two thirds, of the unigram.
    """
    counts = {0: 3, 1: 1}  # with half a token a distinct one left to the uniform: (3 + 1) / 6
    full = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
    masked = torch.tensor([[[0.25, 0.75], [0.75, 0.25]]]).log()
    meter, zeros = TextMetrics(1, 2, counts), torch.zeros(2, dtype=torch.long)
    meter.update(DistributionPair(full, masked), zeros, torch.tensor([0, 1]), zeros)
    found = meter.compute()
    assert found["unigram_tv"][0].tolist() == pytest.approx([5 / 12, 1 / 12])
    assert found["top_rarity"][0].tolist() == pytest.approx([math.log(3), math.log(1.5)])
    kl = [2 / 3 * math.log(2 / 3 / q) + 1 / 3 * math.log(1 / 3 / (1 - q)) for q in (0.25, 0.75)]
    assert found["unigram_kl"][0].tolist() == pytest.approx(kl)


def test_means_over_texts_weighted_by_positions_are_the_means_over_positions(
    masked_lm: MaskedLM, tokens: torch.Tensor
) -> None:
    """For any masks."""
    scored = torch.ones_like(tokens, dtype=torch.bool)
    scored[1, 3:] = False
    text_index = torch.tensor([1, 0])
    batch = Batch(tokens, torch.ones_like(scored), scored, text_index, torch.zeros(2, dtype=torch.long))
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(11, 1, masked_lm.graph.n_nodes, generator=generator) > 0.5
    meter = TextMetrics(11, 2, {3: 1})
    rows, _ = evaluation.measure(masked_lm, masks, [batch], meter)
    by_text, weight = meter.compute(), torch.tensor([3, tokens.shape[1]]) / (3 + tokens.shape[1])
    for name in ("kl", "tv"):
        mean = (by_text[name] * weight).sum(-1)
        assert mean.tolist() == pytest.approx([row[name] for row in rows], rel=1e-5)
    loss_weight = torch.tensor([3, tokens.shape[1] - 1]) / (2 + tokens.shape[1])  # no token follows the last position
    assert (by_text["loss"] * loss_weight).sum().item() == pytest.approx(rows[0]["full_cross_entropy"], rel=1e-5)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "expected"), [('{"seconds": 3}', {"learning": 3.0}), ("[{}]", {}), ("{", {}), (None, {})]
)
def test_the_seconds_of_learning_are_read_from_the_runs_metrics(
    results: str | None, expected: dict[str, float], tmp_path: Path
) -> None:
    if results is not None:
        (tmp_path / "metrics.json").write_text(results)
    assert seconds_of_learning(tmp_path / "mask.safetensors") == expected


def test_a_study_of_one_input_and_two_sizes_notes_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    flags = ["--data.limit", "1", "--data.positions", "last", "--model.sizes", "[2, 9]"]
    assert train([*QUICK, *flags, "--run.dir", str(tmp_path / "one")]) == 0
    out = tmp_path / "study"
    assert evaluate(["--mask", str(tmp_path / "one/mask.safetensors"), "--out", str(out), "--track", "false"]) == 0
    output = capsys.readouterr().out
    assert "has 2 sizes (2, 9), and densities and phases need 3: no density" in output
    assert "a single input" in output
    assert "no token follows a scored position; use --data.positions random" in output
    assert ">nan<" not in (out / "report.html").read_text().lower()
    assert not (out / "wandb").exists()


def test_without_matplotlib_a_study_writes_tables_alone(
    finished: FinishedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("masklearn.cli.drawing.find_spec", lambda name: None)
    mask = str(finished.folder / "one" / "mask.safetensors")
    assert evaluate(["--mask", mask, "--out", str(tmp_path / "out"), "--track", "false"]) == 0
    assert "No figures drawn: they need matplotlib" in capsys.readouterr().out
    assert (tmp_path / "out" / "tables" / "curve.csv").is_file()
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_study_is_not_overwritten(finished: FinishedStudy, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished.folder / "study" / "report.html").read_bytes()
    mask = str(finished.folder / "one" / "mask.safetensors")
    assert evaluate(["--mask", mask, "--out", str(finished.folder / "study")]) == 2
    assert "already exists and is kept. Choose another --out" in capsys.readouterr().err
    assert (finished.folder / "study" / "report.html").read_bytes() == before
