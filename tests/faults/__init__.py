"""Does to runs what happens to runs, and says what was lost: `PYTHONPATH=tests python -m faults --out faults.md`.

Runs are processes of their own, forked so that none imports anew, on the embedded model. Each is killed, stopped,
starved or lied to, gone on with as a user would, and held against a run that was left alone: mask.safetensors byte for
byte, metrics.json (but for the seconds) and the W&B history step by step.
"""
