"""The input picker's data: every shown input with its subgraphs, packed, and the tokens that they predict."""

import base64
import json
import math
from typing import Any

import numpy as np

from masklearn.density import MaskMeasurements, Study, TopTokens
from masklearn.density.curves import normalized_densities
from masklearn.evaluation.text_report import PART_COUNTS
from masklearn.report.token_map import MAX_NUMBERS, token_maps
from masklearn.text_bank import EdgeBank, TextBank


def picker_json(study: Study) -> str:
    """Return the data as JSON that is safe inside a script element.

    Masks are packed to a bit for every node and size; tokens are numbers in a list of all tokens, with probabilities in
    thousandths. Numbers that are not known are null.
    """
    banks = [
        _bank(measured, study.pickable[measured.name])
        for measured in study.measurements
        if measured.name in study.pickable
    ]
    text = json.dumps(banks, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _bank(measured: MaskMeasurements, shown: list[TopTokens]) -> dict[str, Any]:
    kind, graph = measured.own_kind, measured.mask.graph
    index = {name: i for i, name in enumerate(measured.names)}
    number: dict[str, int] = {}
    density, tv = normalized_densities(measured), measured.values(kind, "tv")
    masks = measured.results[kind].masks[0].numpy()  # (sizes, groups, nodes)
    bank = measured.mask if isinstance(measured.mask, TextBank) else None
    of_text = _of_texts(measured, bank, shown, index, number) if bank else [{}] * len(shown)
    inputs = []
    for one, more in zip(shown, of_text, strict=True):
        i = index[one.name]
        kept = masks[:, measured.group_index[i] if masks.shape[1] > 1 else 0]
        top = [
            [value for token, p in tokens for value in (number.setdefault(token, len(number)), _thousandths(p))]
            for tokens in one.tokens[kind]
        ]
        inputs.append(
            {
                "name": one.name,
                "text": one.text,
                "density": _rounded(density[i]),
                "tv": [_rounded(value) for value in tv[:, i]],
                "kept": base64.b64encode(np.packbits(kept).tobytes()).decode(),
                "top": top,
                **more,
            }
        )
    return {
        "name": measured.name,
        "unit": measured.unit,
        "kind": kind,
        "layers": graph.n_layers,
        "heads": graph.n_heads,
        "fractions": [float(f"{fraction:.3g}") for fraction in measured.fractions],
        "sizes": measured.sizes,
        "parts": bank.parts if bank else (),
        "parallel": isinstance(bank, EdgeBank) and bank.parallel,
        "tokens": list(number),
        "inputs": inputs,
    }


def _rounded(value: float) -> float | None:
    return round(float(value), 3) if math.isfinite(value) else None


def _thousandths(p: float) -> int | None:
    return round(1000 * p) if math.isfinite(p) else None


def _of_texts(
    measured: MaskMeasurements,
    bank: TextBank,
    shown: list[TopTokens],
    index: dict[str, int],
    number: dict[str, int],
) -> list[dict[str, Any]]:
    """What the inputs of a bank of single texts have besides: units by part, the text's tokens, and what is kept there.

    Args:
        measured: What was measured of the bank.
        bank: Its edges or positions.
        shown: The inputs.
        index: Number of every input by its name.
        number: Number of every token, extended here.
    """
    units = measured.values(measured.own_kind, PART_COUNTS).sum(-2).astype(int)  # (sizes, inputs, parts)
    found = []
    for one in shown:
        i = index[one.name]
        found.append({"units": units[:, i].tolist()})
        if one.text_tokens:
            found[-1]["words"] = [number.setdefault(token, len(number)) for token in one.text_tokens]
            found[-1]["maps"] = token_maps(bank, measured.group_index[i], MAX_NUMBERS // len(shown))
    return found
