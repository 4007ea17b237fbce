"""One way to run a function on Ray Train's workers: as many as are alive, bounded retries, one clear line
when they are spent."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config import TrainWorkers
from pipeline.errors import InputError
from pipeline.training.elastic import usable_world_size
from pipeline.unlearning.collectives import Collectives

CONTROLLER_FAILURES = 3  # of Ray Train itself; without a bound it would try for ever
PREEMPTIONS = 100  # times a run goes on elsewhere when its nodes are taken away
# for nodes that Ray has not missed yet: after that a group starts with those that are left
ELASTIC_START_S = 20.0
POLL_S = 1.0  # how often Ray Train looks at its workers
# what the others die of when one has died
COLLATERAL = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL")

log = logging.getLogger(__name__)


def launch(
    worker: Callable[[dict[str, Any]], Any],
    arguments: dict[str, Any],
    train: TrainWorkers,
    *,
    storage_uri: str,
    name: str,
) -> Any:
    """Run `worker(arguments)` on Ray Train workers; rank 0's return value.

    Ray Train's own notes lie under `<storage_uri>/<name>/`; every node that gets a worker has to reach that
    place. Raises `RuntimeError` when the retries are spent or the cluster never has the resources,
    `InputError` as a worker met it.
    """
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig

    from pipeline.runtime import cluster_ray, compat_ray, compat_train_ray

    gpu = train.gpus_per_worker > 0
    resources = {"CPU": train.cpus_per_worker} | ({"GPU": train.gpus_per_worker} if gpu else {})
    labels = train.label_selector
    cluster_ray.wait_for(resources, train.fewest, train.most, wait_s=train.wait_s, labels=labels)
    elastic = train.fewest < train.most
    compat_ray.set_up_train(
        poll_s=POLL_S,
        start_s=ELASTIC_START_S if elastic else max(60.0, train.wait_s),
        # a cluster of this process's own loses no nodes: no need for a process that watches them
        watch_nodes=bool(os.environ.get("RAY_ADDRESS")),
    )
    filesystem = None
    if not storage.is_local(storage_uri):
        filesystem, storage_uri = storage.arrow_filesystem(storage_uri), storage.filesystem(storage_uri)[1]
    else:
        Path(storage_uri).mkdir(parents=True, exist_ok=True)
    workers: dict[str, Any] = {"num_workers": train.most}
    if elastic:
        workers = {
            "num_workers": (train.fewest, train.most),
            "elastic_resize_monitor_interval_s": train.resize_s,
        }
    trainer = compat_train_ray.Trainer(
        worker,
        train_loop_config=arguments,
        scaling_config=ScalingConfig(  # type: ignore[call-arg]
            use_gpu=gpu, resources_per_worker=resources, label_selector=labels or None, **workers
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RunConfig(
            name=name,
            storage_path=storage_uri,
            storage_filesystem=filesystem,
            # what it has to say lies in its log files; a failure is told by `_final`
            logging_config=LoggingConfig(log_level="CRITICAL"),
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=train.max_failures,
                # of an elastic run every lost node may cost starts that wait for it in vain
                controller_failure_limit=CONTROLLER_FAILURES * (train.max_failures + 1 if elastic else 1),
                max_preemption_failures=PREEMPTIONS,
            ),
        ),
    )
    try:
        return trainer.fit().return_value  # type: ignore[attr-defined]
    except TrainingFailedError as error:
        raise _final(error, train) from error


def _final(error: Exception, train: TrainWorkers) -> Exception:
    """What a person is told when Ray Train has given up: the failure that the others followed from."""
    failures: dict[int, Any] = getattr(error, "worker_failures", {})
    causes = {rank: getattr(failure, "_base_exc", failure) for rank, failure in sorted(failures.items())}
    for cause in causes.values():
        if isinstance(cause, InputError):
            return cause
    again = "The run goes on from its last checkpoint when it is submitted again"
    if causes:
        rank = min(causes, key=lambda rank: any(word in str(causes[rank]) for word in COLLATERAL))
        text = " ".join(str(causes[rank]).split())[:500]
        return RuntimeError(
            f"the workers failed {train.max_failures + 1} times (train.max_failures {train.max_failures}), "
            f"at last rank {rank} by {type(causes[rank]).__name__}: {text}. {again}"
        )
    failed = getattr(error, "controller_failure", error)
    return RuntimeError(
        f"Ray Train gave up ({type(failed).__name__}): {' '.join(str(failed).split())[:500]}. {again}"
    )


def worker_setup(train: TrainWorkers, lanes: int, run: str) -> tuple[Any, Collectives] | None:
    """On a worker: its device and collectives, with `train.threads` BLAS threads, Ray's chatter off and `run`
    and rank in its log lines.

    None on a worker too many: the lanes are dealt out over the largest number of workers that divides them.
    """
    import torch
    import torch.distributed as dist
    from ray.train.torch import get_device

    from pipeline.runtime import compat_ray

    compat_ray.quiet_data()
    torch.set_num_threads(train.threads)
    alive, group = (dist.get_world_size(), None) if dist.is_initialized() else (1, None)
    world_size = usable_world_size(lanes, alive)
    if world_size < alive:
        group = dist.new_group(list(range(world_size)))
        if dist.get_rank() >= world_size:
            return None
    collectives = Collectives(group, ordered=train.fewest < train.most)
    _log_as(f"{run} rank {collectives.rank} of {world_size}")
    log.info("%d workers alive, %d of them train", alive, world_size)
    return get_device(), collectives


def _log_as(who: str) -> None:
    """Lines of the project's loggers go to this worker's log with `who` in front."""
    logger = logging.getLogger("pipeline")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s [{who}] %(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
