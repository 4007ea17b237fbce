"""On a worker: why it should stop now. A word under the run, SIGTERM to this process, or a node that is about
to be taken away."""

import logging
import signal
import threading

from pipeline import storage
from pipeline.runtime import compat_ray

POLL_S = 1.0

log = logging.getLogger(__name__)
_sigterm = threading.Event()


def _catch_sigterm() -> None:
    """Runs in the worker's main thread, the only one that may set a handler."""
    _sigterm.clear()
    signal.signal(signal.SIGTERM, lambda signum, frame: _sigterm.set())


class Interruption:
    """Asked after every step, it answers from memory: `uri`, where given, is looked for by a thread of its
    own."""

    def __init__(self, uri: str | None) -> None:
        import ray

        self._uri, self._told = uri, threading.Event()
        self._context = compat_ray.preemption_context()
        # Ray Train's own way onto the main thread
        ray.get_runtime_context().current_actor.execute.remote(_catch_sigterm)
        if uri is not None:
            threading.Thread(target=self._look, daemon=True, name="stop").start()

    def __call__(self) -> str | None:
        if self._told.is_set():
            return "the driver was told to stop"
        if _sigterm.is_set():
            return "SIGTERM"
        info = self._context.preemption_info
        return f"nodes of ranks {info.preempted_ranks} are being taken away" if info else None

    def _look(self) -> None:
        assert self._uri is not None
        while not self._told.wait(POLL_S):
            try:
                if storage.exists(self._uri):
                    self._told.set()
            except Exception as error:  # a store that is away is asked again
                log.warning("could not look for %s: %s", self._uri, error)
