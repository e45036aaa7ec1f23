"""The flags of `python export.py`."""

import re
from pathlib import Path
from typing import Any, Literal

from masklearn.errors import UserError
from masklearn.models import DTypeName

ExportFormat = Literal["hf", "eap", "mib", "edge-pruning", "list"]
"""What can be written: see `ExportFlags`."""


class ExportFlags:
    """A mask, and what to write.

    Args:
        mask: Mask file, or the folder of a run.
        out: Folder to write; it must not exist.
        to: hf: a Hugging Face folder in which closed heads and MLPs are gone. eap: a graph for EAP-IG. mib: the
            importances (or circuits) of a MIB submission. edge-pruning: pairs of nodes. list: names of open nodes.
        size: Nodes of the mask to write, a count or a fraction. hf needs it; the others write all sizes by default.
        group: The group to write, if the file has masks of several.
        lm: The model, if it has moved since the masks were learned.
        tokenizer: Hub id or folder of the tokenizer for the folder (hf), if that of the mask's run has moved.
        dtype: Precision of the weights; that of the mask's run by default.
        cell: Folder of --to mib in OUT, which may then exist: task and model, such as ioi_gpt2. By default that of the
            run's dataset and model, if MIB has them.
        with_input: Whether the embedding counts as a node (mib); by default if the sizes are mib-input.
        stock: Write a folder without code, which other programs load (hf). Where the family's class cannot hold the
            smaller model, closed nodes stay as zeros: as large and as slow as the whole model.
        time: Measure prefill and decode time before and after, for the model card (hf).
        allow_pickle: Also read weights that are not safetensors; such a file can run code when it is read.
        trust_remote_code: Run the Python files that come with the model. Never taken from a mask file.

    Raises:
        UserError: If the size is missing, or if the folder exists.
    """

    def __init__(
        self,
        mask: str,
        out: str,
        to: ExportFormat = "hf",
        size: int | float | None = None,
        group: str | None = None,
        lm: str | None = None,
        tokenizer: str | None = None,
        dtype: DTypeName | None = None,
        cell: str | None = None,
        with_input: bool | None = None,
        stock: bool = False,
        time: bool = True,
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self.mask, self.out = str(Path(mask).expanduser()), Path(out).expanduser()
        self.to: ExportFormat = to
        self.size, self.group, self.lm, self.stock, self.time = size, group, lm, stock, time
        self.dtype: DTypeName | None = dtype
        self.tokenizer, self.cell, self.with_input = tokenizer, cell, with_input
        self.trusted: dict[str, Any] = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
        of_format = {"tokenizer": ("hf", tokenizer), "dtype": ("hf", dtype), "stock": ("hf", stock or None)}
        of_format |= {"cell": ("mib", cell), "with_input": ("mib", with_input)}
        for flag, (its_format, value) in of_format.items():
            if value is not None and to != its_format:
                raise UserError(f"--{flag} is for --to {its_format}, and this is --to {to}. Leave it out")
        if to == "hf" and size is None:
            raise UserError("--to hf writes one mask. Say which with --size, for example --size 0.5")
        if cell is not None and not re.fullmatch(r"[\w.-]+_[\w.-]+", cell):
            raise UserError(f"--cell is {cell!r}; MIB's are TASK_MODEL, for example ioi_gpt2")
        if self.out.exists() and to != "mib":
            raise UserError(f"{self.out} already exists and is kept. Choose another folder")
