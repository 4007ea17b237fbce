"""Registered versions of a model: made once per run, found by alias or number, loadable
anywhere MLflow is."""

import datetime
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import version_files
from models.block_list import HEAD
from pipeline import storage
from pipeline.config import Registry
from pipeline.config.commands import command, registry_command
from pipeline.errors import InputError
from pipeline.redaction import redact
from pipeline.tracking import alias_log, artifact_store, run_page, version_check
from pipeline.tracking.alias_log import CANDIDATE as CANDIDATE
from pipeline.tracking.alias_log import CHAMPION as CHAMPION
from pipeline.tracking.honoured_requests import honoured as honoured
from pipeline.tracking.honoured_requests import honoured_of, honoured_tags, passed, utc
from pipeline.tracking.mlflow_runs import Tracker, client, tracking_uri
from pipeline.tracking.version_folder import save_pyfunc

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.pyfunc import PyFuncModel

RUN_ID_TAG = "run_id"
LEDGER = "requests"  # the ledger's folder under the storage root


def register(
    tracker: Tracker, *, folder: str, image_shape: tuple[int, int, int], result: Mapping[str, Any]
) -> int:
    """Register `config.json` and `model.safetensors` of the URI `folder` as a version of
    `tracking.model_name`; its number.

    `image_shape` is (H, W, C) of an image sampled from it. `result` (as in result.json) gives the version's
    tags. The alias
    `candidate` moves to the version unless it is already at a newer one. A second call for the same run
    registers nothing new; a call after an interrupted one completes it.
    """
    mlflow, name = tracker.client, tracker.tracking.model_name
    _require_model(mlflow, name)
    version = _version_of_run(mlflow, name, tracker.run_id)
    tracker.set_tags(version_tags(result))
    if version is None:
        with tempfile.TemporaryDirectory() as temporary:
            files_digest = save_pyfunc(
                folder,
                Path(temporary) / "model",
                image_shape=image_shape,
                serving=_serving(tracker, result),
            )
            model = run_page.logged_model(mlflow, tracker.mlflow_run_id, name, str(Path(temporary) / "model"))
        config_digest = version_check.config_digest(
            version_check.config_uri(tracker.storage_root, tracker.run_id)
        )
        tags = {
            RUN_ID_TAG: tracker.run_id,
            **version_tags(result),
            version_check.VERSION: files_digest,
            **({version_check.CONFIG: config_digest} if config_digest else {}),
            version_check.RESULT: version_check.result_digest(result),
        }
        version = int(
            # its place and not models:/<id>, which MLflow looks up in a global store
            mlflow.create_model_version(
                name,
                model.artifact_location,
                run_id=tracker.mlflow_run_id,
                tags=tags,
                model_id=model.model_id,
            ).version
        )
    else:
        # of a call that was interrupted: what this one measured is what it leaves
        mlflow.set_model_version_tag(
            name, str(version), version_check.RESULT, version_check.result_digest(result)
        )
    run_page.link_version(mlflow, tracker.mlflow_run_id, name, version, result)
    _log_version(mlflow, tracker.storage_root, name, version)
    return version


def _log_version(mlflow: "MlflowClient", storage_root: str, name: str, version: int) -> None:
    """Have the log name `version` and its digests, and candidate move to it where it is the newest."""
    entries = alias_log.follow_log(mlflow, storage_root, name, only=CANDIDATE)
    details = digests_of(mlflow, name, version)
    newest = max((entry.version for entry in entries if entry.alias == CANDIDATE), default=0)
    if version > newest:
        alias_log.change(
            mlflow,
            storage_root,
            name,
            entries,
            action="register",
            alias=CANDIDATE,
            version=version,
            details=details,
        )
    elif not any(entry.version == version and entry.details.items() >= details.items() for entry in entries):
        alias_log.note(mlflow, storage_root, name, action="register", version=version, details=details)


