"""Every change of an alias, in order, as a chain of hashes under the storage root: the truth that MLflow's
aliases follow.

One JSON file an entry, `<storage>/registry/<model>/log/000001.json`. An entry is created exclusively, which
is the whole of the locking: of two changes that saw the same log one creates the next entry and the other is
told. Creating the entry is also the commit: MLflow's alias and certificate.json are set from it afterwards
(`follow_log`), so a process that is killed in between leaves what the next call of any verb carries out.
"""

import datetime
import getpass
import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOG_TAG = "alias_log"  # on the registered model: "<number>:<digest>" of the last entry carried out


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


def change(
    mlflow: "MlflowClient",
    storage_root: str,
    name: str,
    after: list[Entry],
    *,
    action: str,
    alias: str,
    version: int,
    details: dict[str, Any] | None = None,
) -> Entry:
    """Commit the change of `alias` to `version` that was decided on seeing the log
    `after`, and carry it out."""
    entry = append(
        storage_root,
        name,
        after,
        action=action,
        alias=alias,
        came_from=current(mlflow, name, alias),
        version=version,
        details=details,
    )
    follow_log(mlflow, storage_root, name)
    return entry


def current(mlflow: "MlflowClient", name: str, alias: str) -> int | None:
    """The version that `alias` is at in MLflow."""
    at = mlflow.get_registered_model(name).aliases.get(alias)
    return None if at is None else int(at)


def follow_log(mlflow: "MlflowClient", storage_root: str, name: str) -> list[Entry]:
    """Carry out what the log says and MLflow does not have yet; the log's entries. Doing it twice, or two at
    once, is harmless.

    Whoever sets an alias reads the log again afterwards, so the last to finish leaves MLflow at the log's
    end.
    """
    while True:
        entries = read(storage_root, name)
        done = carried_out(mlflow, storage_root, name, entries)
        if done == len(entries):
            return entries
        last = {entry.alias: entry for entry in entries[done:] if entry.alias}
        for entry in entries[done:]:
            if certificate := entry.details.get("certificate"):
                storage.write_json(certificate_uri(storage_root, name, entry.version), certificate)
        for alias, entry in last.items():
            mlflow.set_registered_model_alias(name, alias, str(entry.version))
        mlflow.set_registered_model_tag(name, LOG_TAG, f"{entries[-1].number}:{entries[-1].digest}")


def carried_out(mlflow: "MlflowClient", storage_root: str, name: str, entries: list[Entry]) -> int:
    """How many entries MLflow has; raises `LogError` when it has one that the log lost."""
    tag = mlflow.get_registered_model(name).tags.get(LOG_TAG)
    if tag is None:
        return 0
    number, _, digest = tag.partition(":")
    count = int(number)
    if count > len(entries) or entries[count - 1].digest != digest:
        raise LogError(
            f"{storage.join(folder(storage_root, name), 'log')}: MLflow has entry {count}"
            f" ({digest[:12]}), which is not in the log: entries were removed or replaced; restore the folder"
            " from a copy"
        )
    return count


def certificate_uri(storage_root: str, name: str, version: int) -> str:
    return storage.join(folder(storage_root, name), f"v{version}", "certificate.json")


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
