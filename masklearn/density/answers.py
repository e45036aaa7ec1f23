"""How densely a model computes at the tokens of prompts and of answers."""

import numpy as np
import pandas as pd

from masklearn.density.curves import normalized_densities
from masklearn.density.measurements import MaskMeasurements
from masklearn.density.statistics import bootstrap_ci, bootstrap_means, bootstrap_p


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
        text = np.array([name.split(":")[0] for name in measured.names])
        for kind in measured.sized_kinds:
            frame = pd.DataFrame({"text": text, "answer": measured.is_answer})
            frame = frame.assign(density=normalized_densities(measured, kind))
            by_text = frame.pivot_table(index="text", columns="answer", values="density").dropna()
            if by_text.shape[1] < 2 or not len(by_text):
                continue
            prompt, answer = by_text[False].to_numpy(), by_text[True].to_numpy()
            mean, low, high = bootstrap_ci(answer - prompt, seed)
            p = bootstrap_p(bootstrap_means((answer - prompt)[None], seed)[:, 0]) if len(prompt) > 1 else np.nan
            values = [len(prompt), prompt.mean(), answer.mean(), float(mean), float(low), float(high), p]
            rows.append([measured.name, kind, *values])
    return pd.DataFrame(rows, columns=columns)
