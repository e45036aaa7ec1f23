"""Tables to figures and one page. Needs the `report` extra (matplotlib)."""

from masklearn.report.run import write_figures
from masklearn.report.study import write_study

__all__ = ["write_figures", "write_study"]
