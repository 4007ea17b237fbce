"""Every change of an alias, in order, as a chain of hashes under the storage root: the truth that MLflow's
aliases follow.

One JSON file an entry, `<storage>/registry/<model>/log/000001.json`. An entry is created exclusively, which
is the whole of the locking: of two changes that saw the same log one creates the next entry and the other is
told. Creating the entry is also the commit: MLflow's alias and certificate.json are set from it afterwards,
by whoever comes next if need be.
"""

import datetime
import getpass
import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.errors import InputError


class LogError(InputError):
    """The log on disk is not the log that was written: one line says which entry."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One change. `came_from` is the version the alias had in MLflow just before, None when it had none.

    A purge moves no alias (`alias` is ""): it is here so that nobody can take it back unseen.
    """

    number: int
    time: str
    action: str  # register | promote | rollback | purge
    alias: str
    came_from: int | None
    version: int
    by: str
    previous: str  # digest of the entry before, "" for the first
    details: dict[str, Any] = field(default_factory=dict)
    digest: str = ""

    def computed_digest(self) -> str:
        return storage.digest_of({key: value for key, value in asdict(self).items() if key != "digest"})


def folder(storage_root: str, model_name: str) -> str:
    return storage.join(storage_root, "registry", model_name)


def read(storage_root: str, model_name: str) -> list[Entry]:
    """The entries, oldest first; raises `LogError` when one was changed, removed or put in between."""
    log = storage.join(folder(storage_root, model_name), "log")
    entries: list[Entry] = []
    for name in storage.listing(log):
        if not name.endswith(".json") or name.startswith("."):
            continue
        where = storage.join(log, name)
        try:
            entry = Entry(**storage.read_json(where))
        except (ValueError, TypeError) as error:
            raise LogError(
                f"{where}: not an entry of the alias log ({error}); it was edited or damaged"
            ) from error
        expected, previous = len(entries) + 1, entries[-1].digest if entries else ""
        if entry.number != expected or name != file_name(expected):
            raise LogError(
                f"{where}: found entry {entry.number}, expected number {expected}: an entry was removed or"
                " put in between"
            )
        if entry.digest != entry.computed_digest():
            raise LogError(f"{where}: entry {expected} does not match its own digest: it was edited")
        if entry.previous != previous:
            raise LogError(
                f"{where}: entry {expected} does not follow from entry {expected - 1}: one of the two was"
                " replaced"
            )
        entries.append(entry)
    return entries


def append(
    storage_root: str,
    model_name: str,
    after: list[Entry],
    *,
    action: str,
    alias: str,
    came_from: int | None,
    version: int,
    details: dict[str, Any] | None = None,
) -> Entry:
    """Commit the entry that follows `after`; raises `InputError` when another change was committed since
    `after` was read."""
    draft = Entry(
        number=len(after) + 1,
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        action=action,
        alias=alias,
        came_from=came_from,
        version=version,
        by=_who(),
        previous=after[-1].digest if after else "",
        details=json.loads(json.dumps(details or {}, allow_nan=False)),  # as it will be read back
    )
    entry = Entry(**{**asdict(draft), "digest": draft.computed_digest()})
    where = storage.join(folder(storage_root, model_name), "log", file_name(entry.number))
    if not _create(where, (json.dumps(asdict(entry), indent=1, allow_nan=False) + "\n").encode()):
        raise InputError(
            f"{model_name}: another change of an alias came first (entry {entry.number}, {where}); "
            "nothing was changed: look at `list` and try again"
        )
    return entry


def file_name(number: int) -> str:
    return f"{number:06d}.json"


def _create(uri: str, data: bytes) -> bool:
    """Create `uri` with all of `data`; False when it exists. Atomic against others and against being killed.

    An object store has to honour conditional puts (AWS and most others do; where it does not, two at once may
    both succeed).
    """
    fs, path = storage.filesystem(uri)
    if storage.is_local(uri):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            temporary.write_bytes(data)
            os.link(temporary, target)  # unlike a rename, a link never replaces what is there
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True
    if storage.exists(uri):
        return False
    try:
        storage.retrying(uri, "write", lambda: fs.pipe_file(path, data, mode="create"))
    except FileExistsError:
        return storage.read_bytes(uri) == data  # ours after all, when the answer to the first try was lost
    return True


def _who() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        return f"unknown@{socket.gethostname()}"
