"""`masklearn.evaluate` and `masklearn.baselines`: masks on other texts, compared with other subgraphs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from masklearn import evaluation
from masklearn.api.bank import LearnedBank
from masklearn.api.texts import as_other_data, settings_of
from masklearn.data import MaskData, SplitName, leave_out_learned, require_readable
from masklearn.data.source_settings import without_model
from masklearn.errors import UserError
from masklearn.mask_file import Mask, ModelId
from masklearn.masking import MaskedLM
from masklearn.models import ModelOrName, TokenizerOrName, input_device, load_lm, name_of
from masklearn.progress import ProgressBar, no_bar
from masklearn.selection.baselines import CONTROLS, UNGUIDED, Baseline, bank_scorer, known_baselines
from masklearn.training.progress import phase_bars

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
    **settings: Any,
) -> LearnedBank:
    """Evaluate masks on texts: those given, or the held-out ones that a bank was learned with.

    Args:
        bank: What `learn` returned; a `Mask`; or a mask file, or the folder of a run.
        texts: As for `learn`; by default the bank's own held-out texts.
        lm: The model of a `Mask` or a file; by default loaded by the name in it.
        tokenizer: As for `learn`.
        baselines: Other subgraphs of the same sizes to compare with; see `selection.baselines`. Those that need texts
            choose by training texts of the bank.
        include_learned: Whether to evaluate also on those of the given texts that the masks were learned on.
        progress: Whether to show progress.
        settings: Settings of `MaskData`, by name.

    Returns:
        The bank with its metrics on these texts.

    Raises:
        UserError: If there is no baseline of a name; or if the masks do not belong to the model, do not apply to the
            texts, or were learned on all of them.
    """
    known, names = bank if isinstance(bank, LearnedBank) else None, known_baselines(baselines)
    mask = bank.mask if isinstance(bank, LearnedBank) else bank if isinstance(bank, Mask) else Mask.load(bank)
    if known is None and not set(names) <= set(UNGUIDED):
        raise UserError(
            f"baselines other than {', '.join(UNGUIDED)} choose by the texts that the masks were learned on. Give "
            "the bank that learn returned, or use evaluate.py on the mask file"
        )
    masked_lm = known.masked_lm if known and lm is None else _masked_lm(mask, lm)
    if texts is None and not settings:
        if known is None:
            raise UserError("give the texts to evaluate on: evaluate(mask, texts)")
        data, split = known.data, "test"
    else:
        data, split = _other_texts(mask, masked_lm, known.data if known else None, texts, tokenizer, settings), "all"
        learned = mask.learned_texts.tolist()
        for line in leave_out_learned(data, split, learned, include_learned, "include_learned=True"):
            print(line, flush=True)
    bar = phase_bars(sys.stdout) if progress else no_bar
    return _evaluated(mask.of(data.groups.names), masked_lm, data, split, names, known, bar)


def _evaluated(
    mask: Mask,
    masked_lm: MaskedLM,
    data: MaskData,
    split: SplitName,
    baselines: Sequence[Baseline],
    known: LearnedBank | None,
    bar: ProgressBar,
) -> LearnedBank:
    scorer = None
    if known and not set(baselines) <= set(UNGUIDED):
        scorer = bank_scorer(masked_lm, mask, known.data, MAX_BASELINE_TEXTS)
    batches = data.loader(split, by_length=True)
    rows, by_group = evaluation.evaluate(masked_lm, mask, batches, baselines, scorer, bar=bar)
    results = evaluation.describe(mask, rows, by_group, settings_of(data))
    kind = "held-out texts" if split == "test" and data.groups.held_out else "texts"
    return LearnedBank(mask, masked_lm, data, results, f"{len(data.parts[split])} {kind} of {data.source}")


def baselines(
    bank: LearnedBank,
    names: Sequence[Baseline] | Baseline = ("random-matched", "norm", "attribution", "single-ablation"),
    texts: Any = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare a bank with other ways to choose subgraphs of the same sizes.

    Args:
        bank: What `learn` returned.
        names: The baselines; see `selection.baselines`. Searches such as `greedy` take long on large models.
        texts: Texts to evaluate on; by default the bank's own held-out texts.
        progress: Whether to show progress.

    Returns:
        KL (nats per scored token), TV and top-1 of every size and method, indexed by both; random subgraphs are means
        over draws.

    Raises:
        UserError: If there is no baseline of a name.
    """
    rows = []
    for row in evaluate(bank, texts, baselines=names, progress=progress).results["sizes"]:
        rows.append({"s": row["s"], "method": "learned", **{metric: row[metric] for metric in ("kl", "tv", "top1")}})
        for name, found in row["controls"].items():
            values = {metric: found.get(f"{metric}_mean", found.get(metric)) for metric in ("kl", "tv", "top1")}
            rows.append({"s": row["s"], "method": name, **values})
    return pd.DataFrame(rows).set_index(["s", "method"])


def _masked_lm(mask: Mask, lm: ModelOrName | None) -> MaskedLM:
    """The model that masks belong to, under their ablation."""
    of_run = mask.config.get("model", {})
    placement = {name: of_run.get(name) for name in ("device_map", "quantization")}
    name, revision = (mask.model.lm, mask.model.revision) if lm is None else (lm, None)
    loaded = load_lm(name, revision, of_run.get("dtype", "float32"), **placement)
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
        raise UserError(
            "these are masks of single texts, which do not apply to other texts. To try one on a text, pass it to "
            "gated: gated(lm, bank.select(s, group))"
        )
    lm = name_of(masked_lm.lm)
    of_run = {"positions": mask.positions} | without_model(mask.config.get("data", {}))
    of_run |= {"scope": scope, "max_groups": len(mask.groups)}
    if lm == mask.model.lm:
        of_run["revision"] = mask.model.revision
    if learned_on:
        of_run["tokenizer"] = learned_on.tokenizer  # a mask file has its name at most
    data = as_other_data(texts, lm, tokenizer, settings, of_run)
    data.prepare_data()
    data.setup()
    require_readable(data, masked_lm.layout)
    return data
