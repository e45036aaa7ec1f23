"""`python export.py`: from a mask file to a smaller model, or to the files of other tools."""

import re
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser
from transformers import AutoConfig, PreTrainedTokenizerBase

from masklearn.cli.evaluate_bank import load_model
from masklearn.cli.export_flags import ExportFlags
from masklearn.cli.parsing import as_user_errors
from masklearn.errors import UserError, one_line
from masklearn.export import HFExport, cell_of, cost_table, require_removable, to_circuits, to_hf
from masklearn.mask_file import Mask
from masklearn.models import load_tokenizer, model_source
from masklearn.models.adapters import base_of_adapter

EXAMPLE = "--mask runs/my-run/mask.safetensors --size 0.5 smaller"
"""Flags that write a smaller model."""
OF_PATCHING = "EAP-IG and MIB patch from corrupted texts, as --model.ablation resample does"
"""What circuits in their formats mean."""


def run_export(args: list[str] | None) -> None:
    """Run `python export.py`.

    Args:
        args: The command line; that of the process by default.

    Raises:
        UserError: If a flag or a file is not valid, or if the mask cannot be written in this format.
    """
    flags = _parse(sys.argv[1:] if args is None else args)
    bank = Mask.load(flags.mask)
    if flags.to != "hf":
        cell = (flags.cell or cell_of(bank)) if flags.to == "mib" else None
        out = flags.out / cell if cell else flags.out
        config = _config(bank, flags)
        if flags.to in ("eap", "mib") and bank.ablation.name != "resample":
            print(f"{OF_PATCHING}; these masks were learned under {bank.ablation.name} ablation")
        for file in to_circuits(bank, config, out, flags.to, flags.size, flags.group, flags.with_input):
            print(f"Written: {file}")
        return
    assert flags.size is not None
    # what the bank lacks, and what cannot be removed, is told before the model is loaded
    bank.select(flags.size, flags.group)
    require_removable(_config(bank, flags).get_text_config(), bank.ablation)
    masked_lm, _ = load_model(flags.mask, bank, flags)
    tokenizer = _tokenizer(bank, flags)
    export = to_hf(masked_lm.lm, tokenizer, bank, flags.size, flags.out, flags.group, flags.time, flags.stock)
    print(f"Written: {flags.out} ({_loading(export)}; logits within {export.max_logit_gap:.0e} of the gated model's)")
    print(cost_table(export.before, export.after))


def _tokenizer(bank: Mask, flags: ExportFlags) -> PreTrainedTokenizerBase:
    """The tokenizer of the mask's run, or the one given.

    Raises:
        UserError: If it cannot be loaded.
    """
    name = flags.tokenizer or bank.config.get("data", {}).get("tokenizer")
    revision = None if name or flags.lm else bank.model.revision
    try:
        flag = "tokenizer" if name else "model.lm"
        return load_tokenizer(name or flags.lm or bank.model.lm, revision, flags.trusted["trust_remote_code"], flag)
    except UserError as error:
        if name is None:
            raise
        raise UserError(f"cannot load the tokenizer {name!r} ({one_line(error)}). Give it with --tokenizer") from error


def _loading(export: HFExport) -> str:
    """How a folder is loaded."""
    if export.padded:
        return "plain transformers loads it; closed nodes are zeros, so it is no smaller and no faster"
    if export.stock:
        return "plain transformers loads it"
    return "it loads with trust_remote_code=True; --stock true writes one without code, of the whole model's size"


def _parse(args: Sequence[str]) -> ExportFlags:
    parser = ArgumentParser(
        prog="export.py", exit_on_error=False, allow_abbrev=False,
        description="Write a mask as a smaller model, or in the formats of other tools.",
        usage="export.py --mask FILE [--to hf] [--size SIZE] [other flags] OUT",
    )  # fmt: skip
    parser.add_class_arguments(ExportFlags)
    args = list(args)
    if not {"-h", "--help"} & {*args}:
        if not any(re.match(r"--mask\b", arg) for arg in args):
            raise UserError("--mask is missing: give a mask file or a run's folder, for example " + EXAMPLE)
        if not any(re.match(r"--out\b", arg) for arg in args):
            if args[-1].startswith("-") or re.fullmatch(r"--\w+", args[-2]):
                raise UserError("OUT is missing: end with the folder to write, for example " + EXAMPLE)
            args[-1:] = ["--out", args[-1]]
    with as_user_errors(parser):
        return ExportFlags(**parser.parse_args(args).as_dict())


def _config(bank: Mask, flags: ExportFlags):
    name, revision = flags.lm or bank.model.lm, None if flags.lm else bank.model.revision
    try:
        source = model_source(name, revision)
        if base := base_of_adapter(source):
            source = model_source(*base)
        remote = flags.trusted["trust_remote_code"]
        return AutoConfig.from_pretrained(source.location, trust_remote_code=remote, **source.options)
    except (OSError, ValueError) as error:
        advice = "Give the model with --lm"
        if "trust_remote_code" in str(error):
            advice = "It comes with its own code: if you trust that code, add --trust_remote_code true"
        raise UserError(f"cannot read the config of {name!r} ({one_line(error)}). {advice}") from error
