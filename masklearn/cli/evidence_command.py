"""`python evaluate.py --evidence true`: hypothesis tests, controls and rediscoveries of a run's masks."""

import csv
import io
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from masklearn.cli.evaluate_bank import load_model
from masklearn.cli.evaluate_flags import EvaluateFlags
from masklearn.cli.evaluation_texts import evaluation_texts, load_texts
from masklearn.cli.progress import phase_bars
from masklearn.cli.run_folder import TABLES_FOLDER, RunFolder
from masklearn.cli.stopping import StopBetweenSteps
from masklearn.errors import UserError
from masklearn.evidence.bench import Bench
from masklearn.evidence.gather import Evidence, Table, gather
from masklearn.evidence.plan import EvidencePlan
from masklearn.evidence.rediscovery import Rediscoverer, variants
from masklearn.files import atomic_write
from masklearn.mask_file import Mask

EVIDENCE_FOLDER, EVIDENCE_FILE, REDISCOVERED_FOLDER = "evidence", "evidence.json", "rediscovered"
"""Where evidence goes: beside the mask file, unless --out names another folder."""


def run_evidence(flags: EvaluateFlags, plan: EvidencePlan, masks: Sequence[Mask], requested: dict[str, Any]) -> None:
    """Gather and write the evidence on each mask file.

    Args:
        flags: The mask files.
        plan: How much evidence is gathered.
        masks: Their contents.
        requested: The `--data.*` flags given.

    Raises:
        UserError: If masks or texts allow no evidence.
    """
    if requested:
        names = ", ".join(f"--data.{key}" for key in requested)
        raise UserError(f"--evidence uses the texts of the mask's run. Leave out {names}; other texts: --plan.transfer")
    for path, mask in zip(flags.mask, masks, strict=True):
        if mask.config.get("model", {}).get("scope") == "input":
            raise UserError(
                f"{path} holds masks of single texts, for which bootstraps and held-out tests mean nothing: there is "
                "one text behind each. Learn shared masks (--model.scope dataset, or column:NAME), or compare those of "
                "single texts in a study: leave out --evidence"
            )
    for path, mask in zip(flags.mask, masks, strict=True):
        folder = RunFolder(_folder(path, flags))
        folder.acquire("--out")
        try:
            _gather_one(path, mask, flags, plan, folder.path)
        finally:
            folder.release()


def _folder(path: str, flags: EvaluateFlags) -> Path:
    """Where the evidence on a mask file goes."""
    if flags.out is None:
        return Path(path).parent / EVIDENCE_FOLDER
    return Path(flags.out) / Path(path).resolve().parent.name if len(flags.mask) > 1 else Path(flags.out)


def _gather_one(path: str, bank: Mask, flags: EvaluateFlags, plan: EvidencePlan, folder: Path) -> None:
    start, bar = time.monotonic(), phase_bars(sys.stderr, disable=None)
    texts = evaluation_texts(path, bank, {}, None)
    masked_lm, model = load_model(path, bank, flags)
    load = partial(
        load_texts, bank=bank, masked_lm=masked_lm, model=model, scope=texts.scope,
        trust_remote_code=flags.trusted["trust_remote_code"],
    )  # fmt: skip
    try:
        data = load(texts.settings)
    except UserError as error:
        raise UserError(
            f"--evidence learns the masks of {path} again, for which it needs their texts: {error}"
        ) from error
    bench = Bench(masked_lm, bank.of(data.groups.names), data, plan, bar)
    paraphrased = None
    if plan.paraphrase_column:
        paraphrased = load(texts.settings | {"text_column": plan.paraphrase_column})
    again = Rediscoverer(masked_lm, bench.mask, data, plan, folder / REDISCOVERED_FOLDER, bar, (StopBetweenSteps,))
    evidence = gather(bench, again, variants(plan, paraphrased))
    _write(folder, path, evidence, time.monotonic() - start)


def _write(folder: Path, path: str, evidence: Evidence, seconds: float) -> None:
    for name, table in evidence.tables.items():
        atomic_write(folder / TABLES_FOLDER / f"{name}.csv", as_csv(table).encode())
    content = {"mask": path, "tables": evidence.tables, "not_tested": evidence.not_tested, "seconds": round(seconds, 1)}
    atomic_write(folder / EVIDENCE_FILE, json.dumps(content, indent=2).encode())
    print(f"Written after {seconds:.0f} s: {folder / EVIDENCE_FILE}")


def as_csv(table: Table) -> str:
    """A table as CSV."""
    file = io.StringIO()
    if table:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in table for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return file.getvalue()
