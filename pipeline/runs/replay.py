"""Run a version's request again and see whether the same weights come out."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models import weights
from pipeline import storage
from pipeline.config import RegistryConfig, UnlearnConfig, parse_stored
from pipeline.data import tombstones
from pipeline.data.partition import partition_key
from pipeline.data.selection import read_sample_ids
from pipeline.errors import InputError
from pipeline.tracking import alias_log, version_check
from pipeline.tracking.registry import CHAMPION, RUN_ID_TAG, local_copy, resolve

if TYPE_CHECKING:
    from pipeline.runs.preflight import Prepared
    from pipeline.tracking.registry import ModelVersion


@dataclass(frozen=True, kw_only=True)
class Replay:
    version: int
    run_id: str
    registered: str  # digest of the version's weights
    replayed: str


def replay(config: RegistryConfig) -> Replay:
    """Train `config.version` (absent: champion) again from its run's config.yaml, beside it and without
    registering anything.

    Raises `InputError` when the run's configuration, lake or base weights are not there any more, when the
    version or that configuration is not what was registered, or when rows that it read were purged since.
    """
    from pipeline.data.partition_ray import build_partition
    from pipeline.runs import preflight, run_weights
    from pipeline.runtime import cluster_ray
    from pipeline.training import worker
    from pipeline.training.run_folder import TRAINED

    version = resolve(config.tracking, config.storage, config.version or CHAMPION)
    run_id = version.tags.get(RUN_ID_TAG, "")
    uri = version_check.config_uri(config.storage, run_id)
    if not storage.exists(uri):
        raise InputError(
            f"{version.name} version {version.version}: no configuration at {uri}, so it cannot be replayed;"
            " check storage"
        )
    local_copy(config.tracking, config.storage, version)
    version_check.require_config(version, alias_log.read(config.storage, version.name), uri)
    values = storage.read_yaml(uri)
    run_config = parse_stored(
        UnlearnConfig,
        {
            **values,
            "storage": config.storage,
            "run_id": f"replay-{uuid.uuid4().hex[:8]}",
            "tracking": {**values.get("tracking", {}), "uri": config.tracking.uri},  # as it is reached now
        },
    )
    _require_not_purged(config.storage, version, values["request"])
    prepared = preflight.check(run_config)
    _require_same_rows(version, prepared)
    place = storage.join(config.storage, "replays", prepared.run_id)
    cluster_ray.connect(cluster_ray.cpus_for(run_config.train), training=True)
    partition = build_partition(
        prepared.config, prepared.lake, prepared.subject["neighbours"], prepared.stand_ins
    )
    try:
        ran = run_weights.fitted(prepared.config, prepared.choice)
        worker.train(ran, partition_uri=partition.uri, run_uri=place, **prepared.sources)
        trained = weights.from_bytes(storage.read_bytes(storage.join(place, TRAINED)), TRAINED)
    finally:
        storage.remove(place)
    return Replay(
        version=int(version.version),
        run_id=run_id,
        registered=version.tags["weights_digest"],
        replayed=weights.weights_digest({**prepared.base.state, **trained}),
    )


def _require_not_purged(storage_root: str, version: "ModelVersion", request: Mapping[str, Any]) -> None:
    """Raise `InputError` when the data of a request that the version answers was purged."""
    for request_id in [str(request["id"]), *(one["id"] for one in request.get("answers") or [])]:
        if (tombstone := tombstones.find(storage_root, request_id)) is not None:
            raise InputError(
                f"{version.name} version {version.version}: cannot be replayed: the data of request"
                f" {request_id!r} was purged ({tombstone.count} samples), and nothing reads it any more"
            )


def _require_same_rows(version: "ModelVersion", prepared: "Prepared") -> None:
    """Raise `InputError` when rows that the version's run streamed are not read any more."""
    config, lake = prepared.config, prepared.lake
    ids, neighbours = read_sample_ids(config.request), prepared.subject["neighbours"]
    digest = storage.digest_of(partition_key(config, lake, ids, neighbours, prepared.stand_ins))
    if lake.buried and digest != version.tags.get("partition_digest"):
        why = "some of the rows that its run streamed were purged since, for another request"
    elif lake.digest != version.tags.get("lake_digest"):
        why = f"the lake {lake.uri} holds other rows than then (it may have been written without purged ones)"
    else:
        return
    raise InputError(f"{version.name} version {version.version}: cannot be replayed: {why}")
