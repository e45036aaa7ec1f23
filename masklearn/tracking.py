"""Weights & Biases: the only room that knows it. Without a login a run is kept on disk, and nobody is asked."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

import pandas as pd
import wandb
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from wandb import Run

from masklearn.artifact import Mask, write_whole
from masklearn.errors import one_line
from masklearn.learner import MaskLearner

PROJECT = "masklearn"
MOST_ROWS = 10_000
"""Rows of a table that W&B shows."""
HISTOGRAM_EVERY = 50
"""Steps between two histograms of the gates."""


def logger_for(folder: Path, config: dict[str, Any], resume: bool = False) -> tuple[WandbLogger, str]:
    """A logger that writes into a run's folder, online with a login, offline without one, and a line that says where.

    Args:
        folder: The run's folder.
        config: Everything the run was asked for.
        resume: Go on with the W&B run that was begun in this folder.
    """
    known = folder / "wandb" / "run-id"
    run_id = known.read_text() if resume and known.is_file() else token_hex(4)
    write_whole(known, run_id.encode())
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    start = partial(wandb.init, project=project, name=folder.name, id=run_id, resume="allow", dir=folder, config=config)
    run, why = _started(start)
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(project=project, save_dir=folder, id=run_id, experiment=run), _whereabouts(run, why)


def _started(start: Callable[..., Run]) -> tuple[Run, str]:
    """A run, online if it can be, and why it is not if it cannot. Tracking never stops a run."""
    mode, why = os.environ.get("WANDB_MODE"), f"WANDB_MODE is {os.environ.get('WANDB_MODE')}"
    try:
        if mode is None:
            mode, why = ("online", "") if wandb.login(prompt=False, verify=False) else ("offline", "no login found")
        quiet = wandb.Settings(silent=mode != "online", init_timeout=30)  # offline we say it ourselves, in one line
        return start(mode=mode, settings=quiet), why
    except (wandb.Error, ValueError) as error:
        os.environ["WANDB_MODE"] = "offline"
        return start(mode="offline", settings=wandb.Settings(silent=True)), f"no way online ({one_line(error)})"


def _whereabouts(run: Run, why: str) -> str:
    if run.disabled:
        return "W&B: disabled"
    if not run.offline:
        return f"W&B: {run.url}"
    folder = Path(run.dir).parent
    shown = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else folder
    return f"W&B: {why}, so the run lies in {shown}. Send it with: wandb sync {shown}"


class GateHistograms(Callback):
    """Logs how probable the gates of every size are to be open, at intervals and at the end."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.global_step - 1) % HISTOGRAM_EVERY == 0:
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, MaskLearner)
        histograms = {
            f"gates/s={s}": wandb.Histogram(probability.tolist())
            for s, probability in zip(pl_module.sizes, pl_module.open_probabilities().mean(0), strict=True)
        }
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_metrics(histograms, step=trainer.global_step)  # pyright: ignore[reportArgumentType]


def log_results(
    logger: WandbLogger, mask: Mask, rows: Sequence[dict[str, Any]], mask_file: Path, figures: Iterable[Path]
) -> None:
    """Log what a run ends with: tables, figures, summary and the mask file as a versioned artifact."""
    run = logger.experiment
    flat = [_flat(row) for row in rows]
    run.log(
        {
            "results": wandb.Table(columns=list(flat[0]), data=[list(row.values()) for row in flat]),
            "nodes": _node_table(mask),
            **{f"masks/s={s}": _picture(mask, i) for i, s in enumerate(mask.sizes.tolist())},
            **{f"figures/{path.stem}": wandb.Image(str(path)) for path in figures},
        }
    )
    for row in flat:
        run.summary.update({f"test/{name}/s={row['s']}": value for name, value in row.items() if name != "s"})
    source = re.sub(r"[^\w.-]+", "-", mask.model.lm).strip("-.")[-64:]
    artifact = wandb.Artifact(
        f"mask-{source}",
        type="mask",
        metadata={"model": vars(mask.model), "sizes": mask.sizes.tolist(), "ablation": mask.ablation.name},
    )
    artifact.add_file(str(mask_file), policy="immutable")  # sent from where it lies, not from a copy
    run.log_artifact(artifact)


def log_study(folder: Path, config: dict[str, Any], tables: Mapping[str, pd.DataFrame], figures: Iterable[Path]) -> str:
    """Log a study as a run of its own: its tables, its figures and its findings.

    Args:
        folder: The study's folder, into which an offline run goes.
        config: What was asked for.
        tables: By name; of large ones, the first rows.
        figures: PNG files.

    Returns:
        A line that says where it went.
    """
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    start = partial(wandb.init, project=project, name=folder.name, job_type="study", dir=folder, config=config)
    run, why = _started(start)
    where = _whereabouts(run, why)
    logged: dict[str, Any] = {f"study/{name}": _logged(table) for name, table in tables.items() if len(table)}
    run.log(logged | {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})
    for row in tables["findings"].to_dict("records"):
        run.summary[f"finding/{row['finding']}/{row['bank']}"] = row["verdict"]
    for row in tables["phases"].to_dict("records"):
        run.summary[f"phase/{row['what']}/{row['bank']}"] = row["s"]
    run.finish()
    return where


def _logged(table: pd.DataFrame) -> wandb.Table:
    rows = table.head(MOST_ROWS).astype(object)
    return wandb.Table(dataframe=rows.where(rows.notna(), None))


def finish() -> None:
    """Flush the current run, if there is one."""
    wandb.finish()


def _node_table(mask: Mask) -> wandb.Table:
    """The share of groups whose mask keeps a node, a row per node and a column per size; of one group, 1 or 0."""
    sizes = mask.sizes.tolist()
    nodes = zip(mask.graph.nodes, mask.share().T.tolist(), strict=True)
    data: list[Any] = [[node.name, node.layer, node.head, *kept] for node, kept in nodes]
    return wandb.Table(columns=["node", "layer", "head", *(f"s={s}" for s in sizes)], data=data)


def _picture(mask: Mask, size: int) -> wandb.Html:
    """Layers upwards, heads and then the MLP to the right; by hand, since figures need an extra and this does not."""
    kept = mask.graph.by_layer(mask.share()[size]).tolist()
    cells = "".join(
        f'<rect x="{14 * column}" y="{14 * (len(kept) - 1 - layer)}" width="12" height="12" '
        f'fill="#0072b2" fill-opacity="{max(0.1, share):.2f}"><title>{node.name}</title></rect>'
        for (layer, column, share), node in zip(
            ((layer, column, cell) for layer, row in enumerate(kept) for column, cell in enumerate(row)),
            mask.graph.nodes,
            strict=True,
        )
    )
    return wandb.Html(
        f'<svg viewBox="0 0 {14 * len(kept[0])} {14 * len(kept)}" width="100%">{cells}</svg>', inject=False
    )


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested results as one level: `controls/random/kl_mean`."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
