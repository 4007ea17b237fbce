"""champion: who may become it, how it goes back, and how anyone checks afterwards that it went right."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.config import RegistryConfig
from pipeline.data import tombstones
from pipeline.errors import InputError
from pipeline.evaluation.gate import NOT_REACHED
from pipeline.governance import certificate
from pipeline.tracking import alias_log
from pipeline.tracking.alias_log import Entry
from pipeline.tracking.mlflow_runs import client, tracking_uri
from pipeline.tracking.registry import (
    CANDIDATE,
    CHAMPION,
    RUN_ID_TAG,
    find_version,
    local_copy,
    require_registered,
)
from pipeline.weights import model_folder

if TYPE_CHECKING:
    from pipeline.tracking.mlflow_runs import MlflowClient
    from pipeline.tracking.registry import ModelVersion


def promote(config: RegistryConfig, *, dry_run: bool = False) -> tuple[int, Entry | None]:
    """Make `config.version` champion. Returns its number and the log's entry, None when it is champion
    already (or on a dry run).

    With a key, a champion whose certificate is unsigned is promoted once more, to be signed.

    Raises `InputError` when the gate did not pass and no override is given, when the version has no result,
    when result, tags and weights do not agree, or when another change came first.
    """
    mlflow, name, entries = _open(config, dry_run=dry_run)
    version = find_version(
        mlflow, name, config.version or CANDIDATE, where=tracking_uri(config.tracking, config.storage)
    )
    number = int(version.version)
    result = result_of(config.storage, version)
    _require_consistent(config, version, result)
    reasons = refusals(result)
    if reasons and not config.override:
        raise InputError(
            f"{name} version {number}: the gate refuses it ({'; '.join(reasons)}); promote another version,"
            " or --set override='<reason>', which is recorded"
        )
    if config.key is not None:
        certificate.private_key(config.key)
    serving = alias_log.current(mlflow, name, CHAMPION) == number and champions(entries)[-1:] == [number]
    if dry_run or (serving and not (config.key and _unsigned(entries, number))):
        return number, None
    document = certificate.issue(
        result,
        model_name=name,
        version=number,
        config=_config_of(config.storage, str(result["run_id"])),
        override=config.override if reasons else None,
        key=config.key,
    )
    details = {"certificate": document, "override": config.override if reasons else None}
    return number, alias_log.change(
        mlflow,
        config.storage,
        name,
        entries,
        action="promote",
        alias=CHAMPION,
        version=number,
        details=details,
    )


def rollback(config: RegistryConfig, *, dry_run: bool = False) -> tuple[int, int]:
    """Give champion back to the version that had it before. Returns (from, to)."""
    mlflow, name, entries = _open(config, dry_run=dry_run)
    line = champions(entries)
    if len(line) < 2:
        state = f"version {line[-1]} is the first champion" if line else "there is no champion yet"
        raise InputError(
            f"{name}: nothing to roll back to, {state}; jobs/registry.py promote makes another version"
            " champion"
        )
    find_version(mlflow, name, str(line[-2]), where=tracking_uri(config.tracking, config.storage))
    if not dry_run:
        alias_log.change(
            mlflow, config.storage, name, entries, action="rollback", alias=CHAMPION, version=line[-2]
        )
    return line[-1], line[-2]


def champions(entries: list[Entry]) -> list[int]:
    """The line of champions, the present one last: a promotion adds one, a rollback takes the last away."""
    line: list[int] = []
    for entry in entries:
        if entry.alias != CHAMPION:
            continue
        if entry.action == "rollback":
            line.pop()
        elif line[-1:] != [entry.version]:
            # promoted again to be signed, or because it was moved by other means
            line.append(entry.version)
    return line


@dataclass(frozen=True, kw_only=True)
class History:
    """The verified log. `before` says of an entry's number, and `now` of the present, that an alias was moved
    by other means."""

    entries: list[Entry]
    before: dict[int, str]
    now: list[str]


def history(config: RegistryConfig, *, dry_run: bool = False) -> History:
    """The log, held against itself and against MLflow. Raises `LogError` for a log that was edited."""
    mlflow, name, entries = _open(config, dry_run=dry_run)
    before: dict[int, str] = {}
    last: dict[str, int] = {}
    for entry in entries:
        if not entry.alias:
            continue
        if entry.came_from != last.get(entry.alias):
            before[entry.number] = f"{entry.alias} had been moved to version {entry.came_from} by other means"
        last[entry.alias] = entry.version
    at = {alias: int(version) for alias, version in mlflow.get_registered_model(name).aliases.items()}
    now = [
        f"{alias} is at version {at.get(alias, 'none')} in MLflow, the log says {last.get(alias, 'none')}"
        for alias in sorted({*at, *last})
        if at.get(alias) != last.get(alias)
    ]
    return History(entries=entries, before=before, now=now)


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
    try:
        document = storage.read_json(uri)
    except ValueError as error:
        raise certificate.CertificateError(
            f"{uri}: not JSON any more ({error}): it was edited or damaged"
        ) from error
    promoted = [entry for entry in entries if entry.action == "promote" and entry.version == number]
    lines = [
        f"certificate of {name} version {number}: as issued {document.get('issued')},"
        f" {certificate.check(document, public_key=config.public_key)}"
    ]
    if not promoted or promoted[-1].details.get("certificate") != document:
        raise certificate.CertificateError(
            f"{uri}: not the certificate that entry {promoted[-1].number if promoted else '?'} of the log"
            " holds"
        )
    lines.append(
        f"alias log: {len(entries)} entries, unbroken; entry {promoted[-1].number} promotes this version with"
        " this certificate"
    )
    return [
        *lines,
        _verify_result(config, document),
        _verify_weights(config, number, document),
        *_verify_purges(config, entries, document),
    ]


def refusals(result: Mapping[str, Any]) -> list[str]:
    """Why the gate refuses a result; empty when it passed. A check that is missing, or was not measured,
    never passes."""
    gate = result.get("gate") or {}
    checks = gate.get("checks") or []
    failed = [_failed(check) for check in checks if check.get("passed") is not True]
    if not checks:
        failed.append("its result holds no checks")
    if gate.get("passed") is not True and not failed:
        failed.append("its result says that it did not pass")
    return failed


def _failed(check: Mapping[str, Any]) -> str:
    absent = "not reached" if check.get("name") in NOT_REACHED else "not measured"
    value = absent if check.get("value") is None else f"{check['value']:.4g}"
    where = f" (class {check['class']})" if check.get("class") is not None else ""
    bound = f", bound {check['bound']:g}" if check.get("bound") is not None else ""
    return f"{check.get('name')} is {value}{where}{bound}"


def result_of(storage_root: str, version: "ModelVersion") -> dict[str, Any]:
    """The result.json of the run that `version` came from."""
    run_id = version.tags.get(RUN_ID_TAG)
    uri = storage.join(storage_root, "runs", str(run_id), "result.json")
    if run_id is None or not storage.exists(uri):
        raise InputError(
            f"{version.name} version {version.version}: no result at {uri}, expected what"
            f" jobs/unlearn_imagenet.py leaves there; run it again with --set run_id={run_id} to complete it,"
            " or check storage"
        )
    try:
        return dict(storage.read_json(uri))
    except ValueError as error:
        raise InputError(
            f"{uri}: not JSON ({error}); run the job again with --set run_id={run_id}"
        ) from error


def _open(config: RegistryConfig, *, dry_run: bool) -> tuple["MlflowClient", str, list[Entry]]:
    """The registry with what an interrupted call left undone carried out (not on a dry run)."""
    mlflow, name = client(config.tracking, config.storage, create=False), config.tracking.model_name
    require_registered(mlflow, name, where=tracking_uri(config.tracking, config.storage))
    return (
        mlflow,
        name,
        alias_log.read(config.storage, name)
        if dry_run
        else alias_log.follow_log(mlflow, config.storage, name),
    )


def _require_consistent(config: RegistryConfig, version: "ModelVersion", result: Mapping[str, Any]) -> None:
    """The result must be the one the version was registered with, and the weights those it speaks of."""
    title = f"{version.name} version {version.version}"
    for key, expected in (("run_id", result.get("run_id")), ("weights_digest", result.get("weights_digest"))):
        if str(expected) != version.tags.get(key):
            raise InputError(
                f"{title}: result.json has {key} {expected}, the version was registered with"
                f" {version.tags.get(key)}; one was changed"
            )
    passed = (result.get("gate") or {}).get("passed") is True
    if passed != (version.tags.get("gate") == "passed"):
        raise InputError(
            f"{title}: result.json says the gate passed: {passed}, the version was registered with"
            f" {version.tags.get('gate')!r}"
        )
    actual = _weights_digest(config, version)
    if actual != result.get("weights_digest"):
        raise InputError(
            f"{title}: its {model_folder.WEIGHTS} has digest {actual[:12]}, result.json says"
            f" {str(result.get('weights_digest'))[:12]}"
        )


def _weights_digest(config: RegistryConfig, version: "ModelVersion") -> str:
    """Of the values of all weights: those in the version or, for a delta, those with its base."""
    from models.weights import from_bytes, weights_digest

    folder = local_copy(config.tracking, config.storage, version)
    if "delta" in storage.read_json(str(folder / model_folder.CONFIG)):
        return model_folder.read(str(folder), f"version {version.version}").digest
    return weights_digest(from_bytes((folder / model_folder.WEIGHTS).read_bytes(), str(folder)))


def _config_of(storage_root: str, run_id: str) -> bytes | None:
    uri = storage.join(storage_root, "runs", run_id, "config.yaml")
    return storage.read_bytes(uri) if storage.exists(uri) else None


def _unsigned(entries: list[Entry], number: int) -> bool:
    """Whether the latest certificate of version `number` bears no signature."""
    issued = [
        entry.details["certificate"]
        for entry in entries
        if entry.version == number and entry.details.get("certificate")
    ]
    return bool(issued) and issued[-1]["signature"] is None


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


def _verify_result(config: RegistryConfig, found: Mapping[str, Any]) -> str:
    uri = storage.join(config.storage, "runs", str(found["model"]["run_id"]), "result.json")
    if not storage.exists(uri):
        return f"result.json: not there to check ({uri})"
    if storage.digest_of(storage.read_json(uri)) != found["digests"]["result"]:
        raise certificate.CertificateError(f"{uri}: not the result that was certified: it was edited")
    return "result.json: the one that was certified"


def _verify_purges(config: RegistryConfig, entries: list[Entry], found: Mapping[str, Any]) -> list[str]:
    """What the log says of the request's data having been removed since, the tombstone held against it."""
    request = (found.get("request") or {}).get("id")
    purges = [entry for entry in entries if entry.action == "purge" and entry.details["request"] == request]
    if not purges:
        return []
    tombstone = tombstones.find(config.storage, str(request))
    if tombstone is None or tombstone.digest != purges[-1].details["tombstone"]:
        raise certificate.CertificateError(
            f"tombstone of request {request}: {'removed' if tombstone is None else 'edited'}, entry"
            f" {purges[-1].number} of the log names one with digest"
            f" {str(purges[-1].details['tombstone'])[:12]}"
        )
    return [
        f"the request's data: purged {purges[-1].time}, {tombstone.count} sample ids may not be"
        " ingested again"
    ]


def _verify_weights(config: RegistryConfig, number: int, found: Mapping[str, Any]) -> str:
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
    if _weights_digest(config, version) != found["digests"]["weights"]:
        raise certificate.CertificateError(
            f"{config.tracking.model_name} version {number}: its weights are not those that were certified"
        )
    return f"weights: those that were certified ({str(found['digests']['weights'])[:12]})"
