"""The study of computation density: from measurements of every input to tidy tables."""

from masklearn.density.measurements import MaskMeasurements, TopTokens
from masklearn.density.study import Study, study
from masklearn.density.verdicts import verdict_text

__all__ = ["MaskMeasurements", "Study", "TopTokens", "study", "verdict_text"]
