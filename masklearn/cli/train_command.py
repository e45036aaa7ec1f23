"""`python train.py`: flags and YAML to a trained, evaluated, tracked and exported bank."""

import json
import os
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from masklearn import evaluation
from masklearn.cli.checkpoints import LAST, REQUEUED, StepCheckpoint, WholeCheckpoints, newest_sound
from masklearn.cli.drawing import can_draw
from masklearn.cli.parsing import as_user_errors, require_complete, require_harmless_configs
from masklearn.cli.run_folder import BLOCKS, CONFIG, MASK, RESULTS, RunFlags, RunFolder
from masklearn.cli.stopping import StopBetweenSteps
from masklearn.data import MaskData
from masklearn.density.study_folder import FIGURES_FOLDER
from masklearn.errors import NonFiniteLoss, UserError, one_line
from masklearn.files import atomic_write
from masklearn.mask_file import Mask
from masklearn.training.block_store import BlockStore
from masklearn.training.learner import SHARED_STEPS, MaskLearner

if TYPE_CHECKING:
    from masklearn.tracking import Tracker

CHECKPOINT_EVERY = 50
"""Steps between two checkpoints: what a kill can cost at most."""
VALIDATE_EVERY = 50
"""Steps between two looks at the validation split."""


class Progress(TQDMProgressBar):
    """One line: steps and time left; groups done and their rate; KL, expected and wanted size (means), temperature."""

    began: float | None = None
    first = 0

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics = {name: value for name, value in metrics.items() if name != "v_num"}
        assert isinstance(pl_module, MaskLearner)
        n_groups = sum(map(len, pl_module.plan.blocks))
        if n_groups == 1:
            return metrics
        done = sum(map(len, pl_module.plan.blocks[: trainer.global_step // pl_module.plan.steps]))
        if self.began is None:
            self.began, self.first = time.monotonic(), done
        rate = (done - self.first) / (time.monotonic() - self.began + 1e-9)
        return {"done": f"{done}/{n_groups}"} | ({"per_s": f"{rate:.2g}"} if done > self.first else {}) | metrics

    def init_validation_tqdm(self) -> Tqdm:
        """No second bar that comes and goes; one that is switched off later has left its trace already."""
        return Tqdm(disable=True)


class TrainCLI(LightningCLI):
    """Lightning's command line over a `MaskLearner`, a `MaskData` and the trainer, without subcommands."""

    def __init__(self, args: list[str] | None = None) -> None:
        super().__init__(
            MaskLearner,
            MaskData,
            args=args,
            run=False,
            auto_configure_optimizers=False,
            save_config_callback=None,  # we write config.yaml when nothing can be wrong any more
            seed_everything_default=False,
            parser_kwargs={
                "prog": "train.py",
                "exit_on_error": False,
                "allow_abbrev": False,
                "description": TRAIN_HELP,
            },
            trainer_defaults={
                "accelerator": "cuda" if torch.cuda.is_available() else "cpu",
                "devices": 1,
                "max_epochs": 1,  # a run is one pass over the steps of all blocks
                "log_every_n_steps": 1,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(RunFlags, "run")
        parser.link_arguments("model.lm", "data.lm")
        parser.link_arguments("model.revision", "data.revision")
        parser.link_arguments("model.scope", "data.scope")
        parser.link_arguments("model.max_groups", "data.max_groups")
        parser.link_arguments("model.trust_remote_code", "data.trust_remote_code")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        require_harmless_configs(sys.argv[1:] if args is None else args)
        with as_user_errors(parser):
            super().parse_arguments(parser, args)
        given = self.config.as_dict()
        for room, default in parser.get_defaults(skip_validation=True).as_dict().items():
            if room in ("model", "data", "trainer", "run"):
                require_complete(given.get(room), default, room)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, KeyError, ImportError) as error:
            raise UserError(f"trainer: {one_line(error)}") from error

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"seed_everything: {one_line(error)}") from error

    def before_instantiate_classes(self) -> None:
        """Settle the folder; keep the config to be written as it was asked for."""
        config = self.config
        self.resume = bool(config.run.resume) or _requeued(config.run.dir)
        given = Path(str(config.config[-1])) if config.config else None
        if self.resume and given and given.name == CONFIG and not _of_no_run(given, config.run.dir):
            config.run.dir = str(given.parent)  # wherever the folder has moved
        if config.run.dir == "":
            raise UserError("run.dir is empty. Leave it out, or name a folder")
        if config.run.dir is None:
            if self.resume:
                raise UserError(
                    f"run.resume needs the run to go on with. Give its --config .../{CONFIG}, or its --run.dir"
                )
            name = given.stem if given else "default"
            config.run.dir = str(Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
        _require_sound(config.trainer)
        self.folder = RunFolder(Path(config.run.dir))
        asked = config.clone()
        asked.run.resume = False
        self.asked_yaml = self.parser.dump(asked, skip_unset=False)
        self.asked: dict[str, Any] = yaml.safe_load(self.asked_yaml)
        self.tracked = config.trainer.logger in (None, True)
        if self.tracked:
            config.trainer.logger = False  # made later, when there is something to track
        config.trainer.default_root_dir = str(self.folder.path)
        if config.model.scope != "dataset":
            config.trainer.limit_val_batches = 0  # there are as many blocks to watch as there are validation splits
        else:
            _settle_validation(config.trainer, config.model.steps or SHARED_STEPS[0])
        self.stop = StopBetweenSteps()
        self.tracker: Tracker | None = None
        checkpoint = StepCheckpoint(
            str(self.folder / LAST.parent),
            filename=LAST.stem,
            every_n_train_steps=CHECKPOINT_EVERY,
            enable_version_counter=False,
            save_on_exception=True,
        )
        self.trainer_defaults["callbacks"] = [
            *([] if config.trainer.enable_checkpointing is False else [checkpoint]),
            *([] if config.trainer.enable_progress_bar is False else [Progress()]),
            self.stop,
        ]


TRAIN_HELP = """Learn which attention heads and MLPs of a frozen language model are needed.
Every flag is also a key of a YAML file: see --print_config. Flags after --config override it."""


UNSUPPORTED_TRAINER_FLAGS = {
    "precision": "Choose the precision of the frozen model with --model.dtype; gates stay float32",
    "accumulate_grad_batches": "Choose the texts of a step with --data.batch_size",
    "max_epochs": "Choose the number of steps with --model.steps",
    "limit_train_batches": "Choose the number of steps with --model.steps",
    "fast_dev_run": "For a quick look, use --model.steps 10 --data.limit 30",
}
"""Flags of Lightning's that would make something else of a run, and what to use in their place."""


def _of_no_run(config: Path, folder: str | None) -> bool:
    """Whether a config only has the name of a run's: it names no folder, or one that holds a run, and is of none."""
    return folder is None or ((Path(folder) / CONFIG).is_file() and not (config.parent / LAST.parent).is_dir())


def _requeued(folder: str | None) -> bool:
    """Whether this is a SLURM job that was put back into the queue, and so begins again with its first command."""
    return bool(folder) and os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and (Path(folder) / CONFIG).is_file()


def _require_sound(trainer: Any) -> None:
    """Refuse trainer flags under which a run would not be what it says."""
    for flag, instead in UNSUPPORTED_TRAINER_FLAGS.items():
        if trainer[flag] is True or trainer[flag] not in (None, 1, False, "32", 32, "32-true"):
            raise UserError(f"trainer.{flag} is {trainer[flag]}, but masklearn settles it itself. {instead}")
    for flag, one in {"devices": (1, "1", [0]), "num_nodes": (1,)}.items():
        if trainer[flag] not in one:
            format_report = f"trainer.{flag} is {trainer[flag]}"
            raise UserError(f"{format_report}; a run takes one device. Start a run per device instead")


def _settle_validation(trainer: Any, steps: int) -> None:
    """When to look at the validation split; refuses what Lightning would, once a run has begun."""
    every = trainer.val_check_interval
    if every is None:
        trainer.val_check_interval = max(1, min(VALIDATE_EVERY, steps))
    elif isinstance(every, int) and every > steps and trainer.check_val_every_n_epoch is not None:
        raise UserError(f"trainer.val_check_interval is {every}, but the run has {steps} steps. Choose at most so many")


def run_training(args: list[str] | None) -> None:
    cli = TrainCLI(args)
    cli.trainer.strategy.checkpoint_io = WholeCheckpoints()
    try:
        _run(cli)
    except KeyboardInterrupt:
        begun = (cli.folder / CONFIG).is_file()
        raise UserError(
            "stopped. " + (f"Go on with: {cli.folder.how_to_resume}" if begun else "Nothing was begun")
        ) from None
    finally:
        if cli.tracker:
            from masklearn import tracking

            tracking.finish(cli.tracker)
        cli.folder.release()


def _run(cli: TrainCLI) -> None:
    began = time.monotonic()
    learner, data, trainer, folder = cli.model, cli.datamodule, cli.trainer, cli.folder
    if cli.resume:
        folder.require_same(cli.asked)
        results = folder.results()
        if results:
            print(f"This run is finished.\n\n{evaluation.format_report(results)}\n\nIt lies in {folder.path}")
            return
        folder.hold()
    data.prepare_data()
    data.setup("fit")
    learner.load()
    learner.masked_lm.move(trainer.strategy.root_device)
    remark = learner.plan_blocks(data)
    learner.store = BlockStore(folder / BLOCKS)
    if not cli.resume:
        folder.claim(cli.asked_yaml)
    logger = _start_tracking(cli)
    print("\n".join([_introduction(learner, data), *data.notices, *([remark] if remark else [])]), flush=True)
    _fit(cli)
    swapping = ", and swapping their nodes where that lowers the KL" if learner.polish_rounds else ""
    print(f"Cutting masks{swapping}", flush=True)
    if trainer.progress_bar_callback:
        learner.bar = partial(Tqdm, desc="Polish", unit="mask", file=sys.stdout)  # as the trainer's bars
    mask = replace(learner.discretize(), config=_mask_config(cli.asked))
    print(f"Evaluating on {len(data.parts['test'])} {_which(data)} texts", flush=True)
    batches = data.loader("test", by_length=True)
    rows, own = evaluation.evaluate(learner.masked_lm, mask, batches)
    described = evaluation.describe(mask, rows, own, mask.config["data"]) | {"expected_sizes": learner.expected_sizes()}
    described["discretisation"] = learner.stages
    _write_results(folder, mask, described | {"seconds": round(time.monotonic() - began, 1)}, logger)
    watched = "the texts that select them" if data.groups.held_out else "their own texts"
    stages = evaluation.stages_table(learner.stages)
    print(f"\nFrom gates to masks, on {watched}, nats per scored token:\n\n{stages}")
    print(f"\n{_which(data).capitalize()} texts, nats per scored token:\n\n{evaluation.format_report(described)}")


def _fit(cli: TrainCLI) -> None:
    """Train to the end.

    Raises:
        UserError: If it stopped before; says what is kept and how to go on.
    """
    learner, trainer, folder = cli.model, cli.trainer, cli.folder
    resume_from, remark = newest_sound(folder.path) if cli.resume else (None, "")  # none yet: from the start
    if remark:
        print(remark, flush=True)
    try:
        trainer.fit(learner, datamodule=cli.datamodule, ckpt_path=resume_from, weights_only=True)
    except SystemExit:  # ours between steps, or Lightning's answer to a Ctrl-C before the first
        raise UserError(f"stopped at step {trainer.global_step}. Go on with: {folder.how_to_resume}") from None
    except NonFiniteLoss as error:
        kept = f". The last good state is kept in {folder / LAST}" if (folder / LAST).is_file() else ""
        raise NonFiniteLoss(f"{error}{kept}") from error
    if trainer.global_step < learner.plan.total:  # and no checkpoint now: Lightning takes the run for finished
        raise UserError(
            f"stopped at step {trainer.global_step} of {learner.plan.total}, as a trainer flag asked. "
            f"Go on without it from the last checkpoint: {folder.how_to_resume}{_unlimited(cli.asked['trainer'])}"
        )
    trainer.save_checkpoint(folder / LAST)
    if cli.stop.asked:  # in the last step
        raise KeyboardInterrupt


def _unlimited(trainer: dict[str, Any]) -> str:
    """The flags that take back what a run's config says of where to stop."""
    limits = {"max_steps": "-1", "max_time": "null"}
    return "".join(f" --trainer.{flag} {none}" for flag, none in limits.items() if trainer[flag] not in (None, -1))


def _start_tracking(cli: TrainCLI) -> "Tracker | None":
    if not cli.tracked:
        return None
    from masklearn import tracking  # only when asked for: importing wandb takes a while

    logger, where = tracking.logger_for(cli.folder.path, cli.asked, resume=cli.resume)
    cli.trainer.logger = cli.tracker = logger
    callbacks: list[Callback] = cli.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    callbacks += [tracking.GateHistograms(), tracking.RelogCallback(logger)]
    print(where)
    return logger


def _mask_config(asked: dict[str, Any]) -> dict[str, Any]:
    """The settings that masks depend on: not where their run lies, nor how many processes put its batches together."""
    data = {key: value for key, value in asked["data"].items() if key != "workers"}
    return {room: value for room, value in asked.items() if room != "run"} | {"data": data}


def _which(data: MaskData) -> str:
    return "held-out" if data.groups.held_out else "their own"


def _introduction(learner: MaskLearner, data: MaskData) -> str:
    graph, parts, names = learner.graph, data.parts, data.groups.names
    lines = [f"Model: {learner.lm}, {graph.n_nodes} nodes = {graph.n_layers} layers x ({graph.n_heads} heads + 1 MLP)"]
    if data.groups.held_out:
        lines.append(
            f"Text: {data.source}, {len(parts['train'])} to learn on, {len(parts['validation'])} to watch, "
            f"{len(parts['test'])} to report on"
        )
    else:
        lines.append(f"Text: {data.source}, {len(parts['all'])}, each learned and reported on by itself")
    shared = f" for each of {len(names)} groups, {learner.block} at a time," if len(names) > 1 else ""
    sizes = ", ".join(map(str, learner.sizes))
    return "\n".join([*lines, f"Learning the best {sizes} nodes{shared} under {learner.ablation_name} ablation"])


def _write_results(folder: RunFolder, mask: Mask, described: dict[str, Any], logger: "Tracker | None") -> None:
    rows = described["sizes"]
    mask = mask.with_metrics(rows)
    mask_file, results = folder / MASK, folder / RESULTS
    figures = _draw(folder / FIGURES_FOLDER, mask, rows)
    mask.save(mask_file)
    if logger:
        from masklearn import tracking

        tracking.log_results(logger, mask, rows, mask_file, figures)
        tracking.finish(logger)
    atomic_write(results, json.dumps(described, indent=2).encode())  # last: a run that has it is finished
    shutil.rmtree(folder / BLOCKS, ignore_errors=True)  # the mask file holds them all
    for requeued in folder.path.glob(REQUEUED):
        requeued.unlink()
    written = ", ".join(str(path) for path in (mask_file, results, *figures))
    print(f"\nWritten in {described['seconds']:.0f} s: {written}")


def _draw(folder: Path, mask: Mask, rows: list[evaluation.Row]) -> list[Path]:
    if not can_draw():
        return []
    from masklearn import report  # matplotlib takes a second to import

    return report.write_figures(folder, mask, rows)
