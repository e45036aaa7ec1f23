"""From an evaluated bank to what a study takes of it: measurements of every input, and one input's top tokens."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masklearn import evaluation
from masklearn.cli.evaluate_bank import EvaluatedBank
from masklearn.cli.evaluate_text_bank import EvaluatedTexts
from masklearn.cli.run_folder import METRICS_FILE
from masklearn.data import MaskData
from masklearn.data.batching import Item, evenly_spaced
from masklearn.data.preview import token_text, token_texts
from masklearn.density import MaskMeasurements, TopTokens
from masklearn.density.correlations import mean_true_entropy
from masklearn.density.curves import densities
from masklearn.density.measurements import Corpus
from masklearn.mask_file import MASK_FILE
from masklearn.training.progress import phase_bars

N_TOP_TOKENS = 6
"""Tokens shown of a distribution."""
MAX_PICKABLE = 200
"""Inputs of a bank in the page's picker."""

Evaluated = EvaluatedBank | EvaluatedTexts
"""A bank of node masks or of single texts' edges or positions, after its evaluation."""


def bank_names(evaluated: Sequence[Evaluated]) -> list[str]:
    """A unique name for every bank: that of its run's folder, with what differs from the run in its evaluation."""
    names = []
    for bank in evaluated:
        name = bank.path.resolve().parent.name if bank.path.name == MASK_FILE else bank.path.stem
        is_learned_under = bank.ablation.name == bank.mask.ablation.name
        name = name if is_learned_under else f"{name} under {bank.ablation.name}"
        conditions = _conditions(bank)
        name += " frozen" * (conditions.get("edges") == "frozen")
        name += ", controls keep residuals" * bool(conditions.get("keep_residual"))
        names.append(f"{name} on {bank.altered_column}" if bank.altered_column else name)
    total, unique = Counter(names), list[str]()
    for name in names:
        numbered = (f"{name} ({number})" for number in count(1))
        free = (each for each in numbered if each not in unique and each not in total)
        unique.append(next(free) if total[name] > 1 else name)
    return unique


def _conditions(bank: Evaluated) -> Mapping[str, Any]:
    """How a bank of edges was evaluated; empty for others."""
    return bank.conditions if isinstance(bank, EvaluatedTexts) else {}


def measurements(name: str, bank: Evaluated) -> MaskMeasurements:
    """What was measured of a bank's inputs, with their contexts and tokens as text.

    Args:
        name: The bank's name in the study.
        bank: The bank.
    """
    data, texts = bank.data, bank.data.parts[bank.split]
    tokenizer = data.load_tokenizer()
    scored = [_scored_positions(data, texts[i]) for i in range(len(texts))]
    context_ids = [ids[: positions[-1] + 1] for ids, positions in zip(texts.ids, scored, strict=True)]
    context_tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in context_ids]
    language_is_known = data.source.task is not None
    return MaskMeasurements(
        name=name,
        mask=bank.mask,
        results=bank.results,
        names=texts.names,
        contexts=tokenizer.batch_decode(context_ids, skip_special_tokens=True),
        lengths=[sum(positions) / len(positions) + 1 for positions in scored],
        group_index=texts.groups,
        source=str(data.source),
        ablation=bank.ablation.name,
        tokens=[token_text(tokenizer, ids[-2], ids[-1]) for ids in texts.ids],
        true_entropy=[mean_true_entropy(*pair) for pair in zip(context_tokens, scored, strict=True)]
        if language_is_known
        else [],
        seconds=seconds_of_learning(bank.path) | {"evaluation": bank.seconds},
        is_answer=[text.position >= text.prompt_length for text in texts.encoded]
        if all(text.position and text.prompt_length for text in texts.encoded)
        else [],
        text_names=texts.text_names,
        conditions=_conditions(bank),
        corpus=Corpus(data.token_counts.total(), len(data.token_counts)),
    )


def seconds_of_learning(mask_file: Path) -> dict[str, float]:
    """How long a run took, from the results beside its mask file; empty if they are missing or damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        if mask_file.name == MASK_FILE:
            return {
                "learning": float(json.loads(mask_file.with_name(METRICS_FILE).read_text(encoding="utf-8"))["seconds"])
            }
    return {}


def _scored_positions(data: MaskData, item: Item) -> list[int]:
    (scored,) = data.collate([item]).scored
    return scored.nonzero().flatten().tolist()


def example(measured: MaskMeasurements) -> int:
    """The input of median density, or the first if there are no densities."""
    density = densities(measured)
    order = density.argsort(kind="stable")  # those without a density come last
    return 0 if np.isnan(density).all() else int(order[(len(order) - 1) // 2])


def pickable(measured: MaskMeasurements, bank: Evaluated) -> list[TopTokens]:
    """Up to `MAX_PICKABLE` inputs with the top tokens of the bank's own subgraphs, evenly spread over the bank."""
    chosen = evenly_spaced(range(len(measured.names)), MAX_PICKABLE)
    bar = phase_bars(sys.stderr, disable=None)
    return [top_tokens(measured, bank, index, [measured.own_kind]) for index in bar(chosen, "Top tokens")]


def top_tokens(measured: MaskMeasurements, bank: Evaluated, index: int, kinds: Sequence[str]) -> TopTokens:
    """The top next tokens after one input.

    Args:
        measured: The bank's measurements.
        bank: The bank; its model is left with the ablation that the bank was evaluated under.
        index: The input.
        kinds: Kinds of subgraphs.
    """
    data = bank.data
    tokenizer = data.load_tokenizer()
    batch = data.collate([data.parts[bank.split][index]])
    last = int(batch.input_ids[batch.scored][-1])
    found = bank.top(index) if isinstance(bank, EvaluatedTexts) else _of_nodes(measured, bank, index, kinds)
    has_full_model = measured.sizes[-1] == measured.full_size
    sizes = [*measured.sizes, *([] if has_full_model else [measured.full_size])]
    tokens = {
        kind: [
            [(token_text(tokenizer, last, token), round(p, 6)) for token, p in zip(*pair, strict=True)]
            for pair in zip(*(values[: len(sizes)].tolist() for values in found[kind]), strict=True)
        ]
        for kind in kinds
    }
    words = ()
    if isinstance(bank, EvaluatedTexts):
        ids = evaluation.scored_text(data, bank.split, index).input_ids
        words = token_texts(tokenizer, ids.tolist())
    return TopTokens(measured.names[index], measured.contexts[index], sizes, tokens, words)


def _of_nodes(
    measured: MaskMeasurements, bank: EvaluatedBank, index: int, kinds: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Top token ids and probabilities after one input by kind of node masks, the full model's last."""
    data = bank.data
    batch = data.collate([data.parts[bank.split][index]])
    bank.masked_lm.ablation = bank.ablation
    group = measured.group_index[index] if len(measured.mask.groups) > 1 else 0
    found = {}
    for kind in kinds:
        masks = measured.results[kind].masks[0][:, group]  # (sizes, nodes)
        if measured.sizes[-1] != measured.full_size:
            masks = torch.cat([masks, torch.ones_like(masks[:1])])
        found[kind] = evaluation.top_tokens(bank.masked_lm, batch, masks, N_TOP_TOKENS)
    return found
