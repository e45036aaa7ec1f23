"""`python train.py`: flags and YAML to a trained, evaluated, tracked and exported bank."""

import json
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from masklearn import evaluation
from masklearn.artifact import Mask, write_whole
from masklearn.cli.parsing import explained
from masklearn.data import MaskData
from masklearn.errors import NonFiniteLoss, UserError
from masklearn.learner import MaskLearner

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

CHECKPOINT_EVERY = 50
"""Steps between two checkpoints: what a kill can cost at most."""
VALIDATE_EVERY = 50
"""Steps between two looks at the validation split."""
LAST = Path("checkpoints") / "last.ckpt"


class RunFolder:
    """Where everything of a run goes.

    Args:
        dir: Folder of the run; runs/<config>-<time> by default.
        resume: Go on with the run in that folder, from its last checkpoint.
    """

    def __init__(self, dir: str | None = None, resume: bool = False) -> None:
        self.dir, self.resume = dir, resume


class Progress(TQDMProgressBar):
    """One line: KL, expected and wanted size (means over the sizes), temperature."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}

    def init_validation_tqdm(self) -> Tqdm:
        """No second bar that comes and goes."""
        bar = super().init_validation_tqdm()
        bar.disable = True
        return bar


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
                "max_epochs": 1,  # a run is one pass of model.steps batches
                "log_every_n_steps": 1,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(RunFolder, "run")
        parser.link_arguments("model.lm", "data.lm")
        parser.link_arguments("model.revision", "data.revision")
        parser.link_arguments("model.steps", "trainer.max_steps")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with explained(parser):
            super().parse_arguments(parser, args)

    def before_instantiate_classes(self) -> None:
        """Settle the folder; keep the config to be written as it was asked for."""
        config = self.config
        if config.run.dir is None:
            if config.run.resume:
                raise UserError(
                    "run.resume needs the run to go on with. Give its --config .../config.yaml, or --run.dir"
                )
            name = Path(str(config.config[-1])).stem if config.config else "default"
            config.run.dir = str(Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
        self.folder = Path(config.run.dir)
        asked = config.clone()
        asked.run.resume = False
        self.asked_yaml = self.parser.dump(asked, skip_unset=False)
        self.asked = asked
        self.resume = bool(config.run.resume)
        self.tracked = config.trainer.logger in (None, True)
        if self.tracked:
            config.trainer.logger = False  # made later, when there is something to track
        config.trainer.default_root_dir = str(self.folder)
        if config.trainer.val_check_interval is None:
            config.trainer.val_check_interval = max(1, min(VALIDATE_EVERY, config.model.steps))
        checkpoint = ModelCheckpoint(
            self.folder / LAST.parent,
            filename=LAST.stem,
            every_n_train_steps=CHECKPOINT_EVERY,
            enable_version_counter=False,
            save_on_exception=True,
        )
        self.trainer_defaults["callbacks"] = [
            *([] if config.trainer.enable_checkpointing is False else [checkpoint]),
            *([] if config.trainer.enable_progress_bar is False else [Progress()]),
        ]


TRAIN_HELP = """Learn which attention heads and MLPs of a frozen language model are needed.
Every flag is also a key of a YAML file: see --print_config. Flags after --config override it."""


def run_training(args: list[str] | None) -> None:
    cli = TrainCLI(args)
    began = time.monotonic()
    learner, data, trainer = cli.model, cli.datamodule, cli.trainer
    finished = _finished(cli.folder) if cli.resume else None
    if finished:
        print(f"This run is finished.\n\n{finished}\n\nIt lies in {cli.folder}")
        return
    data.prepare_data()
    data.setup("fit")
    learner.load()
    checkpoint = _claim(cli)
    config = json.loads(json.dumps(cli.asked.as_dict(), default=str))
    logger = _start_tracking(cli, config)
    print(_introduction(learner, data), flush=True)
    try:
        trainer.fit(learner, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        trainer.save_checkpoint(cli.folder / LAST)
    except SystemExit:  # Lightning's answer to Ctrl-C, after it has wound up
        raise UserError(f"stopped at step {trainer.global_step}. {_how_to_resume(cli)}") from None
    except NonFiniteLoss as error:
        last = cli.folder / LAST
        kept = f". The last good state is kept in {last}" if last.is_file() else ""
        raise NonFiniteLoss(f"{error}{kept}") from error
    print(f"Evaluating on {len(data.parts['test'])} held-out texts", flush=True)
    mask = replace(learner.discretize(), config=config)
    rows = evaluation.evaluate(learner.masked_lm.to(trainer.strategy.root_device), mask, data.test_dataloader())
    expected = dict(zip(learner.sizes, learner.open_probabilities()[0].sum(-1).tolist(), strict=True))
    _write_results(cli, mask, rows, expected, time.monotonic() - began, logger)


def _claim(cli: TrainCLI) -> Path | None:
    """Make the run's folder this run's own; the checkpoint to go on from, if it is to go on.

    Raises:
        UserError: If there is a run already, or none to go on with, or the folder cannot be written.
    """
    last, config = cli.folder / LAST, cli.folder / "config.yaml"
    if cli.resume:
        if not config.is_file():
            raise UserError(f"run.resume: there is no run in {cli.folder}. Name its folder with --run.dir")
        return last if last.is_file() else None  # killed before its first checkpoint: from the start
    if config.exists():
        raise UserError(
            f"{cli.folder} already holds a run. Choose another --run.dir, or go on with it: "
            f"python train.py --config {config} --run.resume true"
        )
    write_whole(config, cli.asked_yaml.encode())
    return None


def _finished(folder: Path) -> str | None:
    """The table of a run that has come to its end."""
    results = folder / "metrics.json"
    return evaluation.table(json.loads(results.read_text())["sizes"]) if results.is_file() else None


def _how_to_resume(cli: TrainCLI) -> str:
    return f"Go on with: python train.py --config {cli.folder / 'config.yaml'} --run.resume true"


def _start_tracking(cli: TrainCLI, config: dict[str, Any]) -> "WandbLogger | None":
    if not cli.tracked:
        return None
    from masklearn import tracking  # only when asked for: importing wandb takes a while

    logger = tracking.logger_for(cli.folder, config, resume=cli.resume)
    cli.trainer.logger = logger
    callbacks: list[Callback] = cli.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    callbacks.append(tracking.GateHistograms())
    print(tracking.whereabouts(logger))
    return logger


def _introduction(learner: MaskLearner, data: MaskData) -> str:
    graph, parts = learner.graph, data.parts
    sizes = ", ".join(map(str, learner.sizes))
    return (
        f"Model: {learner.lm}, {graph.n_nodes} nodes = {graph.n_layers} layers x ({graph.n_heads} heads + 1 MLP)\n"
        f"Text: {data.source}, {len(parts['train'])} to learn on, {len(parts['validation'])} to watch, "
        f"{len(parts['test'])} to report on\n"
        f"Learning the best {sizes} nodes under {learner.ablation_name} ablation"
    )


def _write_results(
    cli: TrainCLI,
    mask: Mask,
    rows: list[evaluation.Row],
    expected: dict[int, float],
    seconds: float,
    logger: "WandbLogger | None",
) -> None:
    folder = cli.folder
    mask = mask.with_metrics(rows)
    mask_file, results = folder / "mask.safetensors", folder / "metrics.json"
    figures = _draw(folder / "figures", mask, rows)
    mask.save(mask_file)
    described = evaluation.describe(mask, rows) | {"expected_sizes": expected, "seconds": round(seconds, 1)}
    write_whole(results, json.dumps(described, indent=2).encode())
    if logger:
        from masklearn import tracking

        tracking.log_results(logger, mask, rows, mask_file, figures)
        tracking.finish()
    written = ", ".join(str(path) for path in (mask_file, results, *figures))
    print(f"\nHeld-out text, nats per token:\n\n{evaluation.table(rows)}\n\nWritten in {seconds:.0f} s: {written}")


def _draw(folder: Path, mask: Mask, rows: list[evaluation.Row]) -> list[Path]:
    if find_spec("matplotlib") is None:
        print("No figures drawn: they need matplotlib. Get it with: pip install 'masklearn[report]'")
        return []
    from masklearn import report  # matplotlib takes a second to import

    return report.write_figures(folder, mask, rows)
