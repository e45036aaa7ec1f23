"""Weights & Biases. Without a login a run is kept on disk, and W&B never prompts; its failures never stop a run."""

from masklearn.tracking.callbacks import GateHistograms, RelogCallback
from masklearn.tracking.logger import Tracker, logger_for
from masklearn.tracking.results import log_results, log_text_results
from masklearn.tracking.study import log_evidence, log_study

__all__ = [
    "GateHistograms",
    "RelogCallback",
    "Tracker",
    "log_evidence",
    "log_results",
    "log_study",
    "log_text_results",
    "logger_for",
]
