"""Texts and settings of banks that are learned from Python in seconds."""

from itertools import islice
from typing import Any

from masklearn.tiny import tasks

TEXTS = list(islice(tasks.texts(0), 24))
FAST: dict[str, Any] = {"sizes": [4, 0.5], "steps": 4, "polish": 0, "progress": False}
