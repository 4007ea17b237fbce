"""Whether a registered version, and the configuration of its run, are still what was registered.

Their digests, and that of the run's result, are tags of the version, and stand in the entries of the alias
log that register and promote it; a certificate holds them as well. A version of before has none, and is read
as it was.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import version_files
from pipeline import storage
from pipeline.errors import InputError
from pipeline.tracking.alias_log import Entry

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

# of the version's files, of the run's config.yaml, of its result.json as it was before there was a version
VERSION, CONFIG, RESULT = "version_digest", "config_digest", "result_digest"
LATER = ("model", "timing")  # of result.json: what is known only when the version is registered
SETTINGS = "config.yaml"


class VersionError(InputError):
    """A version or its run's configuration is not what was registered: one line says which."""


def recorded(version: "ModelVersion", entries: Sequence[Entry], name: str) -> dict[str, str]:
    """The digest `name` of `version` by who holds it: its tag, and every entry of the log that does."""
    digests = {"its tag": version.tags[name]} if name in version.tags else {}
    return digests | {
        f"entry {entry.number} of the log": entry.details[name]
        for entry in entries
        if entry.version == int(version.version) and entry.details.get(name)
    }


def require_files(version: "ModelVersion", entries: Sequence[Entry], folder: Path) -> str:
    """The digest of the version's files in `folder`. Raises `VersionError` when it is not the one that was
    recorded, or none was at a time when digests were."""
    try:
        digest = version_files.digest_of(version_files.digests(folder))
    except version_files.ChangedError as error:
        raise VersionError(f"{_title(version)}: {error}") from error
    holders = recorded(version, entries, VERSION)
    if not is_named(int(version.version), entries) and (
        (earlier := _first_recorded(entries)) and earlier < int(version.version)
    ):
        raise VersionError(
            f"{_title(version)}: no entry of the alias log names it with a digest of its files, and version"
            f" {earlier}, which came before it, has one: it was registered by other means, or its run was"
            " killed before the log knew of it (call the run again); expected one that a run registered"
        )
    for holder, expected in holders.items():
        if digest != expected:
            raise VersionError(
                f"{_title(version)}: {_change(folder)}: its files have digest {digest[:12]},"
                f" {holder} says {expected[:12]}; restore {folder} from a copy, or run the request again"
            )
    if holders:
        try:
            version_files.require_as_listed(folder)
        except version_files.ChangedError as error:
            raise VersionError(f"{_title(version)}: {error}; restore it from a copy") from error
    return digest


def is_named(number: int, entries: Sequence[Entry]) -> bool:
    """Whether the log names version `number` with a digest of its files."""
    return any(entry.version == number and entry.details.get(VERSION) for entry in entries)


def result_digest(result: Mapping[str, Any]) -> str:
    """Of a run's result but for what is known only once its version is registered."""
    known = {key: value for key, value in result.items() if key not in LATER}
    return storage.digest_of(json.loads(json.dumps(known)))  # as it is read back


def require_result(version: "ModelVersion", entries: Sequence[Entry], result: Mapping[str, Any]) -> None:
    """Raise `VersionError` for a result that is not the one the version was registered with."""
    digest, holders = result_digest(result), recorded(version, entries, RESULT)
    for holder, expected in holders.items():
        if digest != expected:
            raise VersionError(
                f"{_title(version)}: the result.json of its run was changed since it was registered: it has"
                f" digest {digest[:12]}, {holder} says {expected[:12]}; restore it from a copy (MLflow's run"
                " has one among its artifacts)"
            )


def require_config(version: "ModelVersion", entries: Sequence[Entry], uri: str) -> str | None:
    """The digest of the run's config.yaml at `uri`, None where it is gone. Raises `VersionError` when it is
    not the one that was recorded."""
    digest = config_digest(uri)
    for holder, expected in recorded(version, entries, CONFIG).items():
        if digest not in (None, expected):
            raise VersionError(
                f"{_title(version)}: {uri} was changed since it was registered: it has digest {digest[:12]},"
                f" {holder} says {expected[:12]}; restore it from a copy"
            )
    return digest


def config_uri(storage_root: str, run_id: str) -> str:
    return storage.join(storage_root, "runs", run_id, SETTINGS)


def config_digest(uri: str) -> str | None:
    return storage.sha256(storage.read_bytes(uri)) if storage.exists(uri) else None


def _first_recorded(entries: Sequence[Entry]) -> int | None:
    """The first version that was registered with a digest."""
    versions = [
        entry.version for entry in entries if entry.action == "register" and entry.details.get(VERSION)
    ]
    return min(versions, default=None)


def _change(folder: Path) -> str:
    """The file that does not agree with the version's own list, where that still says it."""
    if not (folder / version_files.LIST).is_file():
        return "a file was changed, added or removed"
    try:
        version_files.require_as_listed(folder)
    except version_files.ChangedError as error:
        return str(error).removeprefix(f"{folder}: ").removesuffix(" since it was registered")
    return f"its files, {version_files.LIST} among them, were replaced"


def _title(version: "ModelVersion") -> str:
    return f"{version.name} version {version.version}"
