"""`python evaluate.py` of masks of single texts: the study of computation density, as tables, figures and a page."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from masklearn import density, evaluation
from masklearn.ablation import Ablation
from masklearn.cli.drawing import can_draw
from masklearn.cli.run_folder import MASK, RESULTS
from masklearn.data import MaskData, SplitName
from masklearn.data.batching import Item
from masklearn.density import MaskMeasurements, TopTokens
from masklearn.density.curves import densities
from masklearn.density.measurements import COMPARED_KINDS, mean_true_entropy
from masklearn.density.study_folder import REPORT_FILE, TABLES_FOLDER
from masklearn.files import atomic_write
from masklearn.mask_file import Mask
from masklearn.masking import MaskedLM
from masklearn.models import load_tokenizer
from masklearn.selection.baselines import CONTROLS

if TYPE_CHECKING:
    from masklearn.cli.evaluate_command import EvaluateFlags

TOP = 6
"""Tokens shown of a distribution."""
LARGE = ("inputs_by_size", "inputs")
"""Tables of a row or more for every input, which go to parquet; the others are CSV."""


@dataclass(frozen=True)
class Evaluated:
    """One bank after its evaluation, with what the study asks of it."""

    path: Path
    mask: Mask
    data: MaskData
    part: SplitName
    masked_lm: MaskedLM
    ablation: Ablation
    """Under which it was evaluated."""
    recorder: evaluation.PerTextRecorder | None
    seconds: float


def settled(flags: "EvaluateFlags", masks: Sequence[Mask]) -> "EvaluateFlags":
    """The flags, with what is left open decided: whether there is a study, what stands beside, and where it goes."""
    if flags.study is None:
        flags.study = all(mask.config.get("model", {}).get("scope") == "input" for mask in masks)
    if flags.study:
        flags.baselines = list(dict.fromkeys([*flags.baselines, *CONTROLS, "norm", "inverse"]))
        flags.out = flags.out or str(Path("runs") / f"study-{time.strftime('%Y%m%d-%H%M%S')}")
    return flags


def write(evaluated: Sequence[Evaluated], flags: "EvaluateFlags") -> None:
    """Make the study and write it, whatever the machine has: figures and page need matplotlib."""
    began = time.monotonic()
    banks = [_bank(name, one) for name, one in zip(_names(evaluated), evaluated, strict=True)]
    thoughts = {bank.name: _thought(bank, one) for bank, one in zip(banks, evaluated, strict=True)}
    study = density.study(banks, thoughts, flags.seed)
    out = Path(flags.out or ".")
    for name, table in study.tables.items():
        large = name in LARGE
        content = table.to_parquet(index=False) if large else table.to_csv(index=False).encode()
        atomic_write(out / TABLES_FOLDER / f"{name}.{'parquet' if large else 'csv'}", content or b"")
    print(study.tables["findings"].to_string(index=False))
    for note in study.notes:
        print(f"Note: {note}")
    figures: list[Path] = []
    if can_draw():
        from masklearn import report  # matplotlib takes a second to import

        config = {bank.name: bank.mask.config for bank in banks}
        figures = report.write_study(out, study, config)
    where = out / (REPORT_FILE if figures else TABLES_FOLDER)
    print(f"Study made in {time.monotonic() - began:.0f} s: {where}", flush=True)
    if flags.track:
        from masklearn import tracking  # only when asked for: importing wandb takes a while

        asked = {key: value for key, value in vars(flags).items() if key != "out"}
        print(tracking.log_study(out, json.loads(json.dumps(asked)), study.tables, figures))


def _names(evaluated: Sequence[Evaluated]) -> list[str]:
    """What banks are called: after their run's folder, numbered where two are called the same."""
    stems = [one.path.resolve().parent.name if one.path.name == MASK else one.path.stem for one in evaluated]
    stems = [
        stem if one.ablation.name == one.mask.ablation.name else f"{stem} under {one.ablation.name}"
        for stem, one in zip(stems, evaluated, strict=True)
    ]
    total, met = Counter(stems), Counter()
    names = []
    for stem in stems:
        met[stem] += 1
        names.append(f"{stem} ({met[stem]})" if total[stem] > 1 else stem)
    return names


def _bank(name: str, one: Evaluated) -> MaskMeasurements:
    assert one.recorder is not None
    data, texts = one.data, one.data.parts[one.part]
    tokenizer = load_tokenizer(data.lm, data.revision, data.trust_remote_code)
    scored = [_scored(data, texts[i]) for i in range(len(texts))]
    read = [ids[: places[-1] + 1] for ids, places in zip(texts.ids, scored, strict=True)]
    contexts = tokenizer.batch_decode(read, skip_special_tokens=True)
    words = [tokenizer.convert_ids_to_tokens(ids) for ids in read]
    known = data.source.task is not None
    seconds = _seconds_of_learning(one.path) | {"evaluation": one.seconds}
    return MaskMeasurements(
        name=name,
        mask=one.mask,
        results=one.recorder.seen,
        names=texts.names,
        contexts=contexts,
        lengths=[sum(places) / len(places) + 1 for places in scored],
        group_index=texts.groups,
        source=str(data.source),
        tokens=[_piece(tokenizer, ids[-2], ids[-1]) for ids in texts.ids],
        true_entropy=[mean_true_entropy(w, places) for w, places in zip(words, scored, strict=True)] if known else [],
        seconds=seconds,
    )


def _seconds_of_learning(mask: Path) -> dict[str, float]:
    """What the results beside a run's mask say, if they lie there whole."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        if mask.name == MASK:
            return {"learning": float(json.loads(mask.with_name(RESULTS).read_text())["seconds"])}
    return {}


def _scored(data: MaskData, item: Item) -> list[int]:
    """The places of a text that are scored."""
    (scored,) = data.collate([item]).scored
    return scored.nonzero().flatten().tolist()


def _piece(tokenizer: PreTrainedTokenizerBase, before: int, token: int) -> str:
    """A token as it reads after another: many tokenizers drop the blank in front of a first one."""
    alone, both = str(tokenizer.decode([before])), str(tokenizer.decode([before, token]))
    return both.removeprefix(alone) if both.startswith(alone) else str(tokenizer.decode([token]))


def _thought(bank: MaskMeasurements, one: Evaluated) -> TopTokens:
    """Of the input whose density is the median one; the first where densities are not defined."""
    order = densities(bank).argsort(kind="stable")
    place = int(order[(len(order) - 1) // 2])
    tokenizer = load_tokenizer(one.data.lm, one.data.revision, one.data.trust_remote_code)
    batch = one.data.collate([one.data.parts[one.part][place]])
    full = bank.sizes[-1] == bank.n_nodes
    last = int(batch.input_ids[batch.scored][-1])
    one.masked_lm.ablation = one.ablation
    tokens = {}
    for kind in (kind for kind in COMPARED_KINDS if kind in bank.kinds):
        masks = bank.results[kind].masks[0][:, bank.group_index[place] if len(bank.mask.groups) > 1 else 0]
        masks = masks if full else torch.cat([masks, torch.ones_like(masks[:1])])
        ids, probabilities = evaluation.top_tokens(one.masked_lm, batch, masks, TOP)
        tokens[kind] = [
            [(_piece(tokenizer, last, token), round(p, 6)) for token, p in zip(*pair, strict=True)]
            for pair in zip(ids.tolist(), probabilities.tolist(), strict=True)
        ]
    sizes = [*bank.sizes, *([] if full else [bank.n_nodes])]
    return TopTokens(bank.names[place], bank.contexts[place], sizes, tokens)
