"""The study of computation density: what was measured of many inputs, to tidy tables. Tables in, tables out."""

from masklearn.density.measurements import MaskMeasurements, TopTokens
from masklearn.density.study import Study, study

__all__ = ["MaskMeasurements", "Study", "TopTokens", "study"]
