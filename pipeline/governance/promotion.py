"""champion: who may become it, and how it goes back."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import version_files
from pipeline import storage
from pipeline.config import RegistryConfig
from pipeline.config.commands import continue_command, registry_command
from pipeline.errors import InputError
from pipeline.evaluation.gate import NOT_REACHED
from pipeline.governance import certificate, certificate_facts, certificate_page, honours, log_key, signing
from pipeline.requests import ledger
from pipeline.tracking import alias_log, version_check
from pipeline.tracking.alias_log import Entry
from pipeline.tracking.mlflow_runs import client
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

log = logging.getLogger(__name__)


def promote(config: RegistryConfig, *, dry_run: bool = False) -> tuple[int, Entry | None]:
    """Make `config.version` champion. Returns its number and the log's entry, None when it is champion
    already (or on a dry run).

    With a key, a champion whose certificate is unsigned is promoted once more, to be signed.

    Raises `InputError` when the gate did not pass or a request would not be honoured any more and no override
    is given, when the version has no result, when result, tags and weights do not agree, or when another
    change came first.
    """
    mlflow, name, entries = _open(config, dry_run=dry_run)
    version = find_version(mlflow, config.tracking, config.storage, config.version or CANDIDATE)
    number = int(version.version)
    result = result_of(config.storage, version)
    folder = local_copy(config.tracking, config.storage, version)
    _require_consistent(version, result, folder)
    version_check.require_config(version, entries, version_check.config_uri(config.storage, result["run_id"]))
    version_check.require_result(version, entries, result)
    serving = alias_log.current(mlflow, name, CHAMPION) == number and champions(entries)[-1:] == [number]
    reasons = [f"the gate refuses it ({'; '.join(failed)})"] if (failed := refusals(result)) else []
    lost = [] if serving else _lost(config, mlflow, version, champions(entries))
    reasons += [f"it does not honour {line}" for line in lost]
    _require_reason(config, name, number, reasons)
    authority = log_key.of(config)
    if dry_run or (serving and not (config.key and _unsigned(entries, number))):
        return number, None
    document = certificate.issue(
        result,
        model_name=name,
        version=number,
        config=_config_of(config.storage, str(result["run_id"])),
        override=config.override if reasons else None,
        key=config.key,
        around=certificate_facts.gather(config, mlflow, version, result, entries, lost, folder),
    )
    details = {
        "certificate": document,
        "page": certificate_page.digest_of(document),
        "override": config.override if reasons else None,
        "not_honoured": lost,
        version_check.VERSION: version_files.digest_of(version_files.digests(folder)),
    }
    entry = alias_log.change(
        mlflow,
        config.storage,
        name,
        entries,
        action="promote",
        alias=CHAMPION,
        version=number,
        details=details,
        authority=authority,
    )
    certificate_page.write_missing(config.storage, name, [*entries, entry])
    if warning := log_key.unsigned_after_signed([*entries, entry], number):
        log.warning("warning: %s", warning)
    honours.reopen(config.storage, version, lost)
    return number, entry


def rollback(config: RegistryConfig, *, dry_run: bool = False) -> tuple[int, int]:
    """Give champion back to the version that had it before. Returns (from, to).

    Raises `InputError` when there is none, or when it does not honour every request that the present one and
    the ledger's answers honour and no override is given: what was forgotten would be back.
    """
    mlflow, name, entries = _open(config, dry_run=dry_run)
    line = champions(entries)
    if len(line) < 2:
        state = f"version {line[-1]} is the first champion" if line else "there is no champion yet"
        promote_ = registry_command("promote", config.tracking, config.storage)
        raise InputError(
            f"{name}: nothing to roll back to, {state}; `{promote_}` makes another version champion"
        )
    version = find_version(mlflow, config.tracking, config.storage, str(line[-2]))
    local_copy(config.tracking, config.storage, version)  # raises for one that was changed
    lost = _lost(config, mlflow, version, line)
    _require_reason(config, name, line[-2], [f"it does not honour {one}" for one in lost])
    if not dry_run:
        alias_log.change(
            mlflow,
            config.storage,
            name,
            entries,
            action="rollback",
            alias=CHAMPION,
            version=line[-2],
            details={"override": config.override, "not_honoured": lost} if lost else None,
            authority=log_key.of(config),
        )
        honours.reopen(config.storage, version, lost)
    return line[-1], line[-2]


def _lost(
    config: RegistryConfig, mlflow: "MlflowClient", version: "ModelVersion", line: list[int]
) -> list[str]:
    """What `version` as champion would not honour any more: requests of the present champion, the last of
    `line`, and of the ledger."""
    name = config.tracking.model_name
    predecessor = None
    if line and line[-1] != int(version.version):
        present = find_version(mlflow, config.tracking, config.storage, str(line[-1]))
        predecessor = honours.of_version(config.storage, present)
    answered = honours.answered_of(ledger.read(config.storage), name)
    return honours.missing(honours.of_version(config.storage, version), predecessor, answered)


def _require_reason(config: RegistryConfig, name: str, number: int, reasons: list[str]) -> None:
    if reasons and not config.override:
        raise InputError(
            f"{name} version {number}: {'; '.join(reasons)}; promote another version, or --set"
            " override='<reason>', which is recorded"
        )


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
    by other means. `pending`: entries that an interrupted command left to be carried out in MLflow."""

    entries: list[Entry]
    pending: list[Entry]
    before: dict[int, str]
    now: list[str]


