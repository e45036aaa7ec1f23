"""Text to batches: readers, tokens, groups that share a mask, splits by content, and the positions that count."""

from masklearn.data.module import MaskData, Part, Positions
from masklearn.data.steps import Batch, Plan
from masklearn.data.texts import TaskName

__all__ = ["Batch", "MaskData", "Part", "Plan", "Positions", "TaskName"]
