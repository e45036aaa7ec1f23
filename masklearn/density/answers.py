"""How densely a model computes at the tokens of prompts and of answers."""

import pandas as pd

from masklearn.density.curves import normalized_densities
from masklearn.density.measurements import MaskMeasurements
from masklearn.density.statistics import bootstrap_ci, bootstrap_p_values


def answer_densities(measured: MaskMeasurements, seed: int) -> pd.DataFrame:
    """Return mean densities at the tokens of prompts and of answers, and their difference within texts, for every kind.

    Each text counts once: `difference` is the mean over texts of the mean density at the tokens of the answer minus
    that at the tokens of the prompt, with its interval and p-value over resampled texts. No rows if it is not known
    which tokens are answers. Answers come later than prompts: the table `relations` has the correlation with being a
    token of the answer given entropy, token frequencies and context length.
    """
    columns = [
        "bank",
        "kind",
        "texts",
        "prompt",
        "answer",
        *(f"difference{end}" for end in ("", "_low", "_high", "_p")),
    ]
    rows = []
    if measured.is_answer:
        for kind in measured.sized_kinds:
            frame = pd.DataFrame({"text": measured.texts, "answer": measured.is_answer})
            frame = frame.assign(density=normalized_densities(measured, kind))
            by_text = frame.pivot_table(index="text", columns="answer", values="density").dropna()
            if by_text.shape[1] < 2 or not len(by_text):
                continue
            prompt, answer = by_text[False].to_numpy(), by_text[True].to_numpy()
            difference, texts = (answer - prompt)[None], by_text.index.to_numpy()
            interval = bootstrap_ci(difference, texts, seed)
            p = bootstrap_p_values(difference, texts, seed)
            numbers = [float(values[0]) for values in (*interval, p)]
            rows.append([measured.name, kind, len(prompt), prompt.mean(), answer.mean(), *numbers])
    return pd.DataFrame(rows, columns=columns)
