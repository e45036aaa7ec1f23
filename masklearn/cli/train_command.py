"""`python train.py`: from flags and YAML to masks that are trained, evaluated, logged and saved."""

import sys
import time
from dataclasses import replace
from typing import Any

from lightning import Callback

from masklearn import evaluation, ranks
from masklearn.cli.checkpoints import LAST_CHECKPOINT, AtomicCheckpointIO, newest_intact
from masklearn.cli.cost_table import actual_costs, compared_costs
from masklearn.cli.run_folder import CONFIG_FILE
from masklearn.cli.run_parts import (
    all_ranks,
    claim_folder,
    finish_shard,
    idle_notice,
    next_step,
    rank_metrics,
    require_work,
    throughput,
)
from masklearn.cli.run_results import mask_config, print_location, print_results, write_results
from masklearn.cli.text_run import run_texts
from masklearn.cli.train_cli import TrainCLI, start_tracking
from masklearn.cli.trainer_flags import check_validation_interval, flags_without, limiting_flags, name_limits
from masklearn.cli.user_messages import user_message
from masklearn.data import MaskData
from masklearn.errors import NonFiniteLoss, UserError
from masklearn.mask_file import Mask
from masklearn.models import describe_placement
from masklearn.training.learner import MaskLearner
from masklearn.training.probe import what_fits
from masklearn.training.progress import phase_bars


def run_training(args: list[str] | None) -> None:
    """Run `python train.py`.

    Args:
        args: The command line; that of the process by default.

    Raises:
        UserError: If a setting or a file is not valid, or if the run is stopped; says how to resume it.
    """
    cli = TrainCLI(args)
    cli.trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    try:
        with all_ranks(cli):
            _run(cli)
    except (KeyboardInterrupt, RuntimeError) as error:
        if not (message := user_message(error)):
            raise
        raise UserError(f"{message}. {next_step(cli)}") from error
    finally:
        if cli.tracker:
            cli.tracker.finish()
        cli.folder.release()


def _run(cli: TrainCLI) -> None:
    start = time.monotonic()
    if cli.resume:
        cli.folder.require_same_settings(cli.requested)
    elif cli.is_shard and (cli.folder / CONFIG_FILE).is_file():
        cli.folder.require_same_settings(cli.requested, "run.shard")
    if (cli.resume or cli.is_shard) and _report_finished(cli):
        return
    if not cli.resume:
        cli.model.settings.require_revisions()
    if cli.resume and not cli.is_shard and ranks.rank() == 0:
        cli.folder.acquire()
    if (graph := cli.model.settings.graph) != "nodes":
        run_texts(cli, graph)
        return
    _prepare(cli)
    if cli.estimate:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        if not cli.probe.costs:
            limits = limiting_flags(cli.requested["trainer"])
            raise UserError(f"the run was stopped before its cost was measured, by {name_limits(limits)}. Leave it out")
        return
    _fit(cli)
    if cli.is_shard:
        finish_shard(cli)
        return
    mask = _discretize(cli)
    description = _evaluate(cli, mask)
    if ranks.count() > 1:
        description["ranks"] = throughput(cli.model)
    if ranks.rank():
        return
    if cli.tracker and ranks.count() > 1:
        cli.tracker.log_metrics(rank_metrics(description["ranks"]))
    description["cost"] = actual_costs(cli.probe.costs, cli.model.clock.seconds)
    description["seconds"] = round(time.monotonic() - start, 1)
    write_results(cli.folder, mask, description, cli.tracker)
    print_results(cli.model, cli.datamodule, description)
    if description["cost"]:  # unless nothing was left to learn
        print(f"\n{compared_costs(description['cost'], cli.model.settings.polish > 0)}")
    print_location(cli.folder, cli.tracker)


def _report_finished(cli: TrainCLI) -> bool:
    """Print the results of the run in the folder if it is finished; return whether it is."""
    results = cli.folder.results()
    if results:
        print(f"This run is finished.\n\n{evaluation.format_report(results)}\n\nFolder: {cli.folder.path}")
    return bool(results)


def _prepare(cli: TrainCLI) -> None:
    """Load the data and the model, plan the blocks, claim the folder of a new run, and start tracking."""
    learner, data = cli.model, cli.datamodule
    ranks.first_alone(data.prepare_data)
    data.setup("fit")
    learner.load()
    learner.masked_lm.move(cli.trainer.strategy.root_device)
    if cli.estimate and (lacking := what_fits(learner.masked_lm, data, learner.settings)):
        raise UserError(f"the run does not fit into memory: {lacking}")
    notice = learner.plan_blocks(data)
    check_validation_interval(cli.trainer, learner.plan.steps)
    require_work(cli)
    if cli.trainer.progress_bar_callback:
        learner.bar = phase_bars(sys.stdout)
    if cli.estimate:
        learner.deal_blocks(data)
    else:
        claim_folder(cli)
    if cli.tracked and ranks.rank() == 0:
        _start_tracking(cli)
    warning = evaluation.implausible_answers(learner.masked_lm, data)
    placement, idle = describe_placement(learner.masked_lm.lm), idle_notice(learner, data, cli.shard[1])
    lines = [_introduction(learner, data), placement, data.preview, *data.notices, notice, idle, warning]
    print("\n".join(line for line in lines if line), flush=True)


