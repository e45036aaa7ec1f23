"""MIB from its rows to a submission: by hand here, and by its own evaluator where there is a checkout of it."""

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokenizer import byte_tokenizer, saved
from conftest import ROOT, refused, tiny_gpt2, tiny_llama
from transformers import PreTrainedModel

import masklearn as ml
from masklearn import evaluation
from masklearn.cli import evaluate, export, train
from masklearn.data.readers import Row
from masklearn.export import cell_of, to_circuits
from masklearn.mask_file import ModelId
from masklearn.masking import MaskedLM
from masklearn.models import fingerprint
from masklearn.sizes import resolve_sizes
from masklearn.tiny import MODEL_FOLDER, tasks

IOI = {
    "prompt": "Ann and Bob left. Bob spoke to", "choices": ["Bob", "Ann"], "answerKey": 1,
    "metadata": {"subject": "Bob", "indirect_object": "Ann", "random_c": "Cat", "place": "park"},
    "s2_io_flip_counterfactual": {"prompt": "Ann and Bob left. Ann spoke to", "choices": ["Ann", "Bob"]},
    "random_names_counterfactual": {"prompt": "Dan and Eve left. Eve spoke to"},
}  # fmt: skip
CHOICE = {
    "prompt": "Q: A. red B. tan Answer:", "choices": {"label": ["A", "B"], "text": ["red", "tan"]}, "answerKey": 1,
    "symbol_counterfactual": {
        "prompt": "Q: X. red Y. tan Answer:", "choices": {"label": ["X", "Y"], "text": ["red", "tan"]}, "answerKey": 1,
    },
}  # fmt: skip
ADDITION = {
    "prompt": "1 + 4 = ", "label": 5, "operator": "+", "template": "{a} + {b} = ",
    "random_counterfactual": {"prompt": "2 + 5 = ", "label": 7},
}  # fmt: skip


def ioi_rows(n: int) -> list[Row]:
    """Rows of the embedded language in the form of `mib-bench/ioi`."""
    return [
        {
            "prompt": p.text,
            "metadata": {"indirect_object": p.answers[0], "subject": p.wrong_answers[0], "random_c": "anna"},
            "s2_io_flip_counterfactual": {"prompt": p.corrupted},
        }
        for p, _ in zip(tasks.prompts("names", 1), range(n), strict=False)
    ]


def write(path: Path, rows: Sequence[Row]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def byte_data(folder: Path, rows: Sequence[Row], **settings: Any) -> ml.MaskData:
    tokenizer = saved(folder / "tokenizer", byte_tokenizer())
    data = ml.MaskData(path=write(folder / "rows.jsonl", rows), tokenizer=tokenizer, positions="last", **settings)
    data.setup()
    return data


# --- rows as published ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "right", "wrong", "corrupted"), [
    (IOI, " Ann", " Bob", "Ann and Bob left. Ann spoke to"), (CHOICE, "B", "Y", "Q: X. red Y. tan Answer:"),
    (ADDITION, "5", "7", "2 + 5 = "),
], ids=["ioi", "choice", "arithmetic"])  # fmt: skip
def test_rows_of_every_task_are_read_as_published(
    row: Row, right: str, wrong: str, corrupted: str, tmp_path: Path
) -> None:
    """In the file's words; a choice has no space before it, though a word would get one."""
    (text, *_), _ = byte_data(tmp_path, [row]).source.read()
    assert (text.text, text.corrupted) == (row["prompt"], corrupted)
    assert (text.answers, text.wrong) == ((right,), (wrong,))


def test_texts_with_answers_of_unequal_length_are_left_out(tmp_path: Path) -> None:
    """In bytes: a third name of another length; two digits where arithmetic asks for one token."""
    long_name = IOI | {"metadata": IOI["metadata"] | {"random_c": "Catherine"}}
    data = byte_data(tmp_path, [IOI, long_name, IOI], bos="always")
    assert [text.row for text in data.parts["all"].encoded] == [0, 2]
    assert "1 of 3 texts are left out" in data.notices[0]
    assert data.parts["all"].encoded[0].ids[0] == data.load_tokenizer().bos_token_id
    without = ADDITION | {"random_counterfactual": None}
    data = byte_data(tmp_path, [ADDITION | {"label": 12}, ADDITION, without])
    assert [text.row for text in data.parts["all"].encoded] == [1]
    assert refused(lambda: byte_data(tmp_path, [ADDITION | {"label": 12}])).startswith(str(tmp_path))


