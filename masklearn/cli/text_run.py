"""`python train.py --model.graph edges` or `positions`: from flags and YAML to a bank of single texts, evaluated."""

import json
import shutil
import sys
import time
from dataclasses import replace
from itertools import count
from math import ceil
from statistics import median_low
from typing import Any

from masklearn import evaluation
from masklearn.cli.drawing import draw_run
from masklearn.cli.run_folder import BLOCKS_FOLDER, METRICS_FILE
from masklearn.cli.run_results import mask_config, print_location, print_written
from masklearn.cli.text_cost import text_cost
from masklearn.cli.text_methods import TEXT_METHODS, Choice, ScoredTexts, TextMethod
from masklearn.cli.train_cli import TrainCLI, start_tracking
from masklearn.data import MaskData, require_readable
from masklearn.edges import MEMORY_SHARE
from masklearn.files import atomic_write
from masklearn.mask_file import MASK_FILE, ModelId
from masklearn.masking import free_bytes
from masklearn.models import input_device, load_lm, move_model, name_of
from masklearn.progress import no_bar
from masklearn.shares import TextUnit, resolve_shares
from masklearn.text_bank import TextBank
from masklearn.training.block_store import BlockStore
from masklearn.training.progress import phase_bars
from masklearn.training.settings import LearnerSettings
from masklearn.training.text_learner import TEXT_LR, TEXT_STEPS, LogStep, TextLearnerConfig


def run_texts(cli: TrainCLI, unit: TextUnit) -> None:
    """Choose the subgraphs of every text, evaluate them, and write the run's folder.

    Raises:
        UserError: If a setting does not go with them, or the model cannot be gated.
    """
    start, settings, data = time.monotonic(), cli.model.settings, cli.datamodule
    shares = resolve_shares(settings.sizes, unit)
    method = _load(cli, unit)
    choice = _choice(cli, method, shares)
    if settings.method == "learned":
        method.memory(len(shares)).require(
            data.longest_text, MEMORY_SHARE * free_bytes(input_device(method.layout.lm)), unit
        )
    if cli.estimate:
        print(_introduction(method, data, shares, settings), flush=True)
        print(text_cost(method, data, _texts(data), choice))
        return
    if not cli.resume:
        cli.folder.claim(cli.requested_yaml)
    cli.folder.settle_inputs(data, method.layout)
    lines = [
        _introduction(method, data, shares, settings),
        data.preview,
        *data.notices,
        *_short_sizes(method, data, shares),
    ]
    print("\n".join(lines), flush=True)
    if cli.tracked:
        start_tracking(cli)
        choice = replace(choice, log=_step_log(cli, choice))
    bar = phase_bars(sys.stdout) if cli.trainer.progress_bar_callback else no_bar
    chosen = time.monotonic()
    bank = replace(method.choose(_texts(data), choice, bar), config=mask_config(cli.requested))
    evaluated = time.monotonic()
    measured = method.measure(bank, data, bar)
    seconds = {"choice": evaluated - chosen, "evaluation": time.monotonic() - evaluated}
    description = evaluation.describe_texts(bank, measured, bank.config["data"])
    description["cost"] = {phase: {"seconds": round(s, 1)} for phase, s in seconds.items()}
    description["seconds"] = round(time.monotonic() - start, 1)
    _write(cli, replace(bank, metrics=measured.rows), description)
    print_location(cli.folder, cli.tracker)


def _load(cli: TrainCLI, unit: TextUnit) -> TextMethod:
    """The model, ready for gates, and the texts, set up."""
    settings, data = cli.model.settings, cli.datamodule
    data.prepare_data()
    data.setup("fit")
    lm = load_lm(
        settings.lm, settings.revision, settings.dtype,
        allow_pickle=settings.allow_pickle, trust_remote_code=settings.trust_remote_code,
    )  # fmt: skip
    move_model(lm, cli.trainer.strategy.root_device)
    method = TEXT_METHODS[unit].load(lm, data.longest_text)
    require_readable(data, method.layout)
    return method


