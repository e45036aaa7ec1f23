"""What a run on single texts will cost: from its first text, chosen with few steps and evaluated."""

import time
from dataclasses import replace

from masklearn.cli.cost_table import PhaseCost, cost_table, duration
from masklearn.cli.half_precision import half_precision_note
from masklearn.cli.text_methods import Choice, ScoredTexts, TextMethod
from masklearn.data import MaskData
from masklearn.models import input_device
from masklearn.progress import no_bar
from masklearn.text_bank import TextBank
from masklearn.training.block_store import BlockStore
from masklearn.training.cost import FORWARD_AND_BACKWARD, Phase, peak_memory
from masklearn.training.text_learner import CHECK_EVERY


def text_cost(method: TextMethod, data: MaskData, texts: ScoredTexts, choice: Choice) -> str:
    """The expected forwards, time and memory of a run, as a table.

    Learning is timed on the first text with one step, and with `CHECK_EVERY` more and the check that comes with them.
    Other texts are taken to cost as much for each token.

    Args:
        method: The model.
        data: The texts, set up.
        texts: The same, up to their scored tokens.
        choice: How subgraphs are chosen.
    """
    start = time.monotonic()
    first = texts._replace(ids=texts.ids[:1], names=texts.names[:1])
    per_first = sum(map(len, texts.ids)) / len(first.ids[0])
    learned, steps = choice.method == "learned", choice.config.steps
    with peak_memory(input_device(method.layout.lm)) as choice_peak:
        bank, seconds = _timed(method, first, choice, 1)
        if learned:
            _, seconds_of_more = _timed(method, first, choice, 1 + CHECK_EVERY)
            seconds += max(0.0, seconds_of_more - seconds) * (steps - 1) / CHECK_EVERY
    with peak_memory(input_device(method.layout.lm)) as evaluation_peak:
        evaluated = time.monotonic()
        measurer, _ = method.evaluate(bank, data, no_bar)
        evaluation_seconds = time.monotonic() - evaluated
    n_sizes, tokens = len(choice.shares), sum(map(len, texts.ids))
    n_checks = 2 + (steps - 1) // CHECK_EVERY
    rows = (FORWARD_AND_BACKWARD * steps + n_checks) * n_sizes if learned else 1
    costs: dict[Phase, PhaseCost] = {
        "choice": PhaseCost(rows * tokens, seconds * per_first, choice_peak[0]),
        "evaluation": PhaseCost(
            (1 + measurer.n_subgraphs) * tokens, evaluation_seconds * per_first, evaluation_peak[0]
        ),
    }
    left = sum(cost.seconds for cost in costs.values())
    source = f"the first of {len(texts.ids)} texts in {duration(time.monotonic() - start)}"
    notes = [half_precision_note(method.layout.lm, left)]
    if learned:
        needed = method.memory(n_sizes)(data.longest_text) / 2**30
        longest = f"Learning the longest text, of {data.longest_text} tokens, takes up to {needed:.2f} GiB"
        notes.append(f"{longest} beside the model")
    return cost_table(costs, left, source, "\n".join(filter(None, notes)))


def _timed(method: TextMethod, texts: ScoredTexts, choice: Choice, steps: int) -> tuple[TextBank, float]:
    """The bank of some texts with so many steps, none of which is kept; and its seconds."""
    start = time.monotonic()
    config = replace(choice.config, steps=steps)
    bank = method.choose(texts, replace(choice, config=config, store=BlockStore(), log=None), no_bar)
    return bank, time.monotonic() - start
