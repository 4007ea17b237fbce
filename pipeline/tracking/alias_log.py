"""Every change of an alias, in order, as a chain of hashes under the storage root: the truth that MLflow's
aliases follow.

One JSON file an entry, `<storage>/registry/<model>/log/000001.json`. Creating it is the commit: MLflow's
alias and certificate.json are set from it afterwards (`follow_log`), so a process that is killed in between
leaves what the next promotion or rollback carries out. What only reads carries nothing out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Protocol

from pipeline import hash_chain, storage
from pipeline.errors import InputError
from pipeline.hash_chain import Link
from pipeline.hash_chain import LogError as LogError

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE, CHAMPION = "candidate", "champion"
ACTIONS = ("register", "promote", "rollback", "purge", "audit", "sign")
# what the details of an entry have to hold, where it has them
DETAILS = {"request": str, "tombstone": str, "certificate": dict, "runs": list, "vouches_for": int}
NEEDED = {"purge": ("request", "tombstone"), "audit": ("labels",), "sign": ("vouches_for",)}
KEY = "key"  # in the details of a signed entry: which key signs it
LOG_TAG = "alias_log"  # on the registered model: "<number>:<digest>" of the last entry carried out


@dataclass(frozen=True, kw_only=True)
class Entry(Link):
    """One change. `came_from` is the version the alias had in MLflow just before, None when it had none.

    A purge, an audit or a signature moves no alias (`alias` is ""): it is here so that nobody can take it
    back unseen.
    """

    action: str  # register | promote | rollback | purge | audit | sign
    alias: str
    came_from: int | None
    version: int
    details: dict[str, Any] = field(default_factory=dict)
    signature: dict[str, Any] | None = None  # of model and digest, by the operator's key


class Authority(Protocol):
    """The operator's key, where one is given."""

    @property
    def keyid(self) -> str:
        """Names the key in what it signs."""

    def sign(self, model_name: str, digest: str) -> Mapping[str, str]:
        """The signature of an entry."""

    def require(self, model_name: str, entries: Sequence[Entry]) -> None:
        """Raise `LogError` where champion was moved by an entry that the key does not vouch for."""


def folder(storage_root: str, model_name: str) -> str:
    return storage.join(storage_root, "registry", model_name)


def read(storage_root: str, model_name: str) -> list[Entry]:
    """The entries, oldest first; raises `LogError` when one was changed, removed, put in between or stripped
    of its signature, when they are another model's, or when champion was moved by an unsigned entry after a
    signed one."""
    uri = storage.join(folder(storage_root, model_name), "log")
    entries = hash_chain.read(uri, Entry, "alias log")
    signed, champions = False, 0
    for entry in entries:
        champions += (entry.alias == CHAMPION) * (-1 if entry.action == "rollback" else 1)
        if problem := _problem(entry, champions):
            raise LogError(f"{uri}: entry {entry.number}: {problem}; it was edited or forged")
        if (named := entry.details.get("model", model_name)) != model_name:
            raise LogError(f"{uri}: entry {entry.number} is about {named!r}: the log of another model")
        if entry.signature is None and (KEY in entry.details or (signed and entry.alias == CHAMPION)):
            raise LogError(
                f"{uri}: entry {entry.number} is not signed, as the log says or those before it are: it was"
                " forged, or stripped of its signature"
            )
        signed = signed or entry.signature is not None
    return entries


def _problem(entry: Entry, champions: int) -> str | None:
    """What no entry of ours has. `champions`: how many there were in a row after it, at the most."""
    if entry.action not in ACTIONS:
        return f"got action {entry.action!r}, expected one of {', '.join(ACTIONS)}"
    if entry.alias not in ("", CANDIDATE, CHAMPION):
        return f"got alias {entry.alias!r}, expected {CANDIDATE}, {CHAMPION} or none"
    if entry.version < 1 or (entry.came_from or 1) < 1:
        return f"got version {entry.version} after {entry.came_from}, expected numbers from 1"
    if champions < 1 and entry.action == "rollback":
        return "rolls back where there is no champion to go back to"
    for key in NEEDED.get(entry.action, ()):
        if key not in entry.details:
            return f"a {entry.action} without its {key}"
    for key, kind in DETAILS.items():
        if (value := entry.details.get(key)) is not None and not isinstance(value, kind):
            return f"{key} is a {type(value).__name__}, expected a {kind.__name__}"
    return None


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
    authority: Authority | None = None,
) -> Entry:
    """Commit the entry that follows `after`, signed by `authority` where there is one; raises `InputError`
    when another change was committed since `after` was read, or a log of signed entries would get an unsigned
    one that moves champion."""
    if authority is None and alias == CHAMPION and any(entry.signature for entry in after):
        raise InputError(
            f"key: got none, and the log of {model_name} is signed; expected the key that signs it: --set"
            " key=<pem>"
        )
    uri = storage.join(folder(storage_root, model_name), "log", file_name(len(after) + 1))
    fields = {"action": action, "alias": alias, "came_from": came_from, "version": version}
    entry = hash_chain.append(
        uri,
        after,
        Entry,
        None if authority is None else lambda digest: authority.sign(model_name, digest),
        **fields,
        details={"model": model_name, **(details or {}), **({KEY: authority.keyid} if authority else {})},
    )
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
    authority: Authority | None = None,
) -> Entry:
    """Commit the change of `alias` to `version` that was decided on seeing the log `after`, and carry it
    out."""
    entry = append(
        storage_root,
        name,
        after,
        action=action,
        alias=alias,
        came_from=current(mlflow, name, alias),
        version=version,
        details=details,
        authority=authority,
    )
    follow_log(
        mlflow, storage_root, name, authority=authority, only=CANDIDATE if alias == CANDIDATE else None
    )
    return entry


def note(
    mlflow: "MlflowClient",
    storage_root: str,
    name: str,
    *,
    action: str,
    version: int,
    details: dict[str, Any],
    authority: Authority | None = None,
) -> Entry:
    """Commit an entry that moves no alias, and none is moved: what an interrupted promotion left stays."""
    entry = append(
        storage_root,
        name,
        read(storage_root, name),
        action=action,
        alias="",
        came_from=None,
        version=version,
        details=details,
        authority=authority,
    )
    follow_log(mlflow, storage_root, name, only="")
    return entry


def current(mlflow: "MlflowClient", name: str, alias: str) -> int | None:
    """The version that `alias` is at in MLflow."""
    at = mlflow.get_registered_model(name).aliases.get(alias)
    return None if at is None else int(at)


def follow_log(
    mlflow: "MlflowClient",
    storage_root: str,
    name: str,
    *,
    authority: Authority | None = None,
    only: str | None = None,
) -> list[Entry]:
    """Carry out what the log says and MLflow does not have yet; the log's entries. Doing it twice, or two at
    once, is harmless.

    `authority` has to vouch for what is carried out. `only` ends before the first entry that moves another
    alias: what registers moves no champion. Whoever sets an alias reads the log again afterwards, so the last
    to finish leaves MLflow at the log's end.
    """
    while True:
        entries = read(storage_root, name)
        if authority is not None:
            authority.require(name, entries)
        pending = entries[carried_out(mlflow, storage_root, name, entries) :]
        if only is not None:
            pending = list(takewhile(lambda entry: entry.alias in ("", only), pending))
        if not pending:
            return entries
        last = {entry.alias: entry for entry in pending if entry.alias}
        for entry in pending:
            if certificate := entry.details.get("certificate"):
                storage.write_json(certificate_uri(storage_root, name, entry.version), certificate)
        for alias, entry in last.items():
            _set_alias(mlflow, storage_root, name, alias, entry)
        mlflow.set_registered_model_tag(name, LOG_TAG, f"{pending[-1].number}:{pending[-1].digest}")


def _set_alias(mlflow: "MlflowClient", storage_root: str, name: str, alias: str, entry: Entry) -> None:
    from mlflow.exceptions import MlflowException

    try:
        mlflow.set_registered_model_alias(name, alias, str(entry.version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise LogError(
            f"{storage.join(folder(storage_root, name), 'log')}: entry {entry.number} moves {alias} to version"
            f" {entry.version}, which MLflow does not have: the entry is forged, or the version was deleted;"
            " restore the log or MLflow's store from a copy"
        ) from error


def positions(entries: Sequence[Entry], carried: int) -> dict[str, set[int]]:
    """Where each alias may be: at the log's end or, while an interrupted command waits, where the entries
    that MLflow has, `carried` of them, left it."""
    at: dict[str, set[int]] = {}
    for part in (entries, entries[:carried]):
        for alias, version in {entry.alias: entry.version for entry in part if entry.alias}.items():
            at.setdefault(alias, set()).add(version)
    return at


def carried_out(mlflow: "MlflowClient", storage_root: str, name: str, entries: list[Entry]) -> int:
    """How many entries MLflow has; raises `LogError` when it has one that the log lost."""
    tag = mlflow.get_registered_model(name).tags.get(LOG_TAG)
    if tag is None:
        return 0
    number, _, digest = tag.partition(":")
    count = int(number) if number.isdecimal() else 0
    if not 1 <= count <= len(entries) or entries[count - 1].digest != digest:
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