def _choice(cli: TrainCLI, method: TextMethod, shares: list[float]) -> Choice:
    """How the run chooses subgraphs."""
    settings, layout = cli.model.settings, method.layout
    model = ModelId(name_of(layout.lm), settings.revision, layout.fingerprint)
    steps = settings.steps or TEXT_STEPS[settings.graph]
    config = TextLearnerConfig(steps, settings.lr or TEXT_LR, settings.temperature)
    return Choice(settings.method, shares, model, config, BlockStore(cli.folder / BLOCKS_FOLDER))


def _step_log(cli: TrainCLI, choice: Choice) -> LogStep:
    """Log the metrics of every step to W&B; steps are counted over the texts, those of an earlier process included."""
    assert cli.tracker
    tracker, n_texts = cli.tracker, len(cli.datamodule.parts["test"])
    steps = count(1 + choice.config.steps * sum(text in choice.store for text in range(n_texts)))
    return lambda metrics: tracker.log_metrics({f"train/{name}": value for name, value in metrics.items()}, next(steps))


def _texts(data: MaskData) -> ScoredTexts:
    """All texts of the run, up to their scored tokens."""
    ids = [evaluation.scored_text(data, "test", i).input_ids for i in range(len(data.parts["test"]))]
    return ScoredTexts(ids, data.groups.names, data.positions)


def _short_sizes(method: TextMethod, data: MaskData, shares: list[float]) -> list[str]:
    """Say how many sizes are shorter than a path through the edges of a text of median length; none for positions."""
    n_tokens, path = median_low(map(len, _texts(data).ids)), method.path_units
    least = path / method.n_units(n_tokens)
    n_short = sum(share < least for share in shares)
    if not n_short:
        return []
    return [
        f"{n_short} of {len(shares)} sizes are shorter than a path from a token to the output, {path} edges, in a text "
        f"of {n_tokens} tokens. The smallest useful share there is {ceil(1e4 * least) / 1e4:g}"
    ]


def _write(cli: TrainCLI, bank: TextBank, description: dict[str, Any]) -> None:
    """Write and print the results of a run, and remove what was kept to resume it."""
    bank.save(cli.folder / MASK_FILE)
    rows = description["sizes"]
    figures, pages = draw_run(cli.folder, bank, description, _sentence(bank))
    if cli.tracker:
        from masklearn import tracking  # imports wandb, which takes a second

        tracking.log_text_results(cli.tracker, bank, rows, cli.folder / MASK_FILE, figures)
        cli.tracker.finish()
    metrics_file = cli.folder / METRICS_FILE
    atomic_write(metrics_file, json.dumps(description, indent=2).encode())  # last: it marks a finished run
    shutil.rmtree(cli.folder / BLOCKS_FOLDER, ignore_errors=True)  # the bank holds all of them
    report = evaluation.format_report(description)
    print(f"\nResults on {len(bank.groups)} texts, each under its own {bank.unit}.\n\n{report}")
    print_written(description, cli.folder / MASK_FILE, metrics_file, *figures, *pages)


def _sentence(bank: TextBank) -> str:
    """The bank in a sentence."""
    percent = ", ".join(f"{100 * share:.3g}" for share in bank.shares)
    return f"Subgraphs of {percent} % of the {bank.unit} of {len(bank.groups)} texts, chosen by {bank.method}"


def _introduction(method: TextMethod, data: MaskData, shares: list[float], settings: LearnerSettings) -> str:
    """Model, texts and sizes of the run, a line each."""
    percent = ", ".join(f"{100 * share:.3g}" for share in shares)
    n_texts, longest = len(data.parts["test"]), data.longest_text
    return (
        f"Model: {settings.lm}, {method.layers}\n"
        f"Text: {data.source}, {n_texts} texts of up to {longest} tokens, each with its own graph\n"
        f"Searching for subgraphs of {percent} % of the {settings.graph}, method {settings.method}; what is closed "
        "emits zero"
    )
