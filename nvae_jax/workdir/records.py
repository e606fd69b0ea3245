"""What a run says and measures: `log.txt`, `metrics.jsonl` and `done.json` in its folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import jax
from etils import epath

from nvae_jax.errors import reading
from nvae_jax.workdir.files import append_line, remove, write


class Records:
    """The records of a run.

    Args:
      folder: of the run.
    """

    def __init__(self, folder: epath.Path):
        self._folder = folder
        self._metrics = folder / "metrics.jsonl"

    def log(self, message: str) -> None:
        """Prints `message`, and appends it to `log.txt` behind the local time."""
        if jax.process_index() == 0:
            print(message, flush=True)
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}"
        append_line(self._folder / "log.txt", line)

    def write_metrics(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Appends the record `{"step": step, name: float, ...}` to `metrics.jsonl`.

        Values that are not finite are written as JSON's common extension has them: NaN, Infinity.
        """
        record = {"step": step} | {name: float(value) for name, value in values.items()}
        append_line(self._metrics, json.dumps(record))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of `metrics.jsonl` in the order in which they were written.

        Lines that are no records are left out: the last one, if its process was killed while it
        wrote it, and any that are damaged.

        Raises:
          ConfigError: the file cannot be read.
        """
        if not self._metrics.exists():
            return []
        with reading("metrics", self._metrics, "a file that training wrote"):
            lines = self._metrics.read_bytes().splitlines()
        return [record for line in lines if (record := _record(line)) is not None]

    def truncate_metrics(self, step: int) -> None:
        """Drops the records after `step`, so that a run resumed there writes none twice."""
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        write(self._metrics, lines.encode())

    def write_changes(self, step: int, changes: Sequence[str]) -> None:
        """Appends to `changes.jsonl`, and logs, what the run goes on with after `step`."""
        record = {"step": step, "time": time.strftime("%Y-%m-%d %H:%M:%S"), "changes": [*changes]}
        append_line(self._folder / "changes.jsonl", json.dumps(record))
        self.log(f"from step {step:,} on: {'; '.join(changes)}")

    def reopen(self) -> None:
        """Removes `done.json`: there is more to train."""
        remove(self._folder / "done.json")

    def finish(self, record: Mapping[str, Any]) -> None:
        """Writes `done.json`: the run has come to its end, with `record` as its result."""
        write(self._folder / "done.json", (json.dumps(record, indent=2) + "\n").encode())


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None