def require_vouched_for(config: RegistryConfig) -> None:
    """Raise `LogError` where a key is given and the log says of champion what the key does not vouch for."""
    name = config.tracking.model_name
    if (authority := log_key.of(config)) is not None:
        authority.require(name, alias_log.read(config.storage, name))


def sign(config: RegistryConfig, *, dry_run: bool = False) -> tuple[list[Entry], Entry | None]:
    """Vouch with `config.key` for the log as it is: for one of before there was a key, or of another key. The
    entries that the key did not vouch for, and the log's new entry (None on a dry run)."""
    key = log_key.of(config)
    if key is None:
        raise InputError(
            "key: got none, expected the Ed25519 private key that signs the log: --set key=<pem>"
        )
    mlflow, name = client(config.tracking, config.storage, create=False), config.tracking.model_name
    require_registered(mlflow, config.tracking, config.storage)
    entries = alias_log.read(config.storage, name)
    if not entries:
        raise InputError(f"{name}: its log has no entries; there is nothing to sign")
    loose = log_key.not_vouched_for(key, name, entries)
    if dry_run:
        return loose, None
    entry = alias_log.note(
        mlflow,
        config.storage,
        name,
        action="sign",
        version=entries[-1].version,
        details={"vouches_for": len(entries)},
        authority=key,
    )
    return loose, entry


def history(config: RegistryConfig) -> History:
    """The log, held against itself, the key where one is given, and MLflow; nothing is carried out. Raises
    `LogError` for a log that was edited or forged."""
    mlflow, name, entries = _open(config, dry_run=True)
    carried_out = alias_log.carried_out(mlflow, config.storage, name, entries)
    pending = entries[carried_out:]
    before: dict[int, str] = {}
    last: dict[str, int] = {}
    for entry in entries:
        if not entry.alias:
            continue
        if entry.came_from != last.get(entry.alias):
            before[entry.number] = f"{entry.alias} had been moved to version {entry.came_from} by other means"
        last[entry.alias] = entry.version
    at = {alias: int(version) for alias, version in mlflow.get_registered_model(name).aliases.items()}
    expected = alias_log.positions(entries, carried_out)
    now = [
        f"{alias} is at version {at.get(alias, 'none')} in MLflow, the log says {last.get(alias, 'none')}"
        for alias in sorted({*at, *last})
        if at.get(alias) not in expected.get(alias, {None})
    ]
    return History(entries=entries, pending=pending, before=before, now=now)


