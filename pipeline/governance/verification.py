"""A promoted version's certificate held against itself, the log, the weights, result.json and the
tombstones."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline import storage
from pipeline.config import RegistryConfig
from pipeline.data import tombstones
from pipeline.errors import InputError
from pipeline.governance import certificate_page, promotion, signing
from pipeline.governance.promotion import weights_digest
from pipeline.tracking import alias_log
from pipeline.tracking.alias_log import Entry
from pipeline.tracking.mlflow_runs import client, tracking_uri
from pipeline.tracking.registry import CHAMPION, find_version


def verify(config: RegistryConfig) -> list[str]:
    """Check a promoted version's certificate against itself, the log, the weights and result.json; a line for
    each check that held.

    `config.version` is read from the log (absent: champion), so this needs no MLflow server. Raises
    `InputError` at the first thing that does not hold.
    """
    name = config.tracking.model_name
    entries = alias_log.read(config.storage, name)
    number = _version_in_log(entries, config.version or CHAMPION, name)
    uri = alias_log.certificate_uri(config.storage, name, number)
    if not storage.exists(uri):
        raise InputError(
            f"{name} version {number}: no certificate at {uri}; jobs/registry.py promote issues one"
        )
    text = storage.read_bytes(uri)
    said, signer = signing.opened(text, public_key=config.public_key)
    promoted = [entry for entry in entries if entry.action == "promote" and entry.version == number]
    lines = [f"certificate of {name} version {number}: as issued {said.get('issued')}, {signer}"]
    if not promoted or promoted[-1].details.get("certificate") != json.loads(text):
        raise signing.CertificateError(
            f"{uri}: not the certificate that entry {promoted[-1].number if promoted else '?'} of the log"
            " holds"
        )
    lines.append(
        f"alias log: {len(entries)} entries, unbroken; entry {promoted[-1].number} promotes this version with"
        " this certificate"
    )
    if certificate_page.has_page(promoted[-1].details["certificate"]):
        lines.append(_verify_page(config.storage, name, promoted[-1]))
    if warning := promotion.unsigned_after_signed(entries, number):
        lines.append(f"warning: {warning}")
    return [
        *lines,
        _verify_result(config, said),
        _verify_weights(config, number, said),
        *_verify_purges(config, entries, said),
    ]


def _version_in_log(entries: list[Entry], which: str, name: str) -> int:
    if which.isdigit():
        return int(which)
    at = [entry.version for entry in entries if entry.alias == which]
    if not at:
        raise InputError(
            f"version: got {which!r}, which no entry of the log of {name} names; jobs/registry.py promote"
            " makes a champion"
        )
    return at[-1]


def _verify_page(storage_root: str, name: str, entry: Entry) -> str:
    """The page says nothing but what the certificate says: it can be made again and compared."""
    state = certificate_page.page_state(storage_root, name, entry)
    if state == "edited":
        raise signing.CertificateError(
            f"{certificate_page.page_uri(storage_root, name, entry.version)}: not the page of this"
            " certificate: it was edited; jobs/registry.py promote writes it again"
        )
    outcomes = {
        "issued": "as it was issued",
        "missing": "not there; jobs/registry.py promote writes it again",
        "unknown": "made by an earlier version of this program, so it cannot be compared",
    }
    return f"{certificate_page.PAGE}: {outcomes[state]}"


def _verify_result(config: RegistryConfig, said: Mapping[str, Any]) -> str:
    uri = storage.join(config.storage, "runs", str(said["model"]["run_id"]), "result.json")
    if not storage.exists(uri):
        return f"result.json: not there to check ({uri})"
    if storage.digest_of(storage.read_json(uri)) != said["digests"]["result"]:
        raise signing.CertificateError(f"{uri}: not the result that was certified: it was edited")
    return "result.json: the one that was certified"


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


def _verify_weights(config: RegistryConfig, number: int, said: Mapping[str, Any]) -> str:
    try:
        mlflow_client = client(config.tracking, config.storage, create=False)
        version = find_version(
            mlflow_client,
            config.tracking.model_name,
            str(number),
            where=tracking_uri(config.tracking, config.storage),
        )
    except InputError as error:
        return f"weights: not there to check ({error})"
    if weights_digest(config, version) != said["digests"]["weights"]:
        raise signing.CertificateError(
            f"{config.tracking.model_name} version {number}: its weights are not those that were certified"
        )
    return f"weights: those that were certified ({str(said['digests']['weights'])[:12]})"
