"""A promoted version's certificate held against itself, the log, MLflow, the version's files, its run's
configuration and result, and the tombstones."""

import json
from collections.abc import Mapping
from typing import Any

from models import version_files
from pipeline import storage
from pipeline.config import RegistryConfig
from pipeline.config.commands import registry_command
from pipeline.data import tombstones
from pipeline.errors import InputError
from pipeline.governance import certificate_page, log_key, signing
from pipeline.governance.promotion import weights_digest
from pipeline.tracking import alias_log, version_check
from pipeline.tracking.alias_log import Entry
from pipeline.tracking.mlflow_runs import client
from pipeline.tracking.registry import CHAMPION, RUN_ID_TAG, find_version, unchecked_copy


def verify(config: RegistryConfig) -> list[str]:
    """Check a promoted version's certificate against itself, the log, MLflow, the version's files, its run's
    config.yaml and result.json; a line for each check.

    `config.version` is read from the log (absent: champion), so what lies on disk needs no MLflow server.
    Raises `CertificateError`, `LogError` or `VersionError` at the first thing that does not hold and, unless
    `config.allow_missing`, when something is not there to be checked.
    """
    name = config.tracking.model_name
    entries = alias_log.read(config.storage, name)
    if (authority := log_key.of(config)) is not None:
        authority.require(name, entries)
    number = _version_in_log(config, entries)
    uri = alias_log.certificate_uri(config.storage, name, number)
    if not storage.exists(uri):
        raise InputError(
            f"{name} version {number}: no certificate at {uri};"
            f" `{_promote(config, f'version={number}')}` issues one"
        )
    text = storage.read_bytes(uri)
    said, signer = signing.opened(text, public_key=config.public_key)
    lines = [f"certificate of {name} version {number}: as issued {said.get('issued')}, {signer}"]
    about = said["model"]["name"], int(said["model"]["version"])
    if about != (name, number):
        raise signing.CertificateError(
            f"{uri}: it is about {about[0]} version {about[1]}, expected {name} version {number}"
        )
    promoted = [entry for entry in entries if entry.action == "promote" and entry.version == number]
    if not promoted or promoted[-1].details.get("certificate") != json.loads(text):
        raise signing.CertificateError(
            f"{uri}: not the certificate that entry {promoted[-1].number if promoted else '?'} of the log"
            " holds"
        )
    vouched = "" if authority is None else ", the key that was given vouches for it"
    lines.append(
        f"alias log: {len(entries)} entries, unbroken{vouched}; entry {promoted[-1].number} promotes this"
        " version with this certificate"
    )
    if certificate_page.has_page(promoted[-1].details["certificate"]):
        lines.append(_verify_page(config, name, promoted[-1]))
    if warning := log_key.unsigned_after_signed(entries, number):
        lines.append(f"warning: {warning}")
    missing: list[str] = []
    for check in (_verify_result, _verify_config, _verify_version):
        line, whole = check(config, entries, number, said)
        lines.append(line)
        if not whole:
            missing.append(line)
    lines += _verify_purges(config, entries, said)
    if missing and not config.allow_missing:
        raise signing.CertificateError(
            f"{name} version {number}: what there is holds, but not all could be checked:"
            f" {'; '.join(missing)}; --allow-missing accepts that"
        )
    return lines


def _promote(config: RegistryConfig, *overrides: str) -> str:
    return registry_command("promote", config.tracking, config.storage, *overrides)


def _version_in_log(config: RegistryConfig, entries: list[Entry]) -> int:
    which = config.version or CHAMPION
    if which.isdigit():
        return int(which)
    at = [entry.version for entry in entries if entry.alias == which]
    if not at:
        raise InputError(
            f"version: got {which!r}, which no entry of the log of {config.tracking.model_name} names;"
            f" `{_promote(config)}` makes a champion"
        )
    return at[-1]


def _verify_page(config: RegistryConfig, name: str, entry: Entry) -> str:
    """The page says nothing but what the certificate says: it can be made again and compared."""
    state = certificate_page.page_state(config.storage, name, entry)
    promote = f"`{_promote(config, f'version={entry.version}')}` writes it again"
    if state == "edited":
        raise signing.CertificateError(
            f"{certificate_page.page_uri(config.storage, name, entry.version)}: not the page of this"
            f" certificate: it was edited; {promote}"
        )
    outcomes = {
        "issued": "as it was issued",
        "missing": f"not there; {promote}",
        "unknown": "made by an earlier version of this program, so it cannot be compared",
    }
    return f"{certificate_page.PAGE}: {outcomes[state]}"


