"""What all trials of a sweep read, made once by the driver: a partition for every batch size, the base
model's measures."""

import os
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.config import UnlearnConfig
from pipeline.data.partition import Partition, find_partition
from pipeline.data.partition_ray import build_partition
from pipeline.runs import preflight
from pipeline.runs.result import measured_before
from pipeline.sweep.space import configured
from pipeline.sweep.trial import Shared, measure_base

if TYPE_CHECKING:
    from pipeline.sweep.search import PreparedSweep


def make_shared(prepared: "PreparedSweep") -> dict[str, Any]:
    """The plan that trials are handed: plain data, small. Waits for a cluster that has no room for a trial
    yet."""
    from dataclasses import replace

    from pipeline.runtime import cluster_ray

    config, base = prepared.config, prepared.base
    train = base.config.train
    inline = config.trial.runner == "inline"
    bundle = trial_resources(prepared)
    most = config.search.concurrency if inline else train.most
    cluster_ray.wait_for(bundle, 1 if inline else train.fewest, most, wait_s=train.wait_s)
    sizes = (
        config.space["optim.batch_size"].choice
        if "optim.batch_size" in config.space
        else [base.config.optim.batch_size]
    )
    made = {}
    for size in sizes or []:
        settings = configured(base.config, {"optim.batch_size": size})
        partition = build_partition(settings, base.lake, base.subject["neighbours"])
        known = base_measures(replace(base, config=settings), partition, bundle)
        made[str(size)] = {
            "partition_uri": partition.uri,
            "partition_digest": partition.digest,
            "before": known,
        }
    print(
        f"  {len(made)} partition{'s' * (len(made) > 1)}, the base weights and their measures are shared by"
        " all trials",
        flush=True,
    )
    return {
        "sweep_uri": prepared.uri,
        "base": base.config.model_dump(mode="json", exclude={"tracking": {"uri"}}),
        "shared": base.sources,
        "prepared": made,
        "objectives": list(config.search.objectives),
        "runner": config.trial.runner,
        "gpus": config.trial.gpus,
        "world": 1 if inline else train.most,
        "one_judge": base.one_judge,
        "judge_accuracy": base.judge.manifest.get("heldout_accuracy"),
        "address": os.environ.get("RAY_ADDRESS"),
    }


def base_measures(
    prepared: preflight.Prepared, partition: Partition, bundle: dict[str, float]
) -> dict[str, Any]:
    """{"result", "record"} of the base model, taken by a task that holds `bundle` unless an earlier run took
    the same."""
    place, known = measured_before(prepared, partition.digest)
    if known is None:
        known = on_one_worker(
            _measure_base, bundle, prepared.config.model_dump(mode="json"), partition.uri, prepared.sources
        )
        storage.write_json(place, known)
    return known


def trial_resources(prepared: "PreparedSweep") -> dict[str, float]:
    """What a trial's process holds or, on the main job's workers, one of those."""
    trial, train = prepared.config.trial, prepared.base.config.train
    cpus, gpus = (
        (trial.cpus, trial.gpus)
        if trial.runner == "inline"
        else (train.cpus_per_worker, train.gpus_per_worker)
    )
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def on_one_worker(call: Any, bundle: dict[str, float], *arguments: Any) -> Any:
    """`call(*arguments, gpu)` as one Ray task that holds `bundle`."""
    import ray

    from pipeline.runtime import cluster_ray

    task = ray.remote(num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0), max_retries=2)(call)
    with cluster_ray.plain_errors():
        return ray.get(task.remote(*arguments, bool(bundle.get("GPU"))))


def _measure_base(
    config: dict[str, Any], partition_uri: str, sources: dict[str, Any], gpu: bool
) -> dict[str, Any]:
    import torch

    settings = UnlearnConfig.model_validate(config)
    torch.set_num_threads(settings.train.threads)
    partition = find_partition(partition_uri)
    assert partition is not None
    return measure_base(settings, partition, Shared(**sources), torch.device("cuda" if gpu else "cpu"))
