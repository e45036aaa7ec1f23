"""The study of computation density: from measurements of every input to tidy tables."""

from masklearn.density.measurements import MaskMeasurements, TopTokens
from masklearn.density.study import Study, study

__all__ = ["MaskMeasurements", "Study", "TopTokens", "study"]
