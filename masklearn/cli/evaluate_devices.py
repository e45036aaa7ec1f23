"""Several devices of `python evaluate.py`: its ranks, started and joined as those of `python train.py`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException

from masklearn import ranks
from masklearn.cli.evaluate_flags import EvaluateFlags
from masklearn.cli.rank_watch import GO_ON, stopped_together
from masklearn.errors import UserError
from masklearn.mask_file import Mask
from masklearn.text_bank import TextBank
from masklearn.training.strategy import RankStrategy
from masklearn.training.trainer import trainer_defaults


def require_divisible(flags: EvaluateFlags, masks: Sequence[Mask | TextBank]) -> None:
    """Refuse several devices where one process needs them all.

    Args:
        flags: The mask files.
        masks: Their contents.

    Raises:
        UserError: What to leave out.
    """
    if flags.n_ranks == 1:
        return
    given = f"--devices {flags.devices}" if flags.devices > 1 else f"--num_nodes {flags.num_nodes}"
    flag = given.split()[0]
    for path, mask in zip(flags.mask, masks, strict=True):
        if device_map := isinstance(mask, Mask) and flags.map_of(mask):
            source = "--device_map" if flags.device_map else f"model.device_map, in the run of {path},"
            raise UserError(
                f"{source} is {device_map}, which spreads one model over the devices of one process, and {given} "
                f"starts a process with the whole model on each. For a model that needs the map leave out {flag}"
            )


@contextmanager
def on_ranks(flags: EvaluateFlags, is_command: bool) -> Iterator[None]:
    """Evaluate on several devices, if more than one is asked for; all ranks end together.

    Args:
        flags: How many; the folder of the results becomes that of rank 0, as its name may hold the time.
        is_command: Whether the command line of this process is the evaluation's, so that it can be started again.

    Raises:
        UserError: If there are not as many devices, or the processes do not find each other; or if one fails.
    """
    if flags.n_ranks == 1:
        yield
        return
    strategy = RankStrategy(is_command)
    settings: dict[str, Any] = trainer_defaults() | {"devices": flags.devices, "num_nodes": flags.num_nodes}
    try:  # Lightning's trainer chooses devices and cluster, and is used for nothing else
        Trainer(**settings, strategy=strategy, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"--devices {flags.devices}: {' '.join(str(error).split())}") from error
    written = "Nothing has been written"
    if flags.evidence or flags.study:
        written = f"Finished {'parts of the evidence' if flags.evidence else 'evaluations'} are kept"
    with stopped_together(strategy, lambda: f"{written}. {GO_ON}the same command"):
        flags.out = ranks.from_first(flags.out)
        yield
