"""Evaluations for a study, kept beside the mask files: one that is stopped, or made again with more banks, goes on."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from masklearn import ranks
from masklearn.cli.run_folder import EVALUATED_FOLDER
from masklearn.data import MaskData, SplitName
from masklearn.data.digests import digest, texts_digest
from masklearn.errors import WriteError
from masklearn.evaluation import MeasuredBank
from masklearn.files import READ_ERRORS, read_checked, write_checked
from masklearn.models import Layout
from masklearn.version import masklearn_version

SECONDS = "seconds"
"""Name of the tensor with the duration of the evaluation."""


@dataclass(frozen=True)
class KeptEvaluations:
    """The evaluations of one bank, a file for each set of inputs.

    Args:
        folder: Their folder; None keeps none.
        inputs: What all of them depend on, in values of JSON.
    """

    folder: Path | None
    inputs: Mapping[str, Any]

    @classmethod
    def beside(cls, path: str, layout: Layout, keep: bool | None) -> Self:
        """Those of a mask file on a model; none unless they are to be kept."""
        if not keep:
            return cls(None, {})
        of_bank = {"bank": digest(Path(path).read_bytes()), "model": layout.fingerprint, "dtype": str(layout.lm.dtype)}
        return cls(Path(path).parent / EVALUATED_FOLDER, of_bank | {"masklearn": masklearn_version()})

    def measured(
        self, data: MaskData, split: SplitName, inputs: Mapping[str, Any], measure: Callable[[], MeasuredBank]
    ) -> tuple[MeasuredBank, float]:
        """What was measured of the bank, and in how many seconds: kept, or measured now. Every rank must call this.

        Args:
            data: The texts.
            split: The split to evaluate on.
            inputs: What else the measurements depend on, in values of JSON.
            measure: Measures.
        """
        start = time.monotonic()
        if self.folder is None:
            return measure(), time.monotonic() - start
        counts = digest(repr(sorted(data.token_counts.items())).encode())
        inputs = {**self.inputs, "texts": texts_digest(data), "counts": counts, "split": split, **inputs}
        file = self.folder / f"{digest(json.dumps(inputs, sort_keys=True).encode())}.safetensors"
        kept = ranks.from_first(_read(file) if ranks.rank() == 0 else None)
        if kept:
            print(f"Evaluated before: {file}. Without this file it is evaluated again", flush=True)
            return kept
        found = measure(), time.monotonic() - start
        if ranks.rank() == 0:
            _write(file, *found)
        return found


def _read(file: Path) -> tuple[MeasuredBank, float] | None:
    """What a file holds; None if it is missing or damaged."""
    with suppress(*READ_ERRORS):
        tensors = read_checked(file)
        seconds = float(tensors.pop(SECONDS))
        return MeasuredBank.from_tensors(tensors), seconds
    return None


def _write(file: Path, measured: MeasuredBank, seconds: float) -> None:
    """Keep measurements, or say why that is not possible; the study does without."""
    try:
        write_checked(file, {**measured.to_tensors(), SECONDS: torch.tensor(seconds)})
    except WriteError as error:
        print(f"The evaluation is not kept for other studies: {error}", flush=True)