def _verify_result(
    config: RegistryConfig, entries: list[Entry], number: int, said: Mapping[str, Any]
) -> tuple[str, bool]:
    uri = storage.join(config.storage, "runs", str(said["model"]["run_id"]), "result.json")
    if not storage.exists(uri):
        return f"result.json: not there to check ({uri})", False
    if storage.digest_of(storage.read_json(uri)) != said["digests"]["result"]:
        raise signing.CertificateError(f"{uri}: not the result that was certified: it was edited")
    return "result.json: the one that was certified", True


def _verify_config(
    config: RegistryConfig, entries: list[Entry], number: int, said: Mapping[str, Any]
) -> tuple[str, bool]:
    uri = version_check.config_uri(config.storage, str(said["model"]["run_id"]))
    digest, certified = version_check.config_digest(uri), said["digests"].get("config")
    if digest is None:
        return f"config.yaml: not there to check ({uri})", False
    if certified is None:
        return "config.yaml: not recorded when the version was certified", False
    if digest != certified:
        raise signing.CertificateError(f"{uri}: not the configuration that was certified: it was edited")
    return "config.yaml: the one that was certified", True


def _verify_purges(config: RegistryConfig, entries: list[Entry], said: Mapping[str, Any]) -> list[str]:
    """What the log says of the request's data having been removed since, the tombstone held against it."""
    # one whose certificate was issued before there were several has its one request
    requests = [one["id"] for one in said.get("requests") or [said.get("request") or {"id": None}]]
    lines = []
    for request in requests:
        purges = [
            entry for entry in entries if entry.action == "purge" and entry.details["request"] == request
        ]
        if not purges:
            continue
        tombstone = tombstones.find(config.storage, str(request))
        if tombstone is None or tombstone.digest != purges[-1].details["tombstone"]:
            raise signing.CertificateError(
                f"tombstone of request {request}: {'removed' if tombstone is None else 'edited'}, entry"
                f" {purges[-1].number} of the log names one with digest"
                f" {str(purges[-1].details['tombstone'])[:12]}"
            )
        lines.append(
            f"the data of request {request}: purged {purges[-1].time}, {tombstone.count} sample ids may not"
            " be ingested again"
        )
    return lines


def _verify_version(
    config: RegistryConfig, entries: list[Entry], number: int, said: Mapping[str, Any]
) -> tuple[str, bool]:
    """Its files, and what MLflow says of it: its tags, where the log is at, where champion is."""
    name = config.tracking.model_name
    title = f"{name} version {number}"
    try:
        mlflow = client(config.tracking, config.storage, create=False)
        version = find_version(mlflow, config.tracking, config.storage, str(number))
        alias_log.carried_out(mlflow, config.storage, name, entries)
        champion = alias_log.current(mlflow, name, CHAMPION)
        folder = unchecked_copy(config.tracking, config.storage, version)
    except InputError as error:
        if isinstance(error, alias_log.LogError):
            raise
        return f"version: not there to check ({error})", False
    last = [entry.version for entry in entries if entry.alias == CHAMPION][-1]
    if number == last != champion:
        raise signing.CertificateError(
            f"{title}: champion by the log, and in MLflow {champion or 'no version'} is: it was moved by"
            " other means, or a promotion was interrupted; promote or roll back"
        )
    certified = said["digests"]
    for tag, expected in ((RUN_ID_TAG, said["model"]["run_id"]), ("weights_digest", certified["weights"])):
        if version.tags.get(tag) != str(expected):
            raise signing.CertificateError(
                f"{title}: MLflow's tag {tag} says {version.tags.get(tag)}, the certificate {expected}"
            )
    version_check.require_config(
        version, entries, version_check.config_uri(config.storage, version.tags[RUN_ID_TAG])
    )
    digest = version_check.require_files(version, entries, folder)
    if weights_digest(folder) != certified["weights"]:
        raise signing.CertificateError(f"{title}: its weights are not those that were certified")
    if certified.get("version_files") not in (None, digest):
        raise signing.CertificateError(f"{title}: its files are not those that were certified")
    if compiled := version_files.bytecode(folder):
        return f"version: compiled code that nothing vouches for, {folder}/{compiled[0]}: remove it", False
    if certified.get("version_files") is None and not version_check.recorded(
        version, entries, version_check.VERSION
    ):
        return (
            "version: the weights are those that were certified; its other files (scripts, config.json) were"
            " not recorded when it was registered",
            False,
        )
    return (
        f"version: every file as it was registered ({digest[:12]}), weights {certified['weights'][:12]}",
        True,
    )
