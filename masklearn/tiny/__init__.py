"""The embedded model and its language: something real to learn masks on, with no download."""

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
"""Folder of the embedded model, in Hugging Face format."""
