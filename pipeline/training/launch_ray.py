"""One way to run a function on Ray Train's workers: bounded retries, storage by fsspec, the collectives ready."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config import Train
from pipeline.unlearning.collectives import Collectives

CONTROLLER_FAILURES = 3  # of Ray Train itself; without a bound it would try for ever


def launch(worker: Callable[[dict[str, Any]], Any], arguments: dict[str, Any], train: Train, *, storage_uri: str, name: str) -> Any:
    """Run `worker(arguments)` on `train.workers` Ray Train workers; rank 0's return value.

    Checkpoints that the workers report lie under `<storage_uri>/<name>/`; the same place given again continues from the last one.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = train.gpus_per_worker > 0
    resources = {"CPU": train.cpus_per_worker} | ({"GPU": train.gpus_per_worker} if gpu else {})
    filesystem = None
    if not storage.is_local(storage_uri):
        filesystem, storage_uri = storage.arrow_filesystem(storage_uri), storage.filesystem(storage_uri)[1]
    else:
        Path(storage_uri).mkdir(parents=True, exist_ok=True)
    trainer = TorchTrainer(
        worker,
        train_loop_config=arguments,
        scaling_config=ScalingConfig(num_workers=train.workers, use_gpu=gpu, resources_per_worker=resources),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RunConfig(
            name=name,
            storage_path=storage_uri,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=train.max_failures, controller_failure_limit=CONTROLLER_FAILURES),  # type: ignore[call-arg]
        ),
    )
    return trainer.fit().return_value  # type: ignore[attr-defined]


def worker_setup(threads: int) -> tuple[Any, Collectives]:
    """On a worker: its device and collectives, with `threads` BLAS threads and Ray's chatter off."""
    import torch
    from ray.train.torch import get_device

    from pipeline import cluster_ray

    cluster_ray.quiet()
    torch.set_num_threads(threads)
    return get_device(), Collectives()
