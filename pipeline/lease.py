"""One processor at a time: a lease that ends by itself when its holder is gone.

One file a holder, `<uri>/00000003.json`, created exclusively: of two that want the next lease one gets it.
Only its holder ever writes it again, to renew it or to give it back. A lease ends when it is given back, when
it has run out, or when its holder was a process of this machine that is no more.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline import storage
from pipeline.errors import InputError

LAST_TIME = 253402300799.0  # the year 9999, in seconds since 1970
SKEW_S = 10.0  # by how much the clocks of two machines may differ
RENEWALS = 3  # in the time that a lease lasts
Clock = Callable[[], float]


class LeaseHeldError(InputError):
    """Another process holds the lease; the message says which and until when."""


class LeaseLostError(RuntimeError):
    """The lease ran out and another process took it: whatever was decided under it may not be written."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """One lease. `expires` is in seconds since 1970; a `number` is never given twice, so it also orders what
    holders write."""

    number: int
    host: str
    pid: int
    started: float  # of the process, which tells it from a later one of the same pid
    pid_space: str  # where a pid means the same process; "" where that is not known
    token: str
    expires: float
    released: bool = False

    def __str__(self) -> str:
        until = datetime.fromtimestamp(self.expires, UTC).isoformat(timespec="seconds")
        return f"process {self.pid} on {self.host}, until {until}"


class Lease:
    """A lease that this process holds. `require` before everything that may be written once only."""

    def __init__(self, uri: str, holder: Holder, lasts_s: float, clock: Clock) -> None:
        self.uri, self.holder = uri, holder
        self._lasts_s, self._clock = lasts_s, clock

    def renew(self) -> None:
        """Hold it for another `lasts_s` from now. Raises `LeaseLostError` when another process took it."""
        self.require()
        self._write(replace(self.holder, expires=self._clock() + self._lasts_s))
        self.require()

    def require(self) -> None:
        """Raise `LeaseLostError` unless this process holds it still."""
        last = _last(self.uri)
        if last is None or last.token != self.holder.token:
            raise LeaseLostError(f"{self.uri}: the lease went to {last or 'nobody'}")
        if self._clock() >= self.holder.expires:
            raise LeaseLostError(f"{self.uri}: the lease ran out, it was not renewed in time ({self.holder})")

    def release(self) -> None:
        """Give it back; nothing happens to one that was lost."""
        last = _last(self.uri)
        if last is not None and last.token == self.holder.token:
            self._write(replace(self.holder, released=True))

    def _write(self, holder: Holder) -> None:
        storage.write_json(_file(self.uri, holder.number), asdict(holder))
        self.holder = holder


def require_free(uri: str, now: float) -> Holder | None:
    """The last holder of the lease, None when there never was one. Raises `LeaseHeldError` while it is held;
    nothing is written."""
    last = _last(uri)
    if last is not None and not _has_ended(last, now):
        raise LeaseHeldError(f"{uri}: held by {last}; wait until then, or until it is given back")
    return last


def acquire(uri: str, *, lasts_s: float, clock: Clock = time.time) -> Lease:
    """The lease at `uri` for `lasts_s` seconds. Raises `LeaseHeldError` while another process holds it."""
    while True:
        last = require_free(uri, clock())
        holder = _this_process(last.number + 1 if last else 1, clock() + lasts_s)
        text = json.dumps(asdict(holder), indent=2) + "\n"
        if not storage.create(_file(uri, holder.number), text.encode()):
            continue
        newest = _last(uri)
        if newest is not None and newest.token == holder.token:
            _remove_before(uri, holder.number)
            return Lease(uri, holder, lasts_s, clock)
        # others came and went since we looked, and removed the numbers below theirs: ours is one of them
        storage.remove(_file(uri, holder.number))


def acquire_from_the_gone(
    uri: str, *, lasts_s: float, clock: Clock = time.time, sleep: Callable[[float], None] = time.sleep
) -> Lease:
    """As `acquire`, but a holder that does not renew its lease is waited for until that has run out: a
    process of another machine that was killed cannot say so. Raises `LeaseHeldError` once the holder is seen
    alive."""
    first: Holder | None = None
    while True:
        try:
            return acquire(uri, lasts_s=lasts_s, clock=clock)
        except LeaseHeldError:
            last = _last(uri)
            if first is not None and last is not None and last != first:  # renewed, or another's
                raise
            first = first or last
        sleep(lasts_s / RENEWALS / 4)


@contextmanager
def held(uri: str, *, lasts_s: float, clock: Clock = time.time, outlive: bool = False) -> Iterator[Lease]:
    """Hold the lease at `uri` while the block runs: it is renewed meanwhile and given back at the end.

    A renewal that fails is tried again; one that comes too late shows in `require`. `outlive`: wait for a
    holder that may be gone (`acquire_from_the_gone`).
    """
    lease = (acquire_from_the_gone if outlive else acquire)(uri, lasts_s=lasts_s, clock=clock)
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(lasts_s / RENEWALS):
            try:
                lease.renew()
            except LeaseLostError:
                return
            except OSError:
                continue

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        stop.set()
        thread.join()
        lease.release()


def _has_ended(holder: Holder, now: float) -> bool:
    return holder.released or now > holder.expires + SKEW_S or _is_gone(holder)


def _is_gone(holder: Holder) -> bool:
    """Whether the holder was a process that would be seen from here, and is not there."""
    import psutil

    if not holder.pid_space or holder.pid_space != _pid_space():
        return False
    try:
        process = psutil.Process(holder.pid)
        # killed, and not yet collected by its parent
        return abs(process.create_time() - holder.started) > 1 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def _pid_space() -> str:
    """What two processes share that know each other's pids: one boot of one kernel, one pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _this_process(number: int, expires: float) -> Holder:
    import psutil

    return Holder(
        number=number,
        host=socket.gethostname(),
        pid=os.getpid(),
        started=psutil.Process().create_time(),
        pid_space=_pid_space(),
        token=uuid.uuid4().hex,
        expires=expires,
    )


def _last(uri: str) -> Holder | None:
    """The latest lease, None when there never was one."""
    while True:
        names = [name for name in storage.listing(uri) if name.endswith(".json") and not name.startswith(".")]
        if not names:
            return None
        file = storage.join(uri, names[-1])
        try:
            holder = Holder(**storage.read_json(file))
            if not holder.pid > 0 or not 0 <= holder.expires + SKEW_S < LAST_TIME:
                raise ValueError(f"got pid {holder.pid}, until {holder.expires}")
            return holder
        except FileNotFoundError:
            continue  # removed by a later holder since it was listed
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{file}: not a lease ({error}); make sure that nothing runs and remove it"
            ) from error


def _remove_before(uri: str, number: int) -> None:
    for name in storage.listing(uri):
        if not name.startswith(".") and name < f"{number:08d}.json":
            storage.remove(storage.join(uri, name))


def _file(uri: str, number: int) -> str:
    return storage.join(uri, f"{number:08d}.json")
