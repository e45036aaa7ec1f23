"""Many masks in one run: for every text its own, or for every value of a column."""

import gc
import json
import re
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, tiny_llama

import masklearn as ml
from masklearn.cli import evaluate, train, train_cli
from masklearn.masking import MaskedLM
from masklearn.models import Layout
from masklearn.selection.scorer import MaskScorer
from masklearn.tiny import tasks
from masklearn.training import memory

INPUTS = [
    *("--data.task", "names", "--data.positions", "last", "--data.limit", "12", "--model.scope", "input"),
    *("--model.sizes", "log:5", "--model.block", "5", "--model.polish", "1", "--model.steps", "20"),
    *("--trainer.logger", "false"),
]

SHARED = ["--data.task", "names", "--data.limit", "40", "--model.polish", "0", "--trainer.logger", "false"]
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(autouse=True)
def clean_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with masks for each of twelve texts, four at a time, started from the command line."""
    folder = tmp_path_factory.mktemp("text_run") / "run"
    command = [sys.executable, str(ROOT / "train.py"), *INPUTS, "--run.dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "12 texts, each learned and evaluated by itself" in done.stdout
    assert "for each of 12 groups, 4 at a time" in done.stdout
    assert "groups=8/12" in done.stdout and "groups/s=" in done.stdout
    return folder


def test_every_text_has_its_own_masks(text_run: Path) -> None:
    mask, metrics = (
        ml.Mask.load(text_run / "mask.safetensors"),
        json.loads((text_run / "metrics.json").read_text()),
    )
    assert mask.groups == tuple(map(str, range(12)))
    assert mask.sizes.tolist() == [1, 2, 6, 14, 35]
    assert mask.scores.shape == (12, 1, 36)
    assert len(mask.mask[:, 2].unique(dim=0)) > 1  # of size 6
    data = ml.MaskData(task="names", positions="last", limit=12, scope="input")
    data.setup()
    kl = MaskScorer(MaskedLM(ml.load_lm()), data.loader("all"), range(12))(mask.mask.transpose(0, 1))
    reported = torch.tensor([metrics["groups"][str(i)]["kl"] for i in range(12)])
    torch.testing.assert_close(reported, kl.T, atol=1e-5, rtol=1e-4)
    for i, row in enumerate(metrics["sizes"]):
        assert row["kl"] == pytest.approx(kl[i].mean().item(), abs=1e-5)
        assert row["heads"] + row["mlps"] == pytest.approx(row["s"])
        assert row["kl"] < row["controls"]["random"]["kl_mean"]
    assert not (text_run / "checkpoints" / "blocks").exists()  # the mask file holds all masks


def test_evaluation_of_groups_reproduces_the_run(text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mask = str(text_run / "mask.safetensors")
    assert evaluate(["--mask", mask, "--out", "out", "--study", "false"]) == 0
    found, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (Path("out"), text_run))
    assert found["groups"] == expected["groups"] and found["sizes"] == expected["sizes"]
    assert evaluate(["--mask", mask, "--data.task", "copy"]) == 2
    assert "holds masks of single texts, which evaluate.py does not evaluate on other texts" in capsys.readouterr().err


@pytest.mark.parametrize("blocks_done", [0, 1])
def test_a_killed_run_resumes_to_the_same_masks(blocks_done: int, text_run: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *INPUTS, "--run.dir", "killed"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    blocks = Path("killed/checkpoints/blocks")
    awaited = blocks / f"block-{blocks_done:06d}.safetensors"
    while not awaited.exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not Path("killed/mask.safetensors").exists()
    assert train(["--config", "killed/config.yaml", "--run.resume", "true"]) == 0
    resumed, whole = (ml.Mask.load(folder / "mask.safetensors") for folder in (Path("killed"), text_run))
    assert torch.equal(resumed.mask, whole.mask) and torch.equal(resumed.scores, whole.scores)


def write_columns(path: Path) -> str:
    rows = [
        {"text": prompt.text, "task": task}
        for task in ("names", "copy")
        for prompt, _ in zip(tasks.prompts(task, 1), range(16), strict=False)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_mask_for_every_value_of_a_column(tmp_path: Path) -> None:
    path = write_columns(tmp_path / "texts.jsonl")
    flags = [*("--data.path", path, "--data.positions", "last", "--trainer.logger", "false", "--model.steps", "60")]
    flags += [
        "--model.scope",
        "column:task",
        "--model.sizes",
        "[6, 12]",
        "--model.ablation",
        "mean",
        "--model.polish",
        "0",
    ]
    assert train([*flags, "--run.dir", "run"]) == 0
    mask, metrics = ml.Mask.load("run/mask.safetensors"), json.loads(Path("run/metrics.json").read_text())
    assert mask.groups == ("names", "copy")
    each = {name: metrics["groups"][name]["kl"] for name in mask.groups}
    swapped = replace(mask, mask=mask.mask.flip(0), scores=mask.scores.flip(0))
    swapped.save("swapped.safetensors")
    assert evaluate(["--mask", "swapped.safetensors", "--out", "other"]) == 0
    others = json.loads(Path("other/metrics.json").read_text())["groups"]
    for name, kl in each.items():
        assert kl[1] < others[name]["kl"][1] / 2  # a task's own masks fit it better than the other task's
    lines = Path(path).read_text().splitlines(keepends=True)
    Path("one.jsonl").write_text("".join(line for line in lines if '"copy"' in line))
    flags = ["--data.path", "one.jsonl", "--baselines", "[norm]", "--ablation", "mean-positional", "--out", "fewer"]
    assert evaluate(["--mask", "run/mask.safetensors", *flags]) == 0  # fitted on the texts of both tasks
    fewer = json.loads(Path("fewer/metrics.json").read_text())
    assert set(fewer["sizes"][0]["controls"]) == {"norm"} and fewer["data"]["path"] == "one.jsonl"


def test_an_error_in_the_first_step_of_a_block_leaves_the_previous_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = [*INPUTS, "--data.limit", "2", "--model.block", "1", "--model.steps", "6", "--model.polish", "0"]
    flags += ["--trainer.enable_progress_bar", "false"]
    assert train([*flags, "--run.dir", "alone"]) == 0
    step = ml.MaskLearner.training_step

    def failing(learner: ml.MaskLearner, *args: Any) -> torch.Tensor:
        if learner.global_step == 6:  # the gates of the block before are already replaced by new ones
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(learner, *args)

    with monkeypatch.context() as patched:
        patched.setattr(ml.MaskLearner, "training_step", failing)
        assert train([*flags, "--run.dir", "failed"]) == 2
    assert train(["--config", "failed/config.yaml", "--run.resume", "true"]) == 0
    uninterrupted, resumed = (ml.Mask.load(f"{folder}/mask.safetensors") for folder in ("alone", "failed"))
    assert torch.equal(uninterrupted.mask, resumed.mask) and torch.equal(uninterrupted.scores, resumed.scores)


def test_more_restarts_give_better_masks(tmp_path: Path) -> None:
    kl = {}
    for restarts in ("1", "4"):
        flags = [*INPUTS, "--model.restarts", restarts, "--model.polish", "0", "--data.limit", "6"]
        flags += ["--trainer.enable_progress_bar", "false", "--model.family", "independent"]
        assert train([*flags, "--run.dir", restarts]) == 0
        kl[restarts] = [row["kl"] for row in json.loads(Path(restarts, "metrics.json").read_text())["sizes"]]
    assert sum(kl["4"]) < sum(kl["1"])


def test_too_many_groups_need_to_be_confirmed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(f'{{"text": "the dog {word}", "id": {i}}}\n' for i, word in enumerate(("runs", "waits"))))
    flags = ["--data.path", str(path), "--model.scope", "column:id", "--model.steps", "2", "--trainer.logger", "false"]
    assert train([*flags, "--run.dir", "run"]) == 2
    assert "one value per text, so that 2 groups" in capsys.readouterr().err
    assert not Path("run").exists()
    assert train([*flags, "--model.max_groups", "2", "--run.dir", "run"]) == 0


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "fitting_rows", "notice", "step_shape"),
    [
        (
            [*INPUTS, "--model.block", "12"],
            3,
            "fits 3 groups at a time instead of 12; the run learns 3",
            (3, 16),
        ),
        (SHARED, 12, "Memory fits 3 texts per step instead of --data.batch_size 16; the run takes 3", (1, 3)),
        (SHARED, 1, "in 4 rows needs about 0.0 GiB, but only 0.0 GiB are free. If memory runs out, lower", (1, 1)),
    ],
)
def test_the_step_shape_that_fits_memory_is_reported_and_kept_to_the_end_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    fitting_rows: int,
    notice: str,
    step_shape: tuple[int, int],
) -> None:
    masked_lm = MaskedLM(ml.load_lm())
    data = ml.MaskData(task="names", limit=int(flags[flags.index("--data.limit") + 1]))
    data.setup()
    monkeypatch.setattr(train_cli, "CHECKPOINT_INTERVAL", 2)
    free = (fitting_rows + 0.5) * memory.bytes_per_row(masked_lm, data.longest_text) / memory.ACTIVATION_SHARE
    monkeypatch.setattr(memory, "free_everywhere", lambda masked_lm: int(free))
    assert train([*flags, "--model.steps", "6", "--trainer.max_steps", "3", "--run.dir", "run"]) == 2
    printed = capsys.readouterr()
    assert notice in printed.out and "--run.resume true --trainer.max_steps -1" in printed.err
    assert re.search(r"stopped at step \d+ of \d+ by --trainer.max_steps\. ", printed.err)
    monkeypatch.setattr(memory, "free_everywhere", lambda masked_lm: 2**40)  # a resumed run keeps its first step shape
    assert train(["--config", "run/config.yaml", "--trainer.max_steps", "-1", "--run.resume", "true"]) == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["step_shape"] == step_shape


def test_memory_of_a_row_grows_with_its_tokens() -> None:
    masked_lm = MaskedLM(tiny_llama())
    short, long = (memory.bytes_per_row(masked_lm, tokens) for tokens in (10, 40))
    assert 2 * short < long < 8 * short
    assert short > 10 * 24 * 4 * 3  # at least one activation per layer


def test_measuring_a_row_leaves_no_tensor_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    masked_lm, made = MaskedLM(tiny_llama()), list[weakref.ref[torch.Tensor]]()
    ones = torch.ones

    def recording_ones(*args: Any, **kwargs: Any) -> torch.Tensor:
        made.append(weakref.ref(tensor := ones(*args, **kwargs)))
        return tensor

    monkeypatch.setattr(torch, "ones", recording_ones)
    memory.bytes_per_row(masked_lm, 5)
    gc.collect()
    assert made
    assert not [alive for alive in made if alive() is not None]


def test_memory_that_a_forward_keeps_is_what_its_output_needs() -> None:
    """By hand: 100 floats of one result, once; neither those of a branch that was dropped nor the weights."""
    lm = tiny_llama()
    weights = lm.get_input_embeddings().weight.detach().flatten()[:100]
    x = torch.ones(100, requires_grad=True)

    def forward() -> torch.Tensor:
        (x + 1).exp().exp()
        y = x.exp()  # kept for the backwards of the exponential and of its square, which are one tensor
        return y * y * weights

    assert memory.kept_bytes(Layout.of(lm), forward) == 100 * 4


def test_steps_on_a_gpu_are_planned_for_the_length_to_which_they_are_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of 130 tokens take steps of 192: a byte each, of which 0.6 times the 960 that are free may be used."""
    monkeypatch.setattr(memory, "free_everywhere", lambda _: 960)
    monkeypatch.setattr(memory, "max_chunk_logits", lambda _: 0)
    monkeypatch.setattr(memory, "bytes_per_row", lambda _, n_tokens: n_tokens)
    masked_lm: Any = SimpleNamespace(device=torch.device("cuda"), layout=SimpleNamespace(context=1024))
    assert memory.fit_to_memory(masked_lm, 130, 1, 1, 4)[:2] == (3, 1)
    masked_lm.device = torch.device("cpu")
    assert memory.fit_to_memory(masked_lm, 130, 1, 1, 4)[:2] == (4, 1)
