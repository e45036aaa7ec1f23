"""What a run logs to Weights & Biases, read back from the disk."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import wandb
from conftest import Run
from wandb_file import OfflineRun

import masklearn as ml
from masklearn import report, tracking
from masklearn.tracking import logger
from masklearn.tracking.results import model_in_name

SIZES = (4, 18, 30)


@pytest.fixture(scope="module")
def tracked(run: Run) -> OfflineRun:
    """The offline W&B run, read back."""
    (folder,) = (run.folder / "wandb").glob("offline-run-*")
    return OfflineRun.read(folder)


def test_the_config_holds_all_settings(tracked: OfflineRun) -> None:
    assert tracked.config["model"]["steps"] == 60
    assert tracked.config["data"]["task"] == "names"
    assert tracked.config["trainer"]["devices"] == 1


@pytest.mark.parametrize("name", ["kl", "open", "budget_error", "multiplier"])
def test_every_step_is_logged_for_every_size(tracked: OfflineRun, name: str) -> None:
    for size in SIZES:
        assert len(tracked.column(f"train/{name}/s={size}")) == 60


def test_the_schedule_is_logged(tracked: OfflineRun) -> None:
    temperatures, rates = tracked.column("train/temperature"), tracked.column("train/lr")
    assert (temperatures[0], temperatures[-1]) == (1.0, 0.5)
    assert rates[0] > rates[-1] > 0
    for size in SIZES:
        *_, error = tracked.column(f"train/budget_error/s={size}")
        *_, expected = tracked.column(f"train/open/s={size}")
        assert expected - error == pytest.approx(size, abs=1e-3)
        assert len(tracked.column(f"val/kl/s={size}")) >= 1


@pytest.mark.parametrize(
    ("lm", "name"), [("org/a model_1.5", "org-a-model_1.5"), ("models/模型-7b", "models--7b"), ("模型", "model")]
)
def test_wandb_allows_the_names_of_artifacts_of_any_model(lm: str, name: str) -> None:
    assert model_in_name(lm) == name
    wandb.Artifact(f"mask-{name}", type="mask")


def test_gates_are_logged_as_histograms(tracked: OfflineRun) -> None:
    for size in SIZES:
        histograms = tracked.column(f"gates/s={size}/values")
        assert len(histograms) == 3  # after the first step, at step 50, at the end
        assert all(sum(histogram) == 36 for histogram in histograms)


def test_the_table_of_results_is_logged(tracked: OfflineRun, run: Run) -> None:
    (path,) = tracked.column("results/path")
    table = json.loads((tracked.files / path).read_text())
    kl = table["columns"].index("kl")
    assert [row[kl] for row in table["data"]] == pytest.approx([row["kl"] for row in run.metrics["sizes"]])


def test_the_nodes_of_every_mask_are_logged_as_table_and_map(tracked: OfflineRun, run: Run) -> None:
    (path,) = tracked.column("nodes/path")
    table = json.loads((tracked.files / path).read_text())
    mask = ml.Mask.load(run.folder / "mask.safetensors")
    assert [row[0] for row in table["data"]] == list(mask.graph.names)
    assert torch.equal(torch.tensor([row[3:] for row in table["data"]]).T, mask.mask[0])
    for size, share in zip(SIZES, mask.share(), strict=True):
        (path,) = tracked.column(f"masks/s={size}/path")
        assert (tracked.files / path).read_text() == report.node_map_svg(mask.graph, share)
    for name in ("figures/masks", "figures/curve"):
        (picture,) = tracked.column(f"{name}/path")
        assert (tracked.files / picture).read_bytes().startswith(b"\x89PNG")


def test_the_summary_holds_the_metrics_of_every_size(tracked: OfflineRun, run: Run) -> None:
    for row in run.metrics["sizes"]:
        assert tracked.summary[f"test/kl/s={row['s']}"] == pytest.approx(row["kl"])
        assert tracked.summary[f"test/controls/random/kl_mean/s={row['s']}"] > 0


def test_the_mask_file_is_logged_as_an_artifact(tracked: OfflineRun, run: Run) -> None:
    (artifact,) = (artifact for artifact in tracked.artifacts if artifact.type == "mask")
    assert artifact.name == "mask-embedded"
    metadata = json.loads(artifact.metadata)
    assert metadata["sizes"] == list(SIZES)
    assert metadata["model"]["fingerprint"] == run.metrics["model"]["fingerprint"]
    (entry,) = artifact.manifest.contents
    assert entry.path == "mask.safetensors"
    assert Path(entry.local_path) == run.folder / "mask.safetensors"


def test_one_line_says_where_the_run_is_stored_and_how_to_send_it(run: Run) -> None:
    (line,) = (line for line in run.output.splitlines() if line.startswith("W&B"))
    (folder,) = (run.folder / "wandb").glob("offline-run-*")
    assert line == f"W&B: no login found, so the run is stored in {folder}. Send it with: wandb sync '{folder}'"


def test_metrics_that_may_not_be_on_the_disk_are_saved_and_logged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of half a minute: W&B writes in a process of its own, which a busy machine may delay."""
    now, saved = 0.0, {}
    monkeypatch.setattr(logger, "time", SimpleNamespace(monotonic=lambda: now))
    for name in ("killed", "resumed"):
        tracker, _ = tracking.logger_for(tmp_path / name, {})
        callback = tracking.RelogCallback(tracker)
        if saved:
            callback.load_state_dict(saved)
        else:
            for step, now in enumerate((0.0, 15.0, 31.0, 45.0)):  # noqa: B007 (the clock reads it)
                tracker.log_metrics({"kl": float(step)}, step)
        saved = callback.state_dict()
        tracker.finish()
    assert [step for step, _ in saved["rows"]] == [1, 2, 3]
    (folder,) = (tmp_path / "resumed" / "wandb").glob("offline-run-*")
    assert OfflineRun.read(folder).column("kl") == [1.0, 2.0, 3.0]
