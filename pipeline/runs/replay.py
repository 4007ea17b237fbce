"""Run a version's request again and see whether the same weights come out."""

import uuid
from dataclasses import dataclass

import yaml

from models import weights
from pipeline import storage
from pipeline.config import RegistryConfig, UnlearnConfig, parse_stored
from pipeline.errors import InputError
from pipeline.tracking.registry import CHAMPION, RUN_ID_TAG, resolve


@dataclass(frozen=True, kw_only=True)
class Replay:
    version: int
    run_id: str
    registered: str  # digest of the version's weights
    replayed: str


def replay(config: RegistryConfig) -> Replay:
    """Train `config.version` (absent: champion) again from its run's config.yaml, beside it and without
    registering anything.

    Raises `InputError` when the run's configuration, lake or base weights are not there any more.
    """
    from pipeline.data.partition_ray import build_partition
    from pipeline.runs import preflight
    from pipeline.runtime import cluster_ray
    from pipeline.training import worker
    from pipeline.training.run_folder import TRAINED

    version = resolve(config.tracking, config.storage, config.version or CHAMPION)
    run_id = version.tags.get(RUN_ID_TAG, "")
    uri = storage.join(config.storage, "runs", run_id, "config.yaml")
    if not storage.exists(uri):
        raise InputError(
            f"{version.name} version {version.version}: no configuration at {uri}, so it cannot be replayed;"
            " check storage"
        )
    values = yaml.safe_load(storage.read_bytes(uri))
    run_config = parse_stored(
        UnlearnConfig, {**values, "storage": config.storage, "run_id": f"replay-{uuid.uuid4().hex[:8]}"}
    )
    prepared = preflight.check(run_config)
    place = storage.join(config.storage, "replays", prepared.run_id)
    cluster_ray.connect()
    partition = build_partition(prepared.config, prepared.lake, prepared.subject["neighbours"])
    try:
        worker.train(prepared.config, partition_uri=partition.uri, run_uri=place, **prepared.sources)
        trained = weights.from_bytes(storage.read_bytes(storage.join(place, TRAINED)), TRAINED)
    finally:
        storage.remove(place)
    return Replay(
        version=int(version.version),
        run_id=run_id,
        registered=version.tags["weights_digest"],
        replayed=weights.weights_digest({**prepared.base.state, **trained}),
    )