def digests_of(mlflow: "MlflowClient", name: str, version: int) -> dict[str, str]:
    """The digests that a version was registered with: of its files, and of its run's config.yaml and
    result."""
    tags = mlflow.get_model_version(name, str(version)).tags
    names = (version_check.VERSION, version_check.CONFIG, version_check.RESULT)
    return {key: tags[key] for key in names if key in tags}


def version_tags(result: Mapping[str, Any]) -> dict[str, str]:
    """What a version is searched by: the request, the method, every digest, the gate's outcome."""
    request, gate = result.get("request") or {}, result.get("gate") or {}
    outcome = gate.get("passed")
    values = {
        "request_id": request.get("id"),
        "request_classes": request.get("classes"),
        "request_exchange": request.get("exchange"),
        **honoured_tags(result),
        "gate": "passed" if outcome is True else "failed" if outcome is False else "not measured",
        **{
            key: result.get(key)
            for key in (
                "method",
                "base_digest",
                "weights_digest",
                "lake_digest",
                "partition_digest",
                "code_version",
                "seed",
            )
        },
    }
    return {key: str(value)[:5000] for key, value in values.items() if value is not None}


def _serving(tracker: Tracker, result: Mapping[str, Any]) -> dict[str, Any]:
    """What a version needs to know to refuse what the ledger blocks. `ledger`: whether there was one when it
    was registered; such a version refuses to sample where it cannot be read."""
    root, honours = tracker.storage_root, honoured_of(result)
    return {
        "model_name": tracker.tracking.model_name,
        "registered": utc(datetime.datetime.now(datetime.UTC)),
        "request_ids": honours["request_ids"],
        "forgotten_classes": honours["forgotten_classes"] if passed(result) else [],
        "asked_classes": honours["forgotten_classes"],
        "storage": root,
        "ledger": storage.exists(storage.join(root, LEDGER, HEAD)),
    }


def resolve(tracking: Registry, storage_root: str, which: str) -> "ModelVersion":
    """The version of `tracking.model_name` with the alias or number `which`. Raises `InputError` when there
    is none, or when the alias was moved past the log, which says where it is."""
    mlflow, name = client(tracking, storage_root, create=False), tracking.model_name
    version = find_version(mlflow, tracking, storage_root, which)
    entries = [] if which.isdigit() else alias_log.read(storage_root, name)
    if which in (CANDIDATE, CHAMPION) and entries:
        carried = alias_log.carried_out(mlflow, storage_root, name, entries)
        expected = alias_log.positions(entries, carried).get(which, set())
        if int(version.version) not in expected:
            known = " or ".join(map(str, sorted(expected))) or "none"
            promote = registry_command("promote", tracking, storage_root)
            raise version_check.VersionError(
                f"{name}: {which} is at version {version.version} in MLflow, the log says {known}: it was"
                f" moved by other means; `{promote}` or `rollback` brings the two together"
            )
    return version


def load_version(tracking: Registry, storage_root: str, version: "ModelVersion") -> "PyFuncModel":
    """`version` as MLflow loads it: `predict(DataFrame[label, seed])` gives uint8 (N, H, W, C). Its scripts
    run only after all files were checked, and what was compiled beside them, which no digest covers, goes."""
    import mlflow.pyfunc

    folder = local_copy(tracking, storage_root, version)
    for cache in {path.parent for path in map(folder.joinpath, version_files.bytecode(folder))}:
        shutil.rmtree(cache, ignore_errors=True)
    if compiled := version_files.bytecode(folder):
        raise version_check.VersionError(
            f"{version.name} version {version.version}: Python would run {folder}/{compiled[0]} in place of a"
            " script that was checked, and it cannot be removed; remove it"
        )
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        return mlflow.pyfunc.load_model(str(folder))
    finally:
        sys.dont_write_bytecode = before


