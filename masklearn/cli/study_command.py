"""The study of computation density, for `python evaluate.py` of masks of single texts: tables, figures and a page."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from masklearn import density
from masklearn.cli.drawing import can_draw, draw_study
from masklearn.cli.evaluate_flags import EvaluateFlags
from masklearn.cli.run_folder import TABLES_FOLDER
from masklearn.cli.study_banks import Evaluated, bank_names, example, measurements, pickable, top_tokens
from masklearn.files import atomic_write

LARGE_TABLES = ("inputs_by_size", "inputs")
"""Tables with at least a row for every input, which are written as parquet; the others are CSV."""


def write_study(evaluated: Sequence[Evaluated], flags: EvaluateFlags) -> None:
    """Make the study, write it, print its findings and log it; figures and the page need matplotlib.

    Args:
        evaluated: The banks.
        flags: Where the study goes, its seed, and whether it is tracked.
    """
    start = time.monotonic()
    banks = [measurements(name, bank) for name, bank in zip(bank_names(evaluated), evaluated, strict=True)]
    pairs = [*zip(banks, evaluated, strict=True)]
    examples = {bank.name: top_tokens(bank, source, example(bank), bank.compared_kinds) for bank, source in pairs}
    shown = {bank.name: pickable(bank, source) for bank, source in pairs}
    study = density.study(banks, examples, flags.seed, shown)
    out = Path(flags.out or ".")
    _write_tables(out / TABLES_FOLDER, study)
    print("\n".join(map(density.verdict_text, study.tables["findings"].to_dict("records"))))
    for note in study.notes:
        print(f"Note: {note}")
    figures, location = list[Path](), out / TABLES_FOLDER
    if can_draw():
        figures, location = draw_study(out, study, {bank.name: bank.mask.config for bank in banks})
    print(f"Study made in {time.monotonic() - start:.0f} s: {location}", flush=True)
    if flags.track:
        from masklearn import tracking  # imports wandb, which takes a second

        config = {key: value for key, value in vars(flags).items() if key != "out"}
        print(tracking.log_study(out, json.loads(json.dumps(config)), study.tables, figures))


def _write_tables(folder: Path, study: density.Study) -> None:
    for name, table in study.tables.items():
        if name in LARGE_TABLES:
            atomic_write(folder / f"{name}.parquet", table.to_parquet(index=False) or b"")
        else:
            atomic_write(folder / f"{name}.csv", table.to_csv(index=False).encode())
