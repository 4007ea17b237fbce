"""A trial in one process: the main job's loop on shared weights, partition and base
measures. No Ray in it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from models import weights
from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.data.lake import read_lake
from pipeline.data.partition import Partition
from pipeline.data.retain_stream_local import retain_stream
from pipeline.runtime import metrics_log
from pipeline.training import checkpoint as checkpoints
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.loop import Inputs, Outcome, unlearn
from pipeline.training.periodic_eval import check
from pipeline.training.worker import CHECKPOINTS, METRICS, OUTCOME, TRAINED
from pipeline.training.worker_inputs import assemble
from pipeline.unlearning.collectives import Collectives, NonFiniteError


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What every trial reads and none makes: URIs of lake, base weights and judge, the labels and neighbours
    that are judged."""

    lake_uri: str
    model_uri: str
    judge_uri: str
    subject: Mapping[str, Any]


def inputs_of(config: UnlearnConfig, partition: Partition, shared: Shared, device: torch.device) -> Inputs:
    """A single worker's inputs, its stream read without Ray."""
    return assemble(
        config,
        partition,
        model_uri=shared.model_uri,
        judge_uri=shared.judge_uri,
        described=shared.subject,
        heldout=lambda labels: read_lake(shared.lake_uri).read(labels, "heldout"),
        retain=lambda start: retain_stream(partition, 0, 1, start),
        collectives=Collectives(),
        device=device,
    )


def measure_base(
    config: UnlearnConfig, partition: Partition, shared: Shared, device: torch.device
) -> dict[str, Any]:
    """{"result", "record"} of the base model, as a run's first measure gives them."""
    inputs = inputs_of(config, partition, shared, device)
    inputs.model.net.eval()
    measured = check(inputs, 0, final=True)
    return {"result": measured.to_result(), "record": measured.to_record(0)}


def run(
    config: UnlearnConfig,
    partition: Partition,
    shared: Shared,
    *,
    uri: str,
    before: dict[str, Any] | None,
    observe: Callable[[metrics_log.Record], None],
    device: torch.device,
) -> dict[str, Any]:
    """One trial, from the base weights or its last checkpoint; leaves metrics, checkpoints, weights and,
    last, the outcome under `uri`.

    Returns the outcome; `observe` sees every record as it is made. A run that breaks down numerically has the
    outcome {"failed": why}: it would break again however often it is tried.
    """
    started = time.perf_counter()
    inputs = inputs_of(config, partition, shared, device)
    start = checkpoints.latest(storage.join(uri, CHECKPOINTS))
    kept = (
        []
        if start is None
        else [r for r in metrics_log.read(storage.join(uri, METRICS)) if r["step"] <= start.progress["step"]]
    )
    writer = metrics_log.Writer(storage.join(uri, METRICS), kept)

    def record(one: metrics_log.Record) -> None:
        writer.write(one)
        observe(one)

    def save(checkpoint: Checkpoint) -> None:
        writer.flush()
        checkpoints.commit(storage.join(uri, CHECKPOINTS), checkpoint)

    for one in kept:
        observe(one)
    ready = time.perf_counter()
    try:
        outcome = unlearn(replace(inputs, before=before, record=record, save=save), start)
    except NonFiniteError as error:
        plain: dict[str, Any] = {"failed": str(error)}
    else:
        plain = plainly(outcome) | {
            "seconds": {"setup": ready - started, "loop": time.perf_counter() - ready}
        }
        storage.write_bytes(storage.join(uri, TRAINED), weights.to_bytes(outcome.trained))
    writer.flush()
    storage.write_json(storage.join(uri, OUTCOME), plain)
    return plain


def plainly(outcome: Outcome, world: int = 1) -> dict[str, Any]:
    """An outcome as plain data, without its weights."""
    plain = {
        field.name: getattr(outcome, field.name)
        for field in fields(outcome)
        if field.name not in ("trained", "missing")
    }
    return plain | {"missing_checks": list(outcome.missing), "world_size": world}
