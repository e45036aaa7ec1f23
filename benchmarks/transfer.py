"""Evaluate masks of single prompts on other texts."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from random import Random

from learned_bank import Rows, learn_bank, mean_kl
from setting import Setting

from masklearn.selection.baselines import subgraphs
from masklearn.selection.scorer import MaskScorer
from masklearn.tiny import language as lang
from masklearn.tiny import tasks


def transfer(folder: Path, texts: int) -> Rows:
    """KL of masks of single texts on their own prompt and on other prompts, and KL of random masks, at six sizes.

    A reworded prompt has other words everywhere except where they matter for the answer; its twin differs in the one
    word that does. A mask of a text that is truncated at random is also evaluated one and five tokens later.
    """
    rows: Rows = []
    for task in ("names", "agreement", "years"):
        prompts = list(islice(tasks.prompts(task), texts))
        clean = [prompt.text for prompt in prompts]
        others = {"reworded": [reworded(text) for text in clean], "its twin": [prompt.corrupted for prompt in prompts]}
        rows += transfer_rows(folder, task, clean, others | {"another of the task": clean[1:] + clean[:1]})
    rng, cuts = Random(0), list[list[str]]()
    word_lists = (text.split() for text in tasks.texts())
    for words in islice((words for words in word_lists if len(words) > 8), texts):
        at = rng.randrange(2, len(words) - 5)
        cuts.append([" ".join(words[: at + n_more]) for n_more in (0, 1, 5)])
    originals, one_later, five_later = (list(column) for column in zip(*cuts, strict=True))
    later = {"one token later": one_later, "five tokens later": five_later}
    return rows + transfer_rows(folder, "mixed", originals, later)


def reworded(prompt: str) -> str:
    """Replace every word that does not matter for the answer with the next word of its kind."""
    irrelevant = (lang.PLACES, lang.THINGS, lang.GAVE, lang.EVENTS, lang.CENTURIES, lang.ADJECTIVES, lang.PREPOSITIONS)
    replacement = {word: words[(i + 1) % len(words)] for words in irrelevant for i, word in enumerate(words)}
    return " ".join(replacement.get(word, word) for word in prompt.split())


def transfer_rows(folder: Path, task: str, texts: Sequence[str], others: dict[str, list[str]]) -> Rows:
    """Learn a mask for each text, and evaluate it on that text and on the texts in the same place of `others`."""

    def setting(name: str, rows: Sequence[str]) -> Setting:
        path = folder / f"{task}-{name.replace(' ', '-')}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
        return Setting("embedded", str(path))

    bank = learn_bank(setting("itself", texts), {"sizes": "log:6", "scope": "input"}, positions="last")
    rows: Rows = []
    for name, rows_of_name in {"itself": texts, **others}.items():
        data = setting(name, rows_of_name).data(scope="input", positions="last")
        data.setup("fit")
        scorer = MaskScorer(bank.learner.masked_lm, data.loader("all"), range(len(texts)))
        controls = subgraphs("random-matched", bank.mask)
        rows.append(
            {"masks of": task, "on": name, "KL": mean_kl(scorer, bank.masks), "random": mean_kl(scorer, controls)}
        )
    return rows
