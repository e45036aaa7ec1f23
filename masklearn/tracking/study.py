"""A density study as a W&B run of its own."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import wandb
from wandb import Run

from masklearn.errors import UserError
from masklearn.tracking.logger import Tracker
from masklearn.tracking.wandb_run import describe_location, project_name, run_starter, start_run

MAX_TABLE_ROWS = 10_000
"""Rows of a table that W&B shows; of longer tables it gets the first rows."""


def log_study(folder: Path, config: dict[str, Any], tables: Mapping[str, pd.DataFrame], figures: Iterable[Path]) -> str:
    """Log a study as a run of its own: its tables, its figures and its findings.

    Args:
        folder: The study's folder, into which W&B writes.
        config: The settings of the study.
        tables: Tables by name; the first `MAX_TABLE_ROWS` rows of each are logged.
        figures: PNG files.

    Returns:
        One line that says where the W&B run is, or why there is none.
    """
    start = run_starter(folder, config, job_type="study")
    try:
        run, reason = start_run(start)
    except UserError as error:  # what is to be logged is in the folder
        return f"Not logged: {error}"
    location = describe_location(run, reason)
    tracker = Tracker(run, start, project=project_name(), save_dir=folder)
    tracker.safely(lambda: _log_study(tracker.run, tables, figures))
    tracker.finish()
    return location


def log_evidence(folder: Path, config: dict[str, Any], tables: Mapping[str, list[dict[str, Any]]]) -> str:
    """Log evidence as a run of its own: its tables, and every verdict in the summary.

    Args:
        folder: The folder of the evidence, into which W&B writes.
        config: What it was gathered on.
        tables: Tables by name, as rows.

    Returns:
        One line that says where the W&B run is, or why there is none.
    """
    start = run_starter(folder, config, job_type="evidence")
    try:
        run, reason = start_run(start)
    except UserError as error:
        return f"Not logged: {error}"
    tracker = Tracker(run, start, project=project_name(), save_dir=folder)

    def log() -> None:
        frames = {name: pd.DataFrame(rows) for name, rows in tables.items() if rows}
        tracker.run.log({f"evidence/{name}": _wandb_table(frame) for name, frame in frames.items()})
        for row in tables.get("verdicts", ()):
            tracker.run.summary[f"evidence/{row['claim']}/{row['group']}/s={row['s']}"] = row["verdict"]

    tracker.safely(log)
    tracker.finish()
    return describe_location(run, reason)


def _log_study(run: Run, tables: Mapping[str, pd.DataFrame], figures: Iterable[Path]) -> None:
    logged: dict[str, Any] = {f"study/{name}": _wandb_table(table) for name, table in tables.items() if len(table)}
    run.log(logged | {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})
    for row in tables["findings"].to_dict("records"):
        run.summary[f"finding/{row['finding']}/{row['bank']}"] = row["verdict"]
    for row in tables["phases"].to_dict("records"):
        run.summary[f"phase/{row['what']}/{row['bank']}"] = row["s"]


def _wandb_table(table: pd.DataFrame) -> wandb.Table:
    rows = table.head(MAX_TABLE_ROWS).astype(object)
    return wandb.Table(dataframe=rows.where(rows.notna(), None))
