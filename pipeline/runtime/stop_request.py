"""SIGTERM on the driver while workers train: they are told, get time for a checkpoint, and the process ends
with 143.

The word travels through storage: `<run>/stop` is looked for by the first rank. Writing that file by hand
stops a run too.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline import storage

STOP = "stop"
TERMINATED = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """The process was told to end; leaving by it runs every `with` on the way."""

    happened = False  # raised in this process; a blocking call of Ray turns it into a SystemExit of code 1

    def __init__(self) -> None:
        Terminated.happened = True
        super().__init__(TERMINATED)


def raise_terminated(signum: int, frame: FrameType | None) -> None:
    """A signal handler."""
    raise Terminated()


class Stop:
    """Whether this run was asked to stop, on the driver."""

    def __init__(self, run_uri: str, grace_s: float) -> None:
        self.uri, self.grace_s, self.asked = storage.join(run_uri, STOP), grace_s, False

    def ask(self, signum: int, frame: FrameType | None) -> None:
        """The first signal tells the workers and sets a limit to waiting for them; the second ends it."""
        if self.asked:
            raise Terminated()
        self.asked = True
        print("  told to stop: waiting for the workers' checkpoint", flush=True)
        signal.signal(signal.SIGALRM, raise_terminated)
        signal.setitimer(signal.ITIMER_REAL, self.grace_s)
        threading.Thread(target=storage.write_text, args=(self.uri, "SIGTERM"), daemon=True).start()


@contextmanager
def stopping(run_uri: str, grace_s: float) -> Iterator[Stop]:
    """Within it SIGTERM is handled by the `Stop` that comes back. In a thread that gets no signals it only
    removes an old word."""
    stop = Stop(run_uri, grace_s)
    storage.remove(stop.uri)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, stop.ask)
    try:
        yield stop
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before)
