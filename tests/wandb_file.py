"""Reads what an offline W&B run has written: a LevelDB log of protobuf records."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    files: Path = Path()

    @classmethod
    def read(cls, folder: Path) -> "OfflineRun":
        """The run in a folder `wandb/offline-run-...`."""
        (log,) = folder.glob("*.wandb")
        run = cls(files=folder / "files")
        for content in _records(log.read_bytes()):
            record = Record.FromString(content)
            if record.HasField("run"):
                run.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif record.HasField("history"):
                run.history.append({_key(item): json.loads(item.value_json) for item in record.history.item})
            elif record.HasField("summary"):
                run.summary |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
            elif record.HasField("artifact"):
                run.artifacts.append(record.artifact)
            elif record.HasField("request") and record.request.HasField("log_artifact"):
                run.artifacts.append(record.request.log_artifact.artifact)
        return run

    def column(self, key: str) -> list[Any]:
        return [row[key] for row in self.history if key in row]


def _key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def _records(log: bytes) -> Iterator[bytes]:
    place, parts = HEADER, []  # the file begins with a header of its own
    while place + HEADER <= len(log):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        length, kind = int.from_bytes(log[place + 4 : place + 6], "little"), log[place + 6]
        if kind == 0:
            return
        parts.append(log[place + HEADER : place + HEADER + length])
        place += HEADER + length
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []
