"""Every change of an alias, in order, as a chain of hashes under the storage root: the truth that MLflow's
aliases follow.

One JSON file an entry, `<storage>/registry/<model>/log/000001.json`. Creating it is the commit: MLflow's
alias and certificate.json are set from it afterwards (`follow_log`), so a process that is killed in between
leaves what the next call of any verb carries out.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline import hash_chain, storage
from pipeline.errors import InputError
from pipeline.hash_chain import Link
from pipeline.hash_chain import LogError as LogError

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOG_TAG = "alias_log"  # on the registered model: "<number>:<digest>" of the last entry carried out


@dataclass(frozen=True, kw_only=True)
class Entry(Link):
    """One change. `came_from` is the version the alias had in MLflow just before, None when it had none.

    A purge or an audit moves no alias (`alias` is ""): it is here so that nobody can take it back unseen.
    """

    action: str  # register | promote | rollback | purge | audit
    alias: str
    came_from: int | None
    version: int
    details: dict[str, Any] = field(default_factory=dict)


def folder(storage_root: str, model_name: str) -> str:
    return storage.join(storage_root, "registry", model_name)


def read(storage_root: str, model_name: str) -> list[Entry]:
    """The entries, oldest first; raises `LogError` when one was changed, removed or put in between."""
    return hash_chain.read(storage.join(folder(storage_root, model_name), "log"), Entry, "alias log")


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
    uri = storage.join(folder(storage_root, model_name), "log", file_name(len(after) + 1))
    fields = {"action": action, "alias": alias, "came_from": came_from, "version": version}
    entry = hash_chain.append(uri, after, Entry, **fields, details=details or {})
    if entry is None:
        raise InputError(
            f"{model_name}: another change of an alias came first (entry {len(after) + 1}, {uri}); "
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


def note(
    mlflow: "MlflowClient",
    storage_root: str,
    name: str,
    *,
    action: str,
    version: int,
    details: dict[str, Any],
) -> Entry:
    """Commit an entry that moves no alias."""
    entries = follow_log(mlflow, storage_root, name)
    entry = append(
        storage_root,
        name,
        entries,
        action=action,
        alias="",
        came_from=None,
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
        changes = carried_out(mlflow, storage_root, name, entries)
        if changes == len(entries):
            return entries
        last = {entry.alias: entry for entry in entries[changes:] if entry.alias}
        for entry in entries[changes:]:
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
