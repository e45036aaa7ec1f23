"""The embedded model and its language: a trained model to learn masks on, without a download."""

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
"""Folder of the embedded model, in Hugging Face format."""
