"""Text to batches: readers, tokens, groups that share a mask, splits by content, and scored positions."""

from masklearn.data.batching import Batch, BlockPlan
from masklearn.data.datamodule import MaskData, SplitName
from masklearn.data.positions import Positions
from masklearn.data.sources import TaskName

__all__ = ["Batch", "MaskData", "BlockPlan", "Positions", "SplitName", "TaskName"]