def _start_tracking(cli: TrainCLI) -> None:
    """Log the run to W&B, with histograms of its gates."""
    from masklearn import tracking  # imports wandb, which takes a second

    tracker = start_tracking(cli)
    callbacks: list[Callback] = cli.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    callbacks += [tracking.GateHistograms(), tracking.RelogCallback(tracker)]


def _introduction(learner: MaskLearner, data: MaskData) -> str:
    """Model, texts and sizes of the run, a line each."""
    graph, splits, n_groups = learner.graph, data.parts, len(data.groups.names)
    nodes = f"{graph.n_nodes} nodes = {graph.n_layers} layers x ({graph.n_heads} heads + 1 MLP)"
    model = f"Model: {learner.settings.lm}, {nodes}"
    if data.groups.held_out:
        counts = [f"{len(splits[name])} {name}" for name in ("train", "validation", "test")]
        texts = f"Text: {data.source}, {', '.join(counts)}"
    else:
        texts = f"Text: {data.source}, {len(splits['all'])} texts, each learned and evaluated by itself"
    groups = f" for each of {n_groups} groups, {learner.plan.groups_per_block} at a time," if n_groups > 1 else ""
    *first, last = map(str, learner.sizes)
    sizes = f"{', '.join(first)} and {last}" if first else last
    return f"{model}\n{texts}\nSearching for masks of {sizes} nodes{groups} under {learner.settings.ablation} ablation"


def _fit(cli: TrainCLI) -> None:
    """Train to the last step.

    Raises:
        UserError: If training stopped earlier; says what is kept and how to resume.
    """
    learner, trainer, folder = cli.model, cli.trainer, cli.folder
    may_resume = cli.resume and not cli.deals_blocks
    checkpoint, notice = ranks.from_first(newest_intact(folder.path) if may_resume else (None, ""))
    if notice:
        print(notice, flush=True)
    try:
        with learner.clock.time("learning"):
            trainer.fit(learner, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # `Stopped` between two steps, or Lightning's answer to a Ctrl-C before the first
        raise UserError(f"stopped at step {trainer.global_step}. Go on with: {folder.resume_command}") from None
    except RuntimeError as error:
        if isinstance(error.__context__, UserError):  # Lightning failed to clear the memory after it
            raise error.__context__ from None
        raise
    except NonFiniteLoss as error:
        last = folder / LAST_CHECKPOINT
        raise NonFiniteLoss(
            f"{error}. The last good state is kept in {last}" if last.is_file() else str(error)
        ) from error
    if learner.plan.goes_on(trainer.global_step):  # saved now, a checkpoint would mark the run as finished
        limits = limiting_flags(cli.requested["trainer"])
        raise UserError(
            f"stopped at step {trainer.global_step} of {learner.plan.total_steps} by {name_limits(limits)}. Resume "
            f"without it from the last checkpoint. Go on with: {folder.resume_command}{flags_without(limits)}"
        )
    if not cli.deals_blocks:
        trainer.save_checkpoint(folder / LAST_CHECKPOINT)
    if cli.stop.stop_signal:  # it came in the last step
        raise KeyboardInterrupt


def _discretize(cli: TrainCLI) -> Mask:
    """Discrete masks from the trained gates, with the settings they depend on."""
    learner = cli.model
    print(_what_is_discretized(learner), flush=True)
    mask = replace(learner.discretize(), config=mask_config(cli.requested))
    for notice in learner.notices:
        print(notice, flush=True)
    return mask


def _what_is_discretized(learner: MaskLearner) -> str:
    """What is left to do from gates to masks; nothing if shards are merged, or if an earlier process did it."""
    n_blocks = len(learner.plan.blocks)
    if learner.constants is None and all(block in learner.store for block in range(n_blocks)):
        return f"Gathering the masks of {n_blocks} block{'s' * (n_blocks > 1)} of groups, which are finished"
    return "Discretising masks" + ", then polishing them (node swaps that lower the KL)" * bool(learner.settings.polish)


def _evaluate(cli: TrainCLI, mask: Mask) -> dict[str, Any]:
    """The content of `metrics.json` but for the seconds: the masks' metrics on the test split."""
    learner, data = cli.model, cli.datamodule
    print(f"Evaluating on {evaluation.texts_in_words(data)}", flush=True)
    batches = data.loader("test", by_length=True)
    with learner.clock.time("evaluation"):
        rows, by_group = evaluation.evaluate(learner.masked_lm, mask, batches, bar=learner.bar, on_ranks=True)
    description = evaluation.describe(mask, rows, by_group, mask.config["data"])
    sizes = learner.expected_sizes() if learner.plan.own else {}  # no gates are at hand if shards were merged
    return description | {"expected_sizes": sizes, "discretisation": learner.stages}
