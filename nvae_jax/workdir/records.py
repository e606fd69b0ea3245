"""What a run says and measures: `log.txt`, `metrics.jsonl` and `done.json` in its folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import jax
from etils import epath

from nvae_jax.errors import ConfigError, reading
from nvae_jax.workdir.files import append_line, remove, write


class Lines:
    """A file of lines; those that cannot be written wait in memory until they can.

    Args:
      path: of the file.
    """

    def __init__(self, path: epath.Path):
        self.path = path
        self.waiting: list[str] = []
        self._written = False

    def append(self, line: str) -> None:
        """Appends a line after those that wait; the first that has to wait is spoken of.

        Raises:
          ConfigError: not even the first line can be written.
        """
        self.waiting.append(line)
        try:
            append_line(self.path, "\n".join(self.waiting))
        except ConfigError as error:
            if not self._written:
                raise
            if len(self.waiting) == 1:
                print(f"{error}; its lines wait in memory", flush=True)
        else:
            self.waiting, self._written = [], True


class Records:
    """The records of a run, which goes on where they cannot be written for a while.

    Args:
      folder: of the run.
    """

    def __init__(self, folder: epath.Path):
        self._folder = folder
        self._log = Lines(folder / "log.txt")
        self._metrics = Lines(folder / "metrics.jsonl")

    def log(self, message: str) -> None:
        """Prints `message`, and appends it to `log.txt` behind the local time."""
        if jax.process_index() == 0:
            print(message, flush=True)
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}"
        self._log.append(line)

    def write_metrics(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Appends the record `{"step": step, name: float, ...}` to `metrics.jsonl`.

        Values that are not finite are written as JSON's common extension has them: NaN, Infinity.
        """
        record = {"step": step} | {name: float(value) for name, value in values.items()}
        self._metrics.append(json.dumps(record))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of `metrics.jsonl` in the order in which they were written.

        Lines that are no records are left out: the last one, if its process was killed while it
        wrote it, and any that are damaged.

        Raises:
          ConfigError: the file cannot be read.
        """
        path, lines = self._metrics.path, list[bytes]()
        if path.exists():
            with reading("metrics", path, "a file that training wrote"):
                lines = path.read_bytes().splitlines()
        lines += map(str.encode, self._metrics.waiting)
        return [record for line in lines if (record := _record(line)) is not None]

    def truncate_metrics(self, step: int) -> None:
        """Drops the records after `step`, so that a run resumed there writes none twice."""
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        write(self._metrics.path, lines.encode())
        self._metrics.waiting = []

    def write_changes(self, step: int, changes: Sequence[str]) -> None:
        """Appends to `changes.jsonl`, and logs, what the run goes on with after `step`."""
        record = {"step": step, "time": time.strftime("%Y-%m-%d %H:%M:%S"), "changes": [*changes]}
        append_line(self._folder / "changes.jsonl", json.dumps(record))
        self.log(f"from step {step:,} on: {'; '.join(changes)}")

    def last_change(self, step: int) -> int:
        """The last step up to `step` after which settings or images have changed; 0: none."""
        path = self._folder / "changes.jsonl"
        if not path.exists():
            return 0
        with reading("changes", path, "a file that training wrote"):
            records = map(_record, path.read_bytes().splitlines())
        steps = [r["step"] for r in records if r is not None and r["step"] <= step]
        return max(steps, default=0)

    def reopen(self) -> None:
        """Removes `done.json`: there is more to train."""
        remove(self._folder / "done.json")

    def finish(self, record: Mapping[str, Any]) -> None:
        """Writes `done.json`: the run has come to its end, with `record` as its result."""
        write(self._folder / "done.json", (json.dumps(record, indent=2) + "\n").encode())


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None
