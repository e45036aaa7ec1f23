"""The positions of one text: every node at every token, gated by itself, and scores of positions to start from."""

from masklearn.positions.graph import PositionGraph
from masklearn.positions.position_lm import PositionLM
from masklearn.positions.scores import SCORE_FUNCTIONS, attribution, best_first, norm

__all__ = [
    "SCORE_FUNCTIONS",
    "PositionGraph",
    "PositionLM",
    "attribution",
    "best_first",
    "norm",
]
