"""`python train.py --model.graph edges`: from flags and YAML to a bank of edges that is evaluated and saved."""

import json
import shutil
import sys
import time
from dataclasses import replace
from functools import partial

from masklearn import evaluation
from masklearn.cli.drawing import can_draw, draw_run_page
from masklearn.cli.run_folder import BLOCKS_FOLDER, METRICS_FILE
from masklearn.cli.run_results import mask_config, print_location
from masklearn.cli.train_cli import TrainCLI
from masklearn.data import MaskData, require_readable
from masklearn.density.study_folder import REPORT_FILE
from masklearn.edges import (
    EdgeBank,
    EdgeLM,
    by_strace,
    edge_bank,
    edge_shares,
    require_memory,
    verified_edge_lm,
)
from masklearn.files import atomic_write
from masklearn.mask_file import MASK_FILE, ModelId
from masklearn.models import Layout, load_lm, move_model, name_of
from masklearn.progress import ProgressBar, no_bar
from masklearn.training.block_store import BlockStore
from masklearn.training.edge_learner import EDGE_LR, EDGE_STEPS, EdgeLearnerConfig, learn_edges
from masklearn.training.edge_store import stored
from masklearn.training.progress import phase_bars
from masklearn.training.settings import LearnerSettings


def run_edges(cli: TrainCLI) -> None:
    """Choose the edges of every text, evaluate them, and write the run's folder.

    Raises:
        UserError: If a setting does not go with edges, or the model's edges cannot be gated.
    """
    start, settings, data = time.monotonic(), cli.model.settings, cli.datamodule
    shares = edge_shares(settings.sizes)
    data.prepare_data()
    data.setup("fit")
    lm = load_lm(
        settings.lm, settings.revision, settings.dtype,
        allow_pickle=settings.allow_pickle, trust_remote_code=settings.trust_remote_code,
    )  # fmt: skip
    move_model(lm, cli.trainer.strategy.root_device)
    layout = Layout.of(lm)
    require_readable(data, layout)
    require_memory(layout.graph, data.longest_text)
    edge_lm = verified_edge_lm(layout)
    if not cli.resume:
        cli.folder.claim(cli.requested_yaml)
    print("\n".join([_introduction(edge_lm, data, shares, settings), data.preview, *data.notices]), flush=True)
    bar = phase_bars(sys.stdout) if cli.trainer.progress_bar_callback else no_bar
    chosen = time.monotonic()
    bank = _choose(cli, edge_lm, shares, bar)
    evaluated = time.monotonic()
    measurer, rows = evaluation.evaluate_edges(edge_lm, bank, data, "test", bar=bar)
    seconds = {"choice": evaluated - chosen, "evaluation": time.monotonic() - evaluated}
    description = evaluation.describe_edges(bank, rows, measurer, bank.config["data"])
    description["cost"] = {phase: {"seconds": round(s, 1)} for phase, s in seconds.items()}
    description["seconds"] = round(time.monotonic() - start, 1)
    replace(bank, metrics=rows).save(cli.folder / MASK_FILE)
    if can_draw():
        draw_run_page(cli.folder / REPORT_FILE, bank, description, _sentence(bank))
    metrics_file = cli.folder / METRICS_FILE
    atomic_write(metrics_file, json.dumps(description, indent=2).encode())  # last: it marks a finished run
    shutil.rmtree(cli.folder / BLOCKS_FOLDER, ignore_errors=True)  # the bank holds all of them
    print(
        f"\nResults on {len(bank.groups)} texts, each under its own edges.\n\n{evaluation.format_report(description)}"
    )
    print(f"\nWritten after {description['seconds']:.0f} s: {cli.folder / MASK_FILE}, {metrics_file}")
    print_location(cli.folder, cli.tracker)


def _sentence(bank: EdgeBank) -> str:
    """The bank in a sentence."""
    percent = ", ".join(f"{100 * share:.3g}" for share in bank.shares)
    return f"Subgraphs of {percent} % of the edges of {len(bank.groups)} texts, chosen by {bank.method}"


def _choose(cli: TrainCLI, edge_lm: EdgeLM, shares: list[float], bar: ProgressBar) -> EdgeBank:
    settings, data = cli.model.settings, cli.datamodule
    texts = [evaluation.scored_text(data, "test", i).input_ids for i in range(len(data.parts["test"]))]
    model = ModelId(name_of(edge_lm.layout.lm), settings.revision, edge_lm.layout.fingerprint)
    names = data.groups.names
    choose = by_strace(shares)
    if settings.method == "learned":
        config = EdgeLearnerConfig(settings.steps or EDGE_STEPS, settings.lr or EDGE_LR, settings.temperature)
        choose = stored(
            partial(learn_edges, edge_lm, shares=shares, config=config), BlockStore(cli.folder / BLOCKS_FOLDER)
        )
    bank = edge_bank(edge_lm, texts, names, shares, model, choose, settings.method, data.positions, bar)
    return replace(bank, config=mask_config(cli.requested))


def _introduction(edge_lm: EdgeLM, data: MaskData, shares: list[float], settings: LearnerSettings) -> str:
    """Model, texts and sizes of the run, a line each."""
    graph, longest = edge_lm.layout.graph, data.longest_text
    kind = "parallel" if edge_lm.sites.parallel else "sequential"
    percent = ", ".join(f"{100 * share:.3g}" for share in shares)
    return (
        f"Model: {settings.lm}, {graph.n_layers} {kind} layers x {graph.n_heads} heads\n"
        f"Text: {data.source}, {len(data.parts['test'])} texts of up to {longest} tokens, each with its own graph\n"
        f"Searching for subgraphs of {percent} % of the edges, method {settings.method}; closed edges emit zero"
    )
