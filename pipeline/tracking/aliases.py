"""Moving an alias: commit an entry to the log, then bring MLflow and the certificates to where the log is.

A process killed in between leaves either the log as it was, or an entry that the next call of any verb
carries out.
"""

from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.tracking import alias_log
from pipeline.tracking.alias_log import Entry, LogError

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOG_TAG = "alias_log"  # on the registered model: "<number>:<digest>" of the last entry carried out


def change(
    made: "MlflowClient",
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
    entry = alias_log.append(
        storage_root,
        name,
        after,
        action=action,
        alias=alias,
        came_from=current(made, name, alias),
        version=version,
        details=details,
    )
    follow_log(made, storage_root, name)
    return entry


def current(made: "MlflowClient", name: str, alias: str) -> int | None:
    """The version that `alias` is at in MLflow."""
    at = made.get_registered_model(name).aliases.get(alias)
    return None if at is None else int(at)


def follow_log(made: "MlflowClient", storage_root: str, name: str) -> list[Entry]:
    """Carry out what the log says and MLflow does not have yet; the log's entries. Doing it twice, or two at
    once, is harmless.

    Whoever sets an alias reads the log again afterwards, so the last to finish leaves MLflow at the log's
    end.
    """
    while True:
        entries = alias_log.read(storage_root, name)
        done = carried_out(made, storage_root, name, entries)
        if done == len(entries):
            return entries
        last = {entry.alias: entry for entry in entries[done:] if entry.alias}
        for entry in entries[done:]:
            if certificate := entry.details.get("certificate"):
                storage.write_json(certificate_uri(storage_root, name, entry.version), certificate)
        for alias, entry in last.items():
            made.set_registered_model_alias(name, alias, str(entry.version))
        made.set_registered_model_tag(name, LOG_TAG, f"{entries[-1].number}:{entries[-1].digest}")


def carried_out(made: "MlflowClient", storage_root: str, name: str, entries: list[Entry]) -> int:
    """How many entries MLflow has; raises `LogError` when it has one that the log lost."""
    tag = made.get_registered_model(name).tags.get(LOG_TAG)
    if tag is None:
        return 0
    number, _, digest = tag.partition(":")
    done = int(number)
    if done > len(entries) or entries[done - 1].digest != digest:
        raise LogError(
            f"{storage.join(alias_log.folder(storage_root, name), 'log')}: MLflow has entry {done}"
            f" ({digest[:12]}), which is not in the log: entries were removed or replaced; restore the folder"
            " from a copy"
        )
    return done


def certificate_uri(storage_root: str, name: str, version: int) -> str:
    return storage.join(alias_log.folder(storage_root, name), f"v{version}", "certificate.json")
