"""The command line of `python train.py`: Lightning's, with a run's folder and the settings that depend on others."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from lightning import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from masklearn.cli.checkpoints import CHECKPOINT_FOLDER, LAST_CHECKPOINT, StepCheckpoint
from masklearn.cli.cost_probe import CostProbe
from masklearn.cli.parsing import as_user_errors, explain, require_complete, require_harmless_configs
from masklearn.cli.run_flags import RunFlags
from masklearn.cli.run_folder import CONFIG_FILE, RunFolder
from masklearn.cli.stopping import StopBetweenSteps
from masklearn.cli.text_defaults import settle_text_defaults
from masklearn.cli.trainer_flags import (
    default_validation_interval,
    parse_shard,
    require_one_process,
    require_supported_flags,
    require_unlimited,
    uses_ranks,
)
from masklearn.data import MaskData
from masklearn.errors import UserError, one_line
from masklearn.training.learner import MaskLearner
from masklearn.training.progress import Progress
from masklearn.training.strategy import RankStrategy
from masklearn.training.trainer import trainer_defaults

if TYPE_CHECKING:
    from masklearn.tracking import Tracker

DESCRIPTION = """Search for subgraphs (attention heads and MLPs) of given sizes that reconstruct a frozen language
model. Every flag is also a key of a YAML file: see --print_config. Flags after --config override it."""
USAGE = "train.py [--config FILE] [--model.FLAG VALUE] [--data.FLAG VALUE] [--run.FLAG VALUE] [--trainer.FLAG VALUE]"
CHECKPOINT_INTERVAL = 50
"""Steps between two checkpoints; a kill loses at most these."""
LINKED_FLAGS = ("lm", "revision", "scope", "max_groups", "trust_remote_code")
"""Flags of the model that the data takes over."""


class TrainCLI(LightningCLI):
    """Lightning's command line over a `MaskLearner`, a `MaskData` and the trainer, without subcommands.

    Args:
        args: The command line; that of the process by default.

    Raises:
        UserError: If a flag is unknown, or its value is not valid.
    """

    resume: bool
    """Whether to resume the run in the folder."""
    folder: RunFolder
    requested_yaml: str
    """The settings as given, before those that depend on others are set: what `config.yaml` holds."""
    requested: dict[str, Any]
    """The same, parsed."""
    tracked: bool
    """Whether to log to W&B."""
    estimate: bool
    """Whether only the cost of the run is asked for."""
    shard: tuple[int, int]
    """Which shard of the run this is, from 0, and how many there are."""
    is_shard: bool
    """Whether this is one of several jobs that learn the run's groups."""
    merges: bool
    """Whether only to finish a run whose shards are done."""
    merged_folders: list[str]
    """Other folders that hold shards of it."""
    deals_blocks: bool
    """Whether several processes or jobs each learn some of the run's groups."""

    def __init__(self, args: list[str] | None = None) -> None:
        self.is_command = args is None
        self.stop = StopBetweenSteps()
        self.tracker: Tracker | None = None
        self.probe = CostProbe()
        super().__init__(
            MaskLearner,
            MaskData,
            args=args,
            run=False,
            auto_configure_optimizers=False,
            save_config_callback=None,  # a run writes config.yaml itself, when all settings have proved valid
            seed_everything_default=False,
            parser_kwargs={
                "prog": "train.py",
                "exit_on_error": False,
                "allow_abbrev": False,
                "description": DESCRIPTION,
                "usage": USAGE,
            },
            trainer_defaults=trainer_defaults(),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's flags, and let the data take over flags of the model."""
        parser.add_class_arguments(RunFlags, "run")
        for flag in LINKED_FLAGS:
            parser.link_arguments(f"model.{flag}", f"data.{flag}")
        sections: list[Any] = parser._action_groups  # pyright: ignore[reportAssignmentType]
        sections.sort(
            key=lambda section: section is (parser.groups or {})["trainer"]
        )  # Lightning's many flags come last

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line, after its config files have been checked."""
        require_harmless_configs(sys.argv[1:] if args is None else args)
        with as_user_errors(parser):
            super().parse_arguments(parser, args)
        given = self.config.as_dict()
        for section, default in parser.get_defaults(skip_validation=True).as_dict().items():
            if section in ("model", "data", "trainer", "run"):
                require_complete(given.get(section), default, section)

    def instantiate_classes(self) -> None:
        """Create model, data and trainer, or say in one line which class of the config cannot be created."""
        try:
            super().instantiate_classes()
        except (ValueError, ImportError) as error:
            raise UserError(explain(str(error), ())) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Create the trainer, or say in one line what is wrong with its flags."""
        if uses_ranks(self.config.trainer):
            kwargs |= {"strategy": RankStrategy(self.is_command), "use_distributed_sampler": False}
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
            raise UserError(f"trainer: {one_line(error)}") from error

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"seed_everything: {one_line(error)}") from error

    def before_instantiate_classes(self) -> None:
        """Settle the folder, keep the settings as given, and then set those that depend on others."""
        self._settle_folder()
        self._settle_parts()
        settle_text_defaults(self.config, self.parser.get_defaults(skip_validation=True).model)
        require_one_process(self.config.trainer, self.config.model.device_map)
        require_supported_flags(self.config.trainer)
        requested = self.config.clone()
        requested.run.resume = requested.run.estimate = requested.run.merge = False
        requested.run.shard = None
        self.requested_yaml = self.parser.dump(requested, skip_unset=False)
        self.requested = yaml.safe_load(self.requested_yaml)
        self._settle_trainer()

    def _settle_folder(self) -> None:
        """Decide which folder the run uses and whether it is resumed."""
        run = self.config.run
        run.dir = run.dir and str(Path(run.dir).expanduser())
        self.merges, self.estimate = bool(run.merge), bool(run.estimate)
        self.resume = bool(run.resume) or self.merges or _is_requeued(run.dir)
        if self.resume and self.estimate:
            raise UserError("run.estimate is for a run that has not begun. Leave out --run.resume, or --run.estimate")
        config_file = Path(str(self.config.config[-1])) if self.config.config else None
        if self.resume and config_file and _belongs_to_run(config_file, run.dir):
            run.dir = str(config_file.parent)  # wherever the folder has been moved to
        if run.dir == "":
            raise UserError("run.dir is empty. Leave it out, or name a folder")
        if run.dir is None:
            if self.resume:
                raise UserError(
                    f"run.resume needs the run to resume. Give its --config .../{CONFIG_FILE}, or its --run.dir"
                )
            name = config_file.stem if config_file else "default"
            run.dir = str(Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
        self.folder = RunFolder(Path(run.dir), run.shard)

    def _settle_parts(self) -> None:
        """Decide which part of the run this process does."""
        run, model = self.config.run, self.config.model
        self.shard, self.is_shard = parse_shard(run.shard), run.shard is not None
        merged = run.merge if isinstance(run.merge, list) else []
        self.merged_folders = [str(Path(path).expanduser()) for path in merged]
        with_ranks = uses_ranks(self.config.trainer)
        if self.is_shard and model.scope == "dataset":
            raise UserError(
                "run.shard divides the groups of a run among jobs, but with --model.scope dataset there is one group. "
                "Use several devices instead: --trainer.devices"
            )
        if self.is_shard and (self.merges or self.estimate):
            raise UserError("run.shard is for a job that learns. Leave it out with --run.merge and --run.estimate")
        if model.graph != "nodes" and (with_ranks or self.is_shard):
            raise UserError(f"model.graph {model.graph} uses one device. Leave out --trainer.devices and --run.shard")
        require_unlimited(self.config.trainer, model.graph)
        self.deals_blocks = model.scope != "dataset" and (with_ranks or self.is_shard)

    def _settle_trainer(self) -> None:
        """Set the trainer's flags that depend on other settings, and its callbacks."""
        trainer, model = self.config.trainer, self.config.model
        self.probe = CostProbe(stop=self.estimate)
        if self.estimate:
            trainer.logger = trainer.enable_checkpointing = False
        if self.deals_blocks:
            trainer.enable_checkpointing = False  # it would hold the block of one process; finished ones are stored
        if self.is_shard:
            trainer.logger = False  # the results are logged when shards are merged
        self.tracked = trainer.logger in (None, True)
        if self.tracked:
            trainer.logger = False  # created later, when all settings have proved valid
        trainer.default_root_dir = str(self.folder.path)
        if trainer.check_val_every_n_epoch is None:  # steps are counted over all epochs, and a run is a single one
            trainer.check_val_every_n_epoch = 1
        if model.scope != "dataset":
            trainer.limit_val_batches = 0  # every block would need a validation split of its own
        elif trainer.val_check_interval is None:
            trainer.val_check_interval = default_validation_interval(model.steps)
        self.trainer_defaults["callbacks"] = self._callbacks()

    def _callbacks(self) -> list[Callback]:
        trainer, callbacks = self.config.trainer, list[Callback]()
        if trainer.enable_checkpointing is not False:
            checkpoint = StepCheckpoint(
                str(self.folder / CHECKPOINT_FOLDER),
                filename=LAST_CHECKPOINT.stem,
                every_n_train_steps=CHECKPOINT_INTERVAL,
                enable_version_counter=False,
                save_on_exception=True,
            )
            callbacks.append(checkpoint)
        if trainer.enable_progress_bar is not False:
            callbacks.append(Progress(refresh_rate=trainer.log_every_n_steps or 1))
        return [*callbacks, self.stop, self.probe]


def start_tracking(cli: TrainCLI) -> "Tracker":
    """Start the W&B run of a run's folder, or resume it, and print where it is."""
    from masklearn import tracking  # imports wandb, which takes a second

    tracker, location = tracking.logger_for(cli.folder.path, cli.requested, resume=cli.resume)
    cli.trainer.logger = cli.tracker = tracker
    print(location)
    return tracker


def _belongs_to_run(config_file: Path, folder: str | None) -> bool:
    """Whether a config given to resume a run is the one in that run's folder, which may have been moved.

    Checkpoints are beside it then, and the folder is the one that it names: a flag of the command names another one.
    """
    if config_file.name != CONFIG_FILE or not (config_file.parent / CHECKPOINT_FOLDER).is_dir():
        return False
    named = yaml.safe_load(config_file.read_text(encoding="utf-8")).get("run") or {}
    return folder is not None and str(Path(named.get("dir") or "").expanduser()) == folder


def _is_requeued(folder: str | None) -> bool:
    """Whether this is a requeued SLURM job, which starts again with its original command."""
    if not folder or os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return False
    return (Path(folder) / CONFIG_FILE).is_file()
