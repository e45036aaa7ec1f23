"""Masks for other tools: smaller models as Hugging Face folders, and circuits in the formats of the field."""

from masklearn.export.anatomy import require_removable
from masklearn.export.circuits import CircuitFormat, to_circuits
from masklearn.export.hf_folder import to_hf
from masklearn.export.mib import cell_of
from masklearn.export.model_card import HFExport, cost_table

__all__ = ["CircuitFormat", "HFExport", "cell_of", "cost_table", "require_removable", "to_circuits", "to_hf"]
