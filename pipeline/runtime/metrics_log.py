"""metrics.jsonl: one writer (rank 0), any number of readers. It is the only channel from workers to the
driver's terminal and MLflow."""

import json
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from pipeline import storage

Record = dict[str, Any]


def read(uri: str) -> list[Record]:
    """Every record at `uri`; none when there is no file."""
    if not storage.exists(uri):
        return []
    return [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]


class Writer:
    """Appends records. Object stores cannot append, so the file is written whole, at most every `every_s`
    seconds."""

    def __init__(self, uri: str, earlier: list[Record] | None = None, every_s: float = 1.0):
        self._uri, self._every_s, self._written_at = uri, every_s, 0.0
        self._lines = [json.dumps(record, allow_nan=False) for record in earlier or []]

    def write(self, record: Record) -> None:
        self._lines.append(json.dumps(record, allow_nan=False))
        if time.monotonic() - self._written_at >= self._every_s:
            self.flush()

    def flush(self) -> None:
        storage.write_text(self._uri, "".join(line + "\n" for line in self._lines))
        self._written_at = time.monotonic()


class Follower:
    """Context: hands new records of `uri` to `take` as they appear, from a thread of its own; the rest when
    it is left.

    What `take` raises ends the following, and is raised when the context is left: no record is passed over in
    silence.
    """

    def __init__(self, uri: str, take: Callable[[list[Record]], None], every_s: float = 0.5):
        self._uri, self._take, self._every_s = uri, take, every_s
        self._seen, self._stop = 0, threading.Event()
        self._failed: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._failed is None:
            self._poll_noting()
        if self._failed is not None and error is None:
            raise self._failed

    def _run(self) -> None:
        while self._failed is None and not self._stop.wait(self._every_s):
            self._poll_noting()

    def _poll_noting(self) -> None:
        try:
            self._poll()
        except Exception as error:
            self._failed = error

    def _poll(self) -> None:
        try:
            records = read(self._uri)
        except OSError:  # a store that does not answer now will be asked again
            return
        # a continued run takes records back that came after its checkpoint
        self._seen = min(self._seen, len(records))
        if len(records) > self._seen:
            fresh, self._seen = records[self._seen :], len(records)
            self._take(fresh)
