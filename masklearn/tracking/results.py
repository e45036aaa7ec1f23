"""What a run logs to W&B at its end: tables, pictures, a summary and the mask file as an artifact."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from wandb import Run

from masklearn.evaluation import table
from masklearn.mask_file import Mask
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
        _log_tables(logger.run, mask, rows, pictures, maps)
        _log_artifact(logger.run, mask, mask_file)

    logger.safely(log_all)


def _log_tables(
    run: Run, mask: Mask, rows: Sequence[dict[str, Any]], pictures: Mapping[str, Path], maps: Mapping[str, str]
) -> None:
    flat_rows = [_flat(row) for row in rows]
    run.log(
        {
            "results": wandb.Table(columns=list(flat_rows[0]), data=[list(row.values()) for row in flat_rows]),
            PRINTED_TABLE: _printed_table(rows),
            "nodes": _node_table(mask),
            **{name: wandb.Html(svg, inject=False, data_is_not_path=True) for name, svg in maps.items()},
            **{name: wandb.Image(str(path)) for name, path in pictures.items()},
        }
    )
    for row in flat_rows:
        run.summary.update({f"test/{name}/s={row['s']}": value for name, value in row.items() if name != "s"})


def _log_artifact(run: Run, mask: Mask, mask_file: Path) -> None:
    model_name = re.sub(r"[^\w.-]+", "-", mask.model.lm).strip("-.")[-MAX_NAME_LENGTH:]
    artifact = wandb.Artifact(
        f"mask-{model_name}",
        type="mask",
        metadata={"model": vars(mask.model), "sizes": mask.sizes.tolist(), "ablation": mask.ablation.name},
    )
    artifact.add_file(str(mask_file), policy="immutable")  # sent from where it is, without a copy
    run.log_artifact(artifact)


def _node_table(mask: Mask) -> wandb.Table:
    """The share of groups whose mask keeps a node: a row per node, a column per size; 1 or 0 if there is one group."""
    nodes = zip(mask.graph.nodes, mask.share().T.tolist(), strict=True)
    data: list[Any] = [[node.name, node.layer, node.head, *shares] for node, shares in nodes]
    return wandb.Table(columns=["node", "layer", "head", *(f"s={s}" for s in mask.sizes.tolist())], data=data)


def _printed_table(rows: Sequence[dict[str, Any]]) -> wandb.Table:
    """The table that the run prints."""
    titles, *lines = table(list(rows))
    columns, data = list[Any](titles), list[Any](lines)
    return wandb.Table(columns=columns, data=data)


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested results as one level: `controls/random/kl_mean`."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
