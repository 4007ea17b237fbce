"""Where a step's time goes: named phases of a worker's time, each second counted once."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any, TypeVar

ItemT = TypeVar("ItemT")


class Stopwatch:
    """Sums the seconds of the phases that run inside `with stopwatch:`, between two calls of `lap`.

    On a CUDA device the stamps are events in the stream, so a phase lasts as long as its kernels do and
    nothing waits for them before `lap`. A phase inside another belongs to the outer one.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._on_cuda = device == "cuda"
        self._stamps: list[tuple[str | None, Any]] = []  # (the phase that begins here, when)
        self._phase: str | None = None

    def __enter__(self) -> "Stopwatch":
        self._token = _current.set(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _current.reset(self._token)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if self._phase is not None:
            yield
            return
        self._phase = name
        self._stamps.append((name, self._now()))
        try:
            yield
        finally:
            self._phase = None
            self._stamps.append((None, self._now()))

    def lap(self) -> dict[str, float]:
        """Seconds by phase since the last call. Called outside of all phases."""
        stamps, self._stamps = self._stamps, []
        if self._on_cuda and stamps:
            stamps[-1][1].synchronize()
        seconds: dict[str, float] = {}
        for (name, start), (_, ended) in pairwise(stamps):
            if name is not None:
                seconds[name] = seconds.get(name, 0.0) + (
                    start.elapsed_time(ended) / 1000 if self._on_cuda else ended - start
                )
        return seconds

    def _now(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


_current: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """What runs inside counts as `name` on the stopwatch that is running; without one nothing is counted."""
    watch = _current.get()
    if watch is None:
        yield
        return
    with watch.phase(name):
        yield


def timed(name: str, items: Iterable[ItemT]) -> Iterator[ItemT]:
    """`items`, the wait for each counted as `name`."""
    source = iter(items)
    while True:
        with phase(name):
            try:
                item = next(source)
            except StopIteration:
                return
        yield item
