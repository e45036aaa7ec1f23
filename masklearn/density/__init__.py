"""The study of computation density: what was measured of many inputs, to tidy tables. Tables in, tables out."""

from masklearn.density.bank import Bank, Thought
from masklearn.density.study import Study, study

__all__ = ["Bank", "Study", "Thought", "study"]
