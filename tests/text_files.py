"""Files of short texts in the embedded language."""

import json
from pathlib import Path

import datasets

TEXTS = [
    f"the {noun} near the dogs {verb} ."
    for noun in ("dog", "cat", "bird", "king")
    for verb in ("runs", "sings", "waits")
]


def write(path: Path, texts: list[str]) -> Path:
    """Write texts in the format that the file name says."""
    rows = datasets.Dataset.from_dict({"id": list(range(len(texts))), "text": texts})
    if path.suffix == ".txt":
        path.write_text("\n\n".join(texts))
    elif path.suffix == ".csv":
        rows.to_csv(path)
    elif path.suffix == ".parquet":
        rows.to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