def test_rows_that_lack_something_are_refused(tmp_path: Path) -> None:
    assert "'metadata.subject'" in refused(
        lambda: byte_data(tmp_path, [IOI | {"metadata": {"indirect_object": "Ann"}}])
    )
    assert "row 1: there is no answer" in refused(lambda: byte_data(tmp_path, [CHOICE | {"answerKey": 7}]))
    assert "no row has a text" in refused(lambda: byte_data(tmp_path, [ADDITION | {"random_counterfactual": {}}]))


# --- from rows to a submission ----------------------------------------------------------------------------------------


def test_a_run_becomes_a_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config, another split's rows, and a folder for the task and the model; a second cell goes beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    paths = [write(tmp_path / f"{split}.jsonl", rows) for split, rows in (("t", ioi_rows(24)), ("test", ioi_rows(40)))]
    flags = ["--model.lm", str(MODEL_FOLDER), "--data.path", paths[0], "--model.objective", "logit-diff"]
    small = ["--model.steps", "3", "--model.polish", "0", "--trainer.logger", "false", "--run.dir", "run"]
    assert train(["--config", str(ROOT / "configs" / "mib.yaml"), *flags, *small]) == 0
    assert evaluate(["--mask", "run", "--data.path", paths[1], "--out", "found", "--baselines", "[]"]) == 0
    areas = json.loads((tmp_path / "found" / "metrics.json").read_text())["areas"]
    assert (areas["over"], len(areas["curve"])) == ("mib", 10)
    assert areas["curve"][-1]["accuracy"] == 1  # the whole model knows the task
    assert export(["--mask", "run/mask.safetensors", "--to", "mib", "--cell", "ioi_tiny", "submission"]) == 0
    assert export(["--mask", "run/mask.safetensors", "--to", "mib", "--cell", "mcqa_tiny", "submission"]) == 0
    assert export(["--mask", "run/mask.safetensors", "--to", "mib", "--cell", "ioi_tiny", "submission"]) == 2
    files = [str(path.relative_to(tmp_path / "submission")) for path in (tmp_path / "submission").rglob("*.json")]
    assert sorted(files) == ["ioi_tiny/importances.json", "mcqa_tiny/importances.json"]


def bank(lm: PreTrainedModel, sizes: Sequence[int], nested: bool = True, series: str = "mib") -> ml.Mask:
    """Random masks; those of different sizes lie inside each other if they are nested."""
    graph, generator = ml.NodeGraph.of(lm), torch.Generator().manual_seed(3)
    order = [torch.rand(graph.n_nodes, generator=generator).argsort().argsort() for _ in sizes]
    masks = torch.stack([(order[0] if nested else rank) < size for rank, size in zip(order, sizes, strict=True)])
    scores, model = torch.zeros(1, 1, graph.n_nodes), ModelId("gpt2", None, fingerprint(lm))
    config = {"data": {"dataset": "mib-bench/ioi"}, "model": {"sizes": series}}
    return ml.Mask(
        masks[None], scores, torch.tensor(sizes), graph, model, ablation=ml.Ablation("resample"), config=config
    )


def test_circuits_that_do_not_nest_fill_the_sizes_of_mib(tmp_path: Path) -> None:
    """Nine files, as MIB places circuits by their number: those of less than one node are empty."""
    lm = ml.load_lm()
    mask = bank(lm, resolve_sizes("mib", 36), nested=False)
    files = to_circuits(mask, lm.config, tmp_path / "out", "mib")
    opened = [
        sum(node["in_graph"] for name, node in json.loads(file.read_text())["nodes"].items() if name[0] in "am")
        for file in sorted(files)
    ]
    assert opened == [0, 0, 0, 0, 0, 1, 3, 7, 18]


def test_the_embedding_is_scored_if_asked(tmp_path: Path) -> None:
    lm = ml.load_lm()
    for series, score in (("mib", None), ("mib-input", 4.0)):
        mask = bank(lm, resolve_sizes(series, 36), series=series)
        (file,) = to_circuits(mask, lm.config, tmp_path / series, "mib")
        content = json.loads(file.read_text())["nodes"]
        assert content["input"].get("score") == score
        assert max(node.get("score", 0) for name, node in content.items() if name != "input") < len(mask.sizes) + 1


def test_the_cell_follows_from_dataset_and_model() -> None:
    mask = bank(ml.load_lm(), [3])
    assert cell_of(mask) == "ioi_gpt2"
    assert cell_of(ml.Mask(mask.mask, mask.scores, mask.sizes, mask.graph, mask.model)) is None


# --- their evaluator --------------------------------------------------------------------------------------------------


