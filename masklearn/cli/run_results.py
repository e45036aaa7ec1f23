"""What a finished run writes and prints: masks, metrics, figures, W&B results, tables."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masklearn import evaluation
from masklearn.cli.checkpoints import REQUEUE_PATTERN
from masklearn.cli.drawing import draw_run, node_maps
from masklearn.cli.run_folder import BLOCKS_FOLDER, METRICS_FILE, RunFolder
from masklearn.data import MaskData
from masklearn.files import atomic_write
from masklearn.mask_file import MASK_FILE, Mask
from masklearn.training.learner import MaskLearner

if TYPE_CHECKING:
    from masklearn.tracking import Tracker


def mask_config(requested: dict[str, Any]) -> dict[str, Any]:
    """The settings that masks depend on: without the run's folder and the number of worker processes.

    Args:
        requested: All settings of the run, by section.
    """
    data = {key: value for key, value in requested["data"].items() if key != "workers"}
    return {section: values for section, values in requested.items() if section != "run"} | {"data": data}


def write_results(folder: RunFolder, mask: Mask, description: dict[str, Any], tracker: "Tracker | None") -> None:
    """Write and log the results of a run, and remove what was kept to resume it.

    Args:
        folder: The run's folder.
        mask: The masks learned.
        description: The content of `metrics.json`.
        tracker: The run's logger, if it is tracked.
    """
    rows = description["sizes"]
    mask = mask.with_metrics(rows)
    mask_file, metrics_file = folder / MASK_FILE, folder / METRICS_FILE
    figures, pages = draw_run(folder, mask, description, _sentence(mask))
    mask.save(mask_file)
    if tracker:
        from masklearn import tracking  # imports wandb, which takes a second

        maps = node_maps(mask) if figures else {}
        tracking.log_results(tracker, mask, rows, mask_file, figures, maps)
        tracker.finish()
    atomic_write(metrics_file, json.dumps(description, indent=2).encode())  # last: it marks a run as finished
    shutil.rmtree(folder / BLOCKS_FOLDER, ignore_errors=True)  # the mask file holds all of them
    for checkpoint in folder.path.glob(REQUEUE_PATTERN):
        checkpoint.unlink()
    print_written(description, mask_file, metrics_file, *figures, *pages)


def print_written(description: dict[str, Any], *files: Path) -> None:
    """Print when and where the results were written; `description` is the content of `metrics.json`."""
    print(f"\nWritten after {description['seconds']:.0f} s: {', '.join(map(str, files))}")


def _sentence(mask: Mask) -> str:
    """The masks in a sentence."""
    groups = f"for each of {len(mask.groups)} groups" if len(mask.groups) > 1 else "shared by all texts"
    sizes = f"Masks of {', '.join(map(str, mask.sizes.tolist()))} of {mask.graph.n_nodes} nodes"
    return f"{sizes}, {groups}, {mask.ablation.name} ablation"


def print_results(learner: MaskLearner, data: MaskData, description: dict[str, Any]) -> None:
    """Print the KL of every stage from gates to masks, and the metrics on the test texts."""
    on = "the selection texts" if data.groups.held_out else "the text of each mask"
    objective, by_kl = learner.settings.objective, learner.settings.by_kl
    what, unit = ("KL", "scored token") if by_kl else (f"Loss ({objective})", "answer")
    stages = evaluation.stages(learner.stages, learner.settings.polish > 0)
    table = evaluation.stages_table(stages, "KL" if by_kl else "loss")
    legend = evaluation.stages_legend(stages)
    print(f"\n{what} at each stage on {on}, in nats per {unit}.\n{legend}\n\n{table}")
    report = evaluation.format_report(description)
    print(f"\nResults on {evaluation.texts_in_words(data)}; KL, JS and CE in nats per scored token.\n\n{report}")


def print_location(folder: RunFolder, tracker: "Tracker | None") -> None:
    """Print where the run is, as the last line: its address if it is online, otherwise its folder."""
    print(f"\nRun: {(tracker.url if tracker else None) or folder.path}", flush=True)