def refusals(result: Mapping[str, Any]) -> list[str]:
    """Why the gate refuses a result; empty when it passed. A check that is missing, or was not measured,
    never passes."""
    gate = result.get("gate") or {}
    checks = gate.get("checks") or []
    failed = [
        _failed(check)
        for check in checks
        if check.get("passed") is not True or isinstance(check.get("value"), str | list | dict)
    ]
    if not checks:
        failed.append("its result holds no checks")
    if gate.get("passed") is not True and not failed:
        failed.append("its result says that it did not pass")
    return failed


def _failed(check: Mapping[str, Any]) -> str:
    absent = "not reached" if check.get("name") in NOT_REACHED else "not measured"
    value = absent if check.get("value") is None else _figure(check["value"])
    where = f" (class {check['class']})" if check.get("class") is not None else ""
    bound = f", bound {_figure(check['bound'])}" if check.get("bound") is not None else ""
    reason = f": {check['reason']}" if check.get("reason") else ""
    return f"{check.get('name')} is {value}{where}{bound}{reason}"


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else f"{value!r}, which is no number"


def result_of(storage_root: str, version: "ModelVersion") -> dict[str, Any]:
    """The result.json of the run that `version` came from."""
    run_id = version.tags.get(RUN_ID_TAG)
    uri = storage.join(storage_root, "runs", str(run_id), "result.json")
    if run_id is None or not storage.exists(uri):
        raise InputError(
            f"{version.name} version {version.version}: no result at {uri}, expected what the run left there;"
            f" complete it with `{continue_command(storage_root, str(run_id))}`, or check storage"
        )
    try:
        return dict(storage.read_json(uri))
    except ValueError as error:
        raise InputError(
            f"{uri}: not JSON ({error}); run `{continue_command(storage_root, str(run_id))}` again"
        ) from error


def _open(config: RegistryConfig, *, dry_run: bool) -> tuple["MlflowClient", str, list[Entry]]:
    """The registry with what an interrupted call left undone carried out (not on a dry run). Raises
    `LogError` where a key is given that does not vouch for the log."""
    mlflow, name = client(config.tracking, config.storage, create=False), config.tracking.model_name
    require_registered(mlflow, config.tracking, config.storage)
    if dry_run:
        require_vouched_for(config)
        return mlflow, name, alias_log.read(config.storage, name)
    entries = alias_log.follow_log(mlflow, config.storage, name, authority=log_key.of(config))
    certificate_page.write_missing(config.storage, name, entries)
    return mlflow, name, entries


def _require_consistent(version: "ModelVersion", result: Mapping[str, Any], folder: Path) -> None:
    """The result must be the one the version was registered with, and the weights those it speaks of."""
    title = f"{version.name} version {version.version}"
    recorded = {key: result.get(key) for key in ("run_id", "weights_digest")}
    recorded |= {
        key: value
        for key in (version_check.VERSION, version_check.CONFIG)
        if (value := (result.get("model") or {}).get(key)) is not None
    }
    for key, expected in recorded.items():
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
    actual = weights_digest(folder)
    if actual != result.get("weights_digest"):
        raise InputError(
            f"{title}: its {model_folder.WEIGHTS} has digest {actual[:12]}, result.json says"
            f" {str(result.get('weights_digest'))[:12]}"
        )


def weights_digest(folder: Path) -> str:
    """Of the values of all weights: those in the version's folder or, for a delta, those with its base."""
    from models.weights import from_bytes, weights_digest

    if "delta" in storage.read_json(str(folder / model_folder.CONFIG)):
        return model_folder.read(str(folder), "version").digest
    return weights_digest(from_bytes((folder / model_folder.WEIGHTS).read_bytes(), str(folder)))


def _config_of(storage_root: str, run_id: str) -> bytes | None:
    uri = version_check.config_uri(storage_root, run_id)
    return storage.read_bytes(uri) if storage.exists(uri) else None


def _unsigned(entries: list[Entry], number: int) -> bool:
    """Whether the latest certificate of version `number` bears no signature."""
    issued = [
        entry.details["certificate"]
        for entry in entries
        if entry.version == number and entry.details.get("certificate")
    ]
    return bool(issued) and not signing.is_signed(issued[-1])
