"""Weights & Biases: the only room that knows it. Without a login a run is kept on disk, and nobody is asked."""

import os
import re
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import pandas as pd
import torch
import wandb
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from wandb import Run

from masklearn.errors import UserError, one_line
from masklearn.files import atomic_write
from masklearn.mask_file import Mask
from masklearn.training.learner import MaskLearner

PROJECT = "masklearn"
MOST_ROWS = 10_000
"""Rows of a table that W&B shows."""
HISTOGRAM_EVERY = 50
"""Steps between two histograms of the gates."""
START, FINISH = 15.0, 60.0
"""Seconds that W&B may take to begin, and to send what is left at the end, before a run goes on without it."""
FLUSH, FLUSH_GRACE = 1.0, 30.0
"""Seconds between two times that W&B writes to the disk, and after which what it was given is taken to lie there."""


class Tracker(WandbLogger):
    """W&B's logger, of which nothing is asked but to keep what it is given: what goes wrong never stops a run.

    The first trouble is told in one line, and the run goes on in an offline part beside the one that failed; after a
    second one, nothing more is tried.

    Args:
        run: W&B's run.
        start: How the run was begun.
    """

    def __init__(self, run: Run, start: Callable[..., Run], **settings: Any) -> None:
        super().__init__(experiment=run, **settings)
        self.run, self.start = run, start
        self.parts, self.troubled = [run], False
        self.recent: deque[tuple[float, int | None, dict[str, Any]]] = deque()
        """When and what was logged last: W&B has it on the disk after a while, and a kill may come before."""

    def safely(self, action: Callable[[], object]) -> None:
        """Do something with W&B, if it still works."""
        if self.troubled:
            return
        try:
            action()
        except Exception as first:  # whatever it is: a run is not about its tracking
            try:
                self._go_offline()
                action()
            except Exception:
                self.troubled = True
            what = "no more is tracked" if self.troubled else "goes on offline"
            # on a line of its own, since a progress bar leaves its own open
            print(f"\nW&B: {what} ({one_line(first)}). {_how_to_send(*self.parts)}", flush=True)

    def _go_offline(self) -> None:
        """Begin another part of the run, on the disk alone, with what the part at hand may have lost."""
        if self.run.offline and len(self.parts) > 1:
            raise RuntimeError("offline already")
        with suppress(Exception):
            self.run.finish()
        with suppress(Exception):
            wandb.teardown()
        os.environ["WANDB_MODE"] = "offline"
        self.run = self._experiment = self.start(mode="offline", settings=_settings(silent=True))
        self.parts.append(self.run)
        _by_step(self.run)
        for _, step, metrics in self.recent:
            super().log_metrics(_shown(metrics), step)

    def finish(self) -> None:
        """Send what has not been sent yet, or say how to, if that takes too long."""
        if self.troubled:
            return
        try:
            self.run.finish()
        except Exception as error:
            self.troubled = True
            print(f"W&B: not all was sent ({one_line(error)}). {_how_to_send(*self.parts)}", flush=True)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        now = time.monotonic()
        self.recent.append((now, step, dict(metrics)))
        while now - self.recent[0][0] > FLUSH_GRACE:
            self.recent.popleft()
        self.safely(lambda: super(Tracker, self).log_metrics(_shown(metrics), step))

    def finalize(self, status: str) -> None:
        """Nothing: the run goes on with its evaluation, and `finish` comes after that."""