def own_scores(lm: PreTrainedModel, mask: ml.Mask, rows: Sequence[Row]) -> dict[str, Any]:
    """CPR, CMD and the curve, as `evaluate.py` gives them."""
    data = ml.MaskData(texts=rows, positions="last", bos="always", tokenizer=str(MODEL_FOLDER))
    data.setup()
    masked_lm = MaskedLM(lm, ml.Ablation("resample"))
    found, by_group = evaluation.evaluate(masked_lm, mask, data.loader("all"), baselines=())
    return evaluation.describe(mask, found, by_group, {})["areas"]


def test_the_empty_circuit_is_the_corrupted_run() -> None:
    """Pairs that end in different tokens: without nodes the embedding alone still reads the clean one."""
    lm = in_vocabulary(tiny_llama)
    rows = [row | {"s2_io_flip_counterfactual": {"prompt": row["s2_io_flip_counterfactual"]["prompt"][:-2] + "the"}}
            for row in ioi_rows(6)]  # fmt: skip
    mask, vocabulary = bank(lm, [9]), ml.load_tokenizer().get_vocab()
    found = own_scores(lm, mask, rows)
    differences = []
    for clean, corrupted in [(row["prompt"], row["s2_io_flip_counterfactual"]["prompt"]) for row in rows]:
        ids, other = (torch.tensor([[1, *(vocabulary[w] for w in text.split())]]) for text in (clean, corrupted))
        row = rows[len(differences)]["metadata"]
        right, wrong = vocabulary[row["indirect_object"]], vocabulary[row["subject"]]
        of = [lm(ids).logits, lm(other).logits]
        for gates in (mask.select(9), torch.zeros(15)):
            with ml.gated(lm, gates, MaskedLM(lm).resampled(other)):
                of.append(lm(ids).logits)
        differences.append([(logits[0, -1, right] - logits[0, -1, wrong]).item() for logits in of])
    full, empty, circuit, no_nodes = torch.tensor(differences).mean(0).tolist()
    assert abs(no_nodes - empty) > 0.1 * abs(full - empty)
    assert found["over"] == "sizes"
    points = [(0, (no_nodes - empty) / (full - empty)), (9 / 15, (circuit - empty) / (full - empty)), (1, 1)]
    expected = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))
    assert found["cpr"] == pytest.approx(expected, abs=1e-4)


def in_vocabulary(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A random model that reads the embedded language."""
    lm = build()
    torch.manual_seed(1)
    if lm.config.vocab_size != 269:
        lm.resize_token_embeddings(269)
        lm.requires_grad_(False).get_input_embeddings().weight.normal_()
    return lm.requires_grad_(False)


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["nested", "with input", "nine files"])
@pytest.mark.parametrize("build", [ml.load_lm, tiny_gpt2, tiny_llama])
def test_the_evaluator_of_mib_agrees(build: Any, kind: str, tmp_path: Path) -> None:
    """The same rows and the same circuits: CPR, CMD and the faithfulness at every size."""
    paths = [os.environ.get(name) for name in ("PEERS_PYTHON", "PEERS_EAP", "PEERS_MIB")]
    if None in paths:
        pytest.skip("set PEERS_EAP and PEERS_MIB to checkouts, and PEERS_PYTHON to a Python with their packages")
    python, eap, mib = map(str, paths)
    lm = in_vocabulary(build)
    lm.save_pretrained(tmp_path / "lm")
    ml.load_tokenizer().save_pretrained(tmp_path / "lm")
    rows, series = ioi_rows(30), "mib-input" if kind == "with input" else "mib"
    write(tmp_path / "ioi" / "test.jsonl", rows)
    graph = ml.NodeGraph.of(lm)
    mask = bank(lm, resolve_sizes(series, graph.n_nodes), kind != "nine files", series)
    to_circuits(mask, lm.config, tmp_path / "submission", "mib")
    command = [python, str(ROOT / "tests" / "peers_mib.py"), eap, mib, str(tmp_path / "lm"), str(tmp_path / "ioi")]
    done = subprocess.run([*command, "ioi", str(tmp_path / "submission")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs, ours = json.loads(done.stdout.splitlines()[-1]), own_scores(lm, mask, rows)
    assert theirs["texts"] == len(rows)
    assert ours["over"] == series
    assert [point["faithfulness"] for point in ours["curve"]] == pytest.approx(theirs["faithfulness"], abs=1e-3)
    assert (ours["cpr"], ours["cmd"]) == pytest.approx((theirs["cpr"], theirs["cmd"]), abs=1e-3)
    assert ours["curve"][-1]["answer_top1"] == pytest.approx(theirs["full_answer_top1"], abs=1e-6)
