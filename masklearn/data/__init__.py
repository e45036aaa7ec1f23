"""Text to batches: readers, tokens, groups that share a mask, splits by content, and the positions that count."""

from masklearn.data.batching import Batch, BlockPlan
from masklearn.data.datamodule import MaskData, SplitName
from masklearn.data.positions import Positions
from masklearn.data.sources import TaskName

__all__ = ["Batch", "MaskData", "SplitName", "BlockPlan", "Positions", "TaskName"]