class RelogCallback(Callback):
    """Keeps in checkpoints what W&B may not have on the disk yet; a run that goes on logs it again, the same as before.

    Args:
        tracker: The run's logger.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [(step, metrics) for _, step, metrics in self.tracker.recent]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for step, metrics in state_dict["rows"]:
            self.tracker.log_metrics(metrics, step)


def _shown(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _histogram(*value) if isinstance(value, tuple) else value for name, value in metrics.items()}


def _histogram(counts: list[int], edges: list[float]) -> wandb.Histogram:
    return wandb.Histogram(np_histogram=(np.array(counts), np.array(edges)))


def logger_for(folder: Path, config: dict[str, Any], resume: bool = False) -> tuple[Tracker, str]:
    """A logger that writes into a run's folder, online with a login, offline without one, and a line that says where.

    Args:
        folder: The run's folder.
        config: Everything the run was asked for.
        resume: Go on with the W&B run that was begun in this folder.
    """
    known = folder / "wandb" / "run-id"
    run_id = known.read_text() if resume and known.is_file() else token_hex(4)
    with suppress(UserError):  # a full disk is no matter of tracking
        atomic_write(known, run_id.encode())
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    start = partial(wandb.init, project=project, name=folder.name, id=run_id, resume="allow", dir=folder, config=config)
    run, why = _started(start)
    _by_step(run)
    return Tracker(run, start, project=project, save_dir=folder, id=run_id), describe_location(run, why)


def _by_step(run: Run) -> None:
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)


def _started(start: Callable[..., Run]) -> tuple[Run, str]:
    """A run, online if it can be, and why it is not if it cannot. Tracking never stops a run."""
    mode, why = os.environ.get("WANDB_MODE"), f"WANDB_MODE is {os.environ.get('WANDB_MODE')}"
    try:
        if mode is None:
            wandb.setup(_settings(silent=True))  # or the server is asked who is logged in, only to greet them
            mode, why = ("online", "") if wandb.login(prompt=False, verify=False) else ("offline", "no login found")
        return start(mode=mode, settings=_settings(silent=mode != "online")), why  # offline we say it ourselves
    except Exception as error:
        why = f"no way online ({one_line(error)})" if mode == "online" else one_line(error)
    for instead in ("offline", "disabled") if mode == "online" else ("disabled",):
        os.environ["WANDB_MODE"] = instead
        try:
            wandb.teardown()  # what failed holds on to the run's id
            return start(mode=instead, settings=_settings(silent=True)), why
        except Exception as error:
            why = one_line(error)
    raise UserError(f"W&B cannot even be switched off ({why}). Leave it out: --trainer.logger false")


def _settings(**settings: Any) -> wandb.Settings:
    """Settings under which W&B keeps nobody waiting, as far as its version knows them."""
    settings |= {
        "init_timeout": START,
        "finish_timeout": FINISH,
        "finish_timeout_raises": True,
        "x_transaction_log_flush_interval": FLUSH,
    }
    return wandb.Settings(**{name: value for name, value in settings.items() if name in wandb.Settings.model_fields})


def describe_location(run: Run, why: str) -> str:
    if run.disabled:
        return f"W&B: disabled ({why})"
    if not run.offline:
        return f"W&B: {run.url}"
    return f"W&B: {why}, so the run lies in {_place(run)}. {_how_to_send(run)}"


def _place(run: Run) -> str:
    folder = Path(run.dir).parent
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)


def _how_to_send(*parts: Run) -> str:
    return f"Send it with: wandb sync {' '.join(shlex.quote(_place(run)) for run in parts)}"


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
        histograms: dict[str, tuple[list[int], list[float]]] = {}
        for s, probability in zip(pl_module.sizes, pl_module.open_probabilities().mean(0), strict=True):
            counts, edges = torch.histogram(probability.cpu(), 64)
            histograms[f"gates/s={s}"] = counts.long().tolist(), edges.tolist()
        for logger in trainer.loggers:
            if isinstance(logger, Tracker):
                logger.log_metrics(histograms, step=trainer.global_step)


def log_results(
    logger: Tracker, mask: Mask, rows: Sequence[dict[str, Any]], mask_file: Path, figures: Iterable[Path]
) -> None:
    """Log what a run ends with: tables, figures, summary and the mask file as a versioned artifact."""
    logger.safely(lambda: _log_results(logger.run, mask, rows, mask_file, figures))


def _log_results(
    run: Run, mask: Mask, rows: Sequence[dict[str, Any]], mask_file: Path, figures: Iterable[Path]
) -> None:
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


def finish(logger: Tracker) -> None:
    """Send what has not been sent yet, or say how to, if that takes too long."""
    logger.finish()


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
    where = describe_location(run, why)
    tracker = Tracker(run, start, project=project, save_dir=folder)
    tracker.safely(lambda: _log_study(tracker.run, tables, figures))
    finish(tracker)
    return where


def _log_study(run: Run, tables: Mapping[str, pd.DataFrame], figures: Iterable[Path]) -> None:
    logged: dict[str, Any] = {f"study/{name}": _logged(table) for name, table in tables.items() if len(table)}
    run.log(logged | {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})
    for row in tables["findings"].to_dict("records"):
        run.summary[f"finding/{row['finding']}/{row['bank']}"] = row["verdict"]
    for row in tables["phases"].to_dict("records"):
        run.summary[f"phase/{row['what']}/{row['bank']}"] = row["s"]


def _logged(table: pd.DataFrame) -> wandb.Table:
    rows = table.head(MOST_ROWS).astype(object)
    return wandb.Table(dataframe=rows.where(rows.notna(), None))


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
