"""Reads the file of an offline W&B run: a LevelDB log of protobuf records."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK_BYTES, HEADER_BYTES = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
"""Kinds of chunks: a whole record, or the first, a middle or the last chunk of one."""


@dataclass
class OfflineRun:
    """What an offline run has logged."""

    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    files: Path = Path()

    @classmethod
    def read(cls, folder: Path, wait: float = 30) -> "OfflineRun":
        """The run in a folder `wandb/offline-run-...`.

        Args:
            folder: The folder.
            wait: Seconds for its end to come, which W&B may write after the run has finished; killed runs have none.
        """
        (log,) = folder.glob("*.wandb")
        run = cls(files=folder / "files")
        for record in _records_to_the_end(log, wait):
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
        """The logged values of a key, in order."""
        return [row[key] for row in self.history if key in row]


def _key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def _records_to_the_end(log: Path, wait: float) -> list[Record]:
    end = time.monotonic() + wait
    while True:
        records = [Record.FromString(content) for content in _records(log.read_bytes())]
        if (records and records[-1].HasField("exit")) or time.monotonic() >= end:
            return records
        time.sleep(0.1)


def _records(log: bytes) -> Iterator[bytes]:
    offset, chunks = HEADER_BYTES, []  # the file starts with a header of its own
    while offset + HEADER_BYTES <= len(log):
        left = BLOCK_BYTES - offset % BLOCK_BYTES
        if left < HEADER_BYTES:
            offset += left
            continue
        length, kind = int.from_bytes(log[offset + 4 : offset + 6], "little"), log[offset + 6]
        if kind == 0:
            return
        chunks.append(log[offset + HEADER_BYTES : offset + HEADER_BYTES + length])
        offset += HEADER_BYTES + length
        if kind in (FULL, LAST):
            yield b"".join(chunks)
            chunks = []
