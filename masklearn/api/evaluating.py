"""`masklearn.evaluate` and `masklearn.baselines`: masks on other texts, compared with other subgraphs."""

import sys
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import pandas as pd

from masklearn import evaluation
from masklearn.api.bank import LearnedBank
from masklearn.api.texts import as_other_data, settings_of, text_settings
from masklearn.data import (
    MaskData,
    SplitName,
    leave_out_learned,
    leave_out_other_groups,
    n_not_learned,
    require_readable,
)
from masklearn.data.source_settings import names_source, without_model
from masklearn.data.splits import UNLIMITED
from masklearn.errors import UserError
from masklearn.mask_file import Mask, ModelId
from masklearn.masking import MaskedLM
from masklearn.models import ModelOrName, TokenizerOrName, best_device, input_device, load_lm, name_of
from masklearn.progress import ProgressBar, no_bar
from masklearn.selection.baselines import CONTROLS, UNGUIDED, Baseline, bank_scorer, known_baselines
from masklearn.training.progress import phase_bars

OF_SINGLE_TEXTS = (
    "these are masks of single texts, which do not apply to other texts. To try one on a text, pass it to gated: "
    "gated(lm, bank.select(s, group))"
)
"""Why masks are not evaluated on other texts."""
MAX_BASELINE_TEXTS = 64
"""Training texts of a group on which baselines choose their subgraphs, at most."""


def evaluate(
    bank: LearnedBank | Mask | str | Path,
    texts: Any = None,
    *,
    lm: ModelOrName | None = None,
    tokenizer: TokenizerOrName | None = None,
    baselines: Sequence[Baseline] | Baseline = CONTROLS,
    include_learned: bool = False,
    progress: bool = True,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    **settings: Any,
) -> LearnedBank:
    """Evaluate masks on texts: those given, or those of a bank's last evaluation, so after `learn` its held-out texts.

    Args:
        bank: What `learn` or `evaluate` returned; a `Mask`; or a mask file, or the folder of a run.
        texts: As for `learn`. They are read with the settings of the masks' run, such as `max_length`; its columns
            (`text_column`, ...) count where the texts have them. A list of strings has the column `text` alone.
        lm: The model of a `Mask` or a file; by default loaded by the name in it.
        tokenizer: As for `learn`; by default that of the masks' run.
        baselines: Other subgraphs of the same sizes to compare with; see `selection.baselines`. Those that need texts
            choose by training texts of the bank.
        include_learned: Whether to evaluate also on those of the given texts that the masks were learned on.
        progress: Whether to show progress.
        allow_pickle: For a model that is loaded by its name: see `load_lm`.
        trust_remote_code: The same, and for its tokenizer.
        settings: Settings of `MaskData`, by name, in place of those of the run; only together with texts or a source.

    Returns:
        The bank with its metrics on these texts.

    Raises:
        UserError: If a baseline or a setting is not valid; or if the masks do not belong to the model, do not apply to
            the texts, or were learned on all of them.
    """
    known, names = bank if isinstance(bank, LearnedBank) else None, known_baselines(baselines)
    mask = bank.mask if isinstance(bank, LearnedBank) else bank if isinstance(bank, Mask) else Mask.load(bank)
    learned_on = known.learned_on if known else None
    _require_choosable(names, learned_on)
    own = _own_texts(known, settings, tokenizer) if texts is None and not names_source(settings) else None
    trusted = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    masked_lm = known.masked_lm if known and lm is None else _masked_lm(mask, lm, trusted)
    settings |= {"trust_remote_code": True} if trust_remote_code else {}
    data, split = own or (_other_texts(mask, masked_lm, learned_on, texts, tokenizer, settings), "all")
    if own is None:
        _leave_out_learned(data, mask, include_learned)
    bar = phase_bars(sys.stdout) if progress else no_bar
    return _evaluated(mask.of(data.groups.names), masked_lm, data, split, names, learned_on, bar)


def _require_choosable(names: Sequence[Baseline], learned_on: MaskData | None) -> None:
    """Refuse baselines that choose by texts if the masks' own are unknown."""
    if learned_on is None and not set(names) <= set(UNGUIDED):
        raise UserError(
            f"baselines other than {', '.join(UNGUIDED)} choose by the texts that the masks were learned on. Give "
            "the bank that learn returned, or use evaluate.py on the mask file"
        )


def _own_texts(
    known: LearnedBank | None, settings: dict[str, Any], tokenizer: TokenizerOrName | None
) -> tuple[MaskData, SplitName]:
    """The texts of a bank's last evaluation, and which split of them that was.

    Raises:
        UserError: If there are none; or if there are settings, since these texts were split under others.
    """
    text_settings(settings)
    given = {name: repr(value) for name, value in settings.items()} | ({"tokenizer": "..."} if tokenizer else {})
    if given:
        name, value = next(iter(given.items()))
        raise UserError(
            f"{name} is given without texts, and a bank's own texts were read and split under its own settings. Give "
            f"texts as well, for example evaluate(bank, texts, {name}={value})"
        )
    if known is None:
        raise UserError("give the texts to evaluate on: evaluate(mask, texts)")
    return known.data, known.split


def _leave_out_learned(data: MaskData, mask: Mask, include_learned: bool) -> None:
    """Leave out texts that masks were learned on, unless they are to be included, and say so."""
    learned = mask.learned_texts.tolist()
    for line in leave_out_learned(data, "all", learned, include_learned, "include_learned=True"):
        print(line, flush=True)


def _evaluated(
    mask: Mask,
    masked_lm: MaskedLM,
    data: MaskData,
    split: SplitName,
    baselines: Sequence[Baseline],
    learned_on: MaskData | None,
    bar: ProgressBar,
) -> LearnedBank:
    scorer = None
    if learned_on and not set(baselines) <= set(UNGUIDED):
        scorer = bank_scorer(masked_lm, mask, learned_on, MAX_BASELINE_TEXTS)
    batches = data.loader(split, by_length=True)
    rows, by_group = evaluation.evaluate(masked_lm, mask, batches, baselines, scorer, bar=bar)
    results = evaluation.describe(mask, rows, by_group, settings_of(data))
    kind = "held-out texts" if split == "test" and data.groups.held_out else "texts"
    texts = f"{len(data.parts[split])} {kind} of {data.source}"
    return LearnedBank(mask, masked_lm, data, results, texts, split, learned_on)


def baselines(
    bank: LearnedBank,
    names: Sequence[Baseline] | Baseline = ("random-matched", "norm", "attribution", "single-ablation"),
    texts: Any = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare a bank with other ways to choose subgraphs of the same sizes.

    Args:
        bank: What `learn` returned; or `evaluate`, given such a bank.
        names: The baselines; see `selection.baselines`. They choose by training texts of the bank. Searches such as
            `greedy` take long on large models.
        texts: Texts to evaluate on; by default those of the bank's last evaluation, as for `evaluate`.
        progress: Whether to show progress.

    Returns:
        KL (nats per scored token), TV and top-1 of every size and method, indexed by both; random subgraphs are means
        over draws.

    Raises:
        UserError: If there is no baseline of a name, or if it is unknown which texts the masks were learned on.
    """
    rows = []
    for row in evaluate(bank, texts, baselines=names, progress=progress).results["sizes"]:
        rows.append({"s": row["s"], "method": "learned", **{metric: row[metric] for metric in ("kl", "tv", "top1")}})
        for name, found in row["controls"].items():
            values = {metric: found.get(f"{metric}_mean", found.get(metric)) for metric in ("kl", "tv", "top1")}
            rows.append({"s": row["s"], "method": name, **values})
    return pd.DataFrame(rows).set_index(["s", "method"])


def _masked_lm(mask: Mask, lm: ModelOrName | None, trusted: dict[str, bool]) -> MaskedLM:
    """The model that masks belong to, under their ablation; `trusted` says what may run code, see `load_lm`."""
    of_run = mask.config.get("model", {})
    placement = {name: of_run.get(name) for name in ("device_map", "quantization")}
    name, revision = (mask.model.lm, mask.model.revision) if lm is None else (lm, None)
    device = best_device() if isinstance(name, str) and not placement["device_map"] else None
    of_name = of_run.get("dtype", "float32"), device
    loaded = load_lm(name, revision, *of_name, **trusted, **placement) if isinstance(name, str) else load_lm(name)
    masked_lm = MaskedLM(loaded, mask.ablation.to(input_device(loaded)))
    mask.require(ModelId(name_of(loaded), None, masked_lm.layout.fingerprint))
    return masked_lm


def _other_texts(
    mask: Mask,
    masked_lm: MaskedLM,
    learned_on: MaskData | None,
    texts: Any,
    tokenizer: TokenizerOrName | None,
    settings: dict[str, Any],
) -> MaskData:
    """Texts given to evaluate masks on, set up."""
    scope = mask.config.get("model", {}).get("scope", "dataset")
    if scope == "input" and not isinstance(texts, MaskData):
        raise UserError(OF_SINGLE_TEXTS)
    lm = name_of(masked_lm.lm)
    of_run = {"positions": mask.positions} | without_model(mask.config.get("data", {}))
    of_run |= {"scope": scope, "max_groups": UNLIMITED}
    if lm == mask.model.lm:
        of_run["revision"] = mask.model.revision
    if learned_on:
        of_run["tokenizer"] = learned_on.tokenizer  # a mask file has its name at most
    data = as_other_data(texts, lm, tokenizer, settings, of_run)
    data.prepare_data()
    data.setup()
    if scope == "input" and n_not_learned(data, mask.learned_texts.tolist()):
        raise UserError(OF_SINGLE_TEXTS)
    require_readable(data, masked_lm.layout)
    data = copy(data)
    data.parts = dict(data.parts)  # a `MaskData` that was given stays whole when texts are left out
    for line in leave_out_other_groups(data, mask.groups) if data.scope == scope else ():
        print(line, flush=True)
    return data
