"""What is told of evidence: the paragraph to quote, and what W&B gets."""

import json
from pathlib import Path
from typing import Any

import wandb
from wandb_file import OfflineRun

from masklearn import tracking
from masklearn.evidence.summary import paragraph


def evidence_tables() -> dict[str, list[dict[str, Any]]]:
    """Two sizes of one group, with a control, bootstraps and an adversary at the first."""
    cell = {"group": "dataset", "s": 4}
    control = cell | {
        "control": "x",
        "run_kl": 1.234,
        "difference": 0.5,
        "low": 0.25,
        "high": 0.75,
        "verdict": "beaten",
    }
    verdicts = [
        cell | {"claim": "beats controls", "verdict": "yes", "measured": "m"},
        cell | {"claim": "stable", "verdict": "no", "measured": "m"},
        cell | {"claim": "complete", "verdict": "no", "measured": "m"},
        {"group": "dataset", "s": 7, "claim": "beats controls", "verdict": "not tested", "measured": "9 texts"},
    ]
    return {
        "verdicts": verdicts,
        "controls": [control | {"difference": 2.0}, control],
        "stability": [
            cell | {"source": "bootstrap", "jaccard": 0.95, "run_jaccard": 0.3, "chance": 0.04, "run_kl": 1.234}
        ],
        "completeness": [cell | {"excess": 2.0, "low": 1.0, "high": 3.0, "run_kl": 1.234}],
        "transfer": [{"group": "dataset", "s": 7, "what": "own texts", "kl": 0.25}],
    }


def lost_at_equal_search() -> dict[str, list[dict[str, Any]]]:
    """The same, but masks learned again with the search of the second control do no better than it does."""
    tables = evidence_tables()
    tables["verdicts"][0]["verdict"] = "no"
    again = {"again_difference": 0.1, "again_low": -0.2, "again_high": 0.4}
    tables["controls"][1] |= again | {"verdict": "not beaten"}
    return tables


def test_the_paragraph_has_numbers_and_intervals() -> None:
    facts: dict[str, Any] = {"model": "m", "texts": "t", "ablation": "zero"}
    facts |= {"n_texts": 12, "draws": 103, "rediscoveries": 3, "steps": 40}
    text = paragraph(evidence_tables(), facts)
    assert "KL from the full model, in nats: 1.23 at s = 4, 0.25 at 7." in text
    assert (
        "Beats controls (nearest control, KL minus the mask's): yes at s = 4 (+0.5, 95 % interval 0.25 to 0.75)" in text
    )
    assert "; not tested at s = 7." in text
    assert "no at s = 4 (+0.1 at equal search, 95 % interval -0.2 to 0.4)" in paragraph(lost_at_equal_search(), facts)
    assert (
        "Stable (Jaccard index over bootstraps): no at s = 4 (0.95, with the run's mask 0.30, by chance 0.04)." in text
    )
    assert "Complete (KL that closing adds): no at s = 4 (+2, 95 % interval 1 to 3)." in text


def test_evidence_is_logged_as_tables_and_a_summary_of_verdicts(tmp_path: Path) -> None:
    tables = evidence_tables() | {"pairs": []}
    assert "offline" in tracking.log_evidence(tmp_path, {"model": "m", "draws": 103}, tables)
    wandb.teardown()  # writes the rest of the file
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    logged = OfflineRun.read(folder)
    assert logged.config["draws"] == 103
    assert logged.summary["evidence/stable/dataset/s=4"] == "no"
    assert logged.summary["evidence/beats controls/dataset/s=7"] == "not tested"
    (path,) = logged.column("evidence/controls/path")
    table = json.loads((logged.files / path).read_text())
    difference = table["columns"].index("difference")
    assert [row[difference] for row in table["data"]] == [2.0, 0.5]
    assert not logged.column("evidence/pairs/path")
