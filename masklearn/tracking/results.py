"""What a run logs to W&B at its end: tables, pictures, a summary and the mask file as an artifact."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from wandb import Run

from masklearn.evaluation import table, text_table
from masklearn.mask_file import Mask, ModelId
from masklearn.text_bank import TextBank
from masklearn.tracking.logger import Tracker

PRINTED_TABLE = "summary/KL, JS and CE in nats per token"
"""Name under which the table that the run prints is logged: with the unit of its columns."""
MAX_NAME_LENGTH = 64
"""Characters of the model's name that an artifact's name keeps."""


def log_results(
    logger: Tracker,
    mask: Mask,
    rows: Sequence[dict[str, Any]],
    mask_file: Path,
    figures: Iterable[Path],
    maps: Mapping[str, str],
) -> None:
    """Log the results of a finished run.

    Args:
        logger: The run's logger.
        mask: The masks learned.
        rows: One per size, as in `metrics.json`.
        mask_file: Where the masks are saved; logged as a versioned artifact.
        figures: PNG files.
        maps: SVG pictures by the name they are logged under, such as `masks/s=8`.
    """
    pictures = {f"figures/{path.stem}": path for path in figures}

    def log_all() -> None:  # one action: after an error, all of it is logged again offline
        svgs = {name: wandb.Html(svg, inject=False, data_is_not_path=True) for name, svg in maps.items()}
        others = {"nodes": _node_table(mask), **svgs}
        _log_rows(logger.run, rows, table(list(rows)), others, pictures)
        metadata = {"sizes": mask.sizes.tolist(), "ablation": mask.ablation.name}
        _log_artifact(logger.run, "mask", mask.model, metadata, mask_file)

    logger.safely(log_all)


def log_text_results(
    logger: Tracker, bank: TextBank, rows: Sequence[dict[str, Any]], file: Path, figures: Iterable[Path]
) -> None:
    """Log the results of a finished run on single texts.

    Args:
        logger: The run's logger.
        bank: The subgraphs of edges or positions.
        rows: One per size, as in `metrics.json`.
        file: Where the bank is saved; logged as a versioned artifact.
        figures: PNG files.
    """
    pictures = {f"figures/{path.stem}": path for path in figures}

    def log_all() -> None:
        _log_rows(logger.run, rows, text_table(list(rows), bank.unit), {}, pictures)
        metadata = {"sizes": bank.shares, "method": bank.method, "ablation": bank.ablation.name}
        _log_artifact(logger.run, bank.unit, bank.model, metadata, file)

    logger.safely(log_all)


def _log_rows(
    run: Run,
    rows: Sequence[dict[str, Any]],
    printed: list[list[str]],
    others: Mapping[str, Any],
    pictures: Mapping[str, Path],
) -> None:
    """Log the rows as a table, as they are printed, and in the summary; and other values and pictures with them."""
    flat_rows = [_flat(row) for row in rows]
    run.log(
        {
            "results": wandb.Table(columns=list(flat_rows[0]), data=[list(row.values()) for row in flat_rows]),
            PRINTED_TABLE: _printed_table(printed),
            **others,
            **{name: wandb.Image(str(path)) for name, path in pictures.items()},
        }
    )
    for row in flat_rows:
        run.summary.update({f"test/{name}/s={row['s']}": value for name, value in row.items() if name != "s"})


def _log_artifact(run: Run, prefix: str, model: ModelId, metadata: Mapping[str, Any], file: Path) -> None:
    metadata = {"model": vars(model), **metadata}
    artifact = wandb.Artifact(f"{prefix}-{model_in_name(model.lm)}", type="mask", metadata=metadata)
    artifact.add_file(str(file), policy="immutable")  # sent from where it is, without a copy
    run.log_artifact(artifact)


def model_in_name(lm: str) -> str:
    """A model's name or folder in the name of an artifact, which allows ASCII letters, digits and `_.-` only."""
    return re.sub(r"[^\w.-]+", "-", lm, flags=re.ASCII).strip("-.")[-MAX_NAME_LENGTH:] or "model"


def _node_table(mask: Mask) -> wandb.Table:
    """The share of groups whose mask keeps a node: a row per node, a column per size; 1 or 0 if there is one group."""
    nodes = zip(mask.graph.nodes, mask.share().T.tolist(), strict=True)
    data: list[Any] = [[node.name, node.layer, node.head, *shares] for node, shares in nodes]
    return wandb.Table(columns=["node", "layer", "head", *(f"s={s}" for s in mask.sizes.tolist())], data=data)


def _printed_table(cells: list[list[str]]) -> wandb.Table:
    """The table that the run prints, from its cells."""
    titles, *lines = cells
    columns, data = list[Any](titles), list[Any](lines)
    return wandb.Table(columns=columns, data=data)


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested results as one level: `controls/random/kl_mean`."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
