"""Text to batches: readers, tokens, groups that share a mask, splits by content, and scored positions."""

from masklearn.data.batching import Batch
from masklearn.data.block_plan import BlockPlan, BlockQueue
from masklearn.data.datamodule import MaskData, SplitName
from masklearn.data.learned_texts import (
    keep_groups,
    leave_out_if_changed,
    leave_out_learned,
    leave_out_other_groups,
    n_not_learned,
)
from masklearn.data.positions import Positions
from masklearn.data.rows_given import RowsOrTexts
from masklearn.data.sources import TaskName
from masklearn.data.vocabulary import require_readable

__all__ = [
    "Batch",
    "BlockPlan",
    "BlockQueue",
    "MaskData",
    "Positions",
    "RowsOrTexts",
    "SplitName",
    "TaskName",
    "keep_groups",
    "leave_out_if_changed",
    "leave_out_learned",
    "leave_out_other_groups",
    "n_not_learned",
    "require_readable",
]
