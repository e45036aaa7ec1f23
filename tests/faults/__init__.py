"""Injects faults into whole runs and reports what was lost: `PYTHONPATH=tests python -m faults --out faults.md`.

Every run is a forked process on the embedded model. A fault kills it, stops it, or takes away its disk or its network.
The run is then resumed as a user would, and compared with an undisturbed run: mask.safetensors byte for byte,
metrics.json except for the seconds, and the W&B history step by step.
"""