def local_copy(tracking: Registry, storage_root: str, version: "ModelVersion") -> Path:
    """The folder of `version` on this machine: itself where it is local, a download otherwise. Raises
    `VersionError` when its files are not those that were registered."""
    folder = unchecked_copy(tracking, storage_root, version)
    version_check.require_files(version, alias_log.read(storage_root, version.name), folder)
    return folder


def unchecked_copy(tracking: Registry, storage_root: str, version: "ModelVersion") -> Path:
    source = client(tracking, storage_root, create=False).get_model_version_download_uri(
        version.name, version.version
    )
    try:
        folder = artifact_store.download(source, tracking_uri(tracking, storage_root))
    except ValueError as error:
        raise version_check.VersionError(
            f"{version.name} version {version.version}: its files are not where MLflow says, {redact(source)}"
            f" ({redact(str(error))}); restore them from a copy"
        ) from error
    return Path(folder)


def require_registered(mlflow: "MlflowClient", tracking: Registry, storage_root: str) -> "RegisteredModel":
    """The registered model of `tracking`; raises `InputError` when there is none."""
    from mlflow.exceptions import MlflowException

    name = tracking.model_name
    try:
        return mlflow.get_registered_model(name)
    except MlflowException as error:
        raise InputError(
            f"tracking.model_name: no model {name!r} is registered at {tracking_uri(tracking, storage_root)};"
            f" `{command('unlearn_imagenet', 'jobs/configs/<job>.yaml', storage_root)}` registers one"
        ) from error


def find_version(mlflow: "MlflowClient", tracking: Registry, storage_root: str, which: str) -> "ModelVersion":
    """The version with the alias or number `which`; the `InputError` otherwise says what there is."""
    from mlflow.exceptions import MlflowException

    model, name = require_registered(mlflow, tracking, storage_root), tracking.model_name
    try:
        return (
            mlflow.get_model_version(name, which)
            if which.isdigit()
            else mlflow.get_model_version_by_alias(name, which)
        )
    except MlflowException as error:
        numbers = sorted(int(version.version) for version in versions(mlflow, name))
        there = [*sorted(model.aliases), *map(str, numbers)]
        promote = registry_command("promote", tracking, storage_root)
        hint = f"; `{promote}` makes a champion" if which == CHAMPION else ""
        raise InputError(
            f"version: got {which!r}, expected an alias or a number of {name}:"
            f" {', '.join(there) or 'none yet'}{hint}"
        ) from error


def rows(tracking: Registry, storage_root: str) -> list[tuple[str, ...]]:
    """(version, aliases, gate, method, request, run) of every version, newest first."""
    mlflow, name = client(tracking, storage_root, create=False), tracking.model_name
    model = require_registered(mlflow, tracking, storage_root)
    names: dict[int, list[str]] = {}
    for alias, at in model.aliases.items():
        names.setdefault(int(at), []).append(alias)
    table: list[tuple[str, ...]] = []
    for version in versions(mlflow, name):
        tags = version.tags
        request = tags.get("request_id") or f"forget {tags.get('request_classes', '?')}"
        aliases_here = ", ".join(sorted(names.get(int(version.version), []))) or "-"
        table.append(
            (
                str(version.version),
                aliases_here,
                tags.get("gate", "?"),
                tags.get("method", "?"),
                request,
                tags.get(RUN_ID_TAG, "?"),
            )
        )
    return table


def versions(mlflow: "MlflowClient", name: str) -> list["ModelVersion"]:
    """All versions of `name`, newest first."""
    every: list[ModelVersion] = []
    token = None
    while True:
        page = mlflow.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
        every += page
        token = page.token
        if not token:
            return sorted(every, key=lambda version: -int(version.version))


def _version_of_run(mlflow: "MlflowClient", name: str, run_id: str) -> int | None:
    versions_of_run = mlflow.search_model_versions(f"name = '{name}' and tags.{RUN_ID_TAG} = '{run_id}'")
    return min((int(version.version) for version in versions_of_run), default=None)


def _require_model(mlflow: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        mlflow.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
