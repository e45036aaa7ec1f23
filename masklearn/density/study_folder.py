"""Names inside the folder of a study or a run, for the commands and the report alike."""

REPORT_FILE = "report.html"
"""The page."""
FIGURES_FOLDER = "figures"
"""Figures of a run (PNG) or of a study (PNG and PDF)."""
TABLES_FOLDER = "tables"
"""Tables of a study: parquet for those with a row or more for every input, CSV for the others."""
