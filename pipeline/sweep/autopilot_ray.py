"""The contest of `method.name: auto` as Ray tasks: one process for each contestant, side by side, warm from round to round."""

from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.data.partition import Partition, find_partition
from pipeline.runtime import records
from pipeline.sweep.autopilot import CONTEST, hold, standing
from pipeline.sweep.shared_ray import base_measures
from pipeline.sweep.trial import Shared, run
from pipeline.training.train_ray import METRICS

if TYPE_CHECKING:
    from pipeline.flow.checking import Prepared


def contest(prepared: "Prepared", partition: Partition) -> dict[str, Any]:
    """Hold the contest and leave its outcome under the run's folder, or return the one that was held."""
    place = storage.join(prepared.run_uri, CONTEST)
    if storage.exists(place):
        found: dict[str, Any] = storage.read_json(place)
        return found
    before = base_measures(prepared, partition, _bundle(prepared))

    def play(field: dict[str, UnlearnConfig]) -> list[dict[str, Any]]:
        print(f"  auto: {', '.join(field)} at equal compute-seconds, on one worker each", flush=True)
        standings = _round(prepared, partition, before, field)
        print("    " + "; ".join(_said(one) for one in standings), flush=True)
        return standings

    outcome = hold(prepared.config, play)
    storage.write_json(place, outcome)
    return outcome


def _round(prepared: "Prepared", partition: Partition, before: dict[str, Any], field: dict[str, UnlearnConfig]) -> list[dict[str, Any]]:
    """Every contestant as far as its configuration lets it, from where it stood."""
    import ray

    bundle = _bundle(prepared)
    gpu = "GPU" in bundle
    task = ray.remote(num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0), max_retries=2)(_contend)
    running = {
        name: task.remote(
            name, one.model_dump(mode="json"), partition.uri, prepared.sources, storage.join(prepared.run_uri, "contest", name), before, gpu
        )
        for name, one in field.items()
    }
    return [ray.get(reference) for reference in running.values()]


def _bundle(prepared: "Prepared") -> dict[str, float]:
    """A contestant holds a whole GPU where the workers have one, else a whole core, so that seconds mean the same for all."""
    train = prepared.config.train
    return {"CPU": train.cpus_per_worker, "GPU": 1} if train.gpus_per_worker else {"CPU": 1}


def _contend(
    name: str, config: dict[str, Any], partition_uri: str, sources: dict[str, Any], uri: str, before: dict[str, Any], gpu: bool
) -> dict[str, Any]:
    import torch

    from pipeline.runtime import cluster_ray

    cluster_ray.quiet()
    settings = UnlearnConfig.model_validate(config)
    torch.set_num_threads(settings.train.threads)
    partition = find_partition(partition_uri)
    assert partition is not None
    device = torch.device("cuda" if gpu else "cpu")
    outcome = run(settings, partition, Shared(**sources), uri=uri, before=before, observe=lambda record: None, device=device)
    checks = [r for r in records.read(storage.join(uri, METRICS)) if r["kind"] == "evaluation"]
    return standing(name, outcome, checks, settings)


def _said(one: Any) -> str:
    if one["failed"]:
        return f"{one['method']} failed"
    settled = f"settled at {one['settled_step']}" if one["settled_step"] is not None else f"held {one['held']:.2f}"
    return (
        f"{one['method']} {settled} ({one['step_seconds']:.1f} s of steps"
        + ("" if one["keeps"] is not False else ", retention below the gate")
        + ")"
    )
