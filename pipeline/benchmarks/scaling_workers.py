"""The loop of the scaling benchmark under Ray Train, in turn with the plain one."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.benchmarks.scaling import Seconds, bursts, plain_world
from pipeline.config import BenchmarkConfig, Train, parse


def under_ray(config: BenchmarkConfig, folder: str) -> tuple[list[list[Seconds]], list[list[Seconds]]]:
    """The rounds of both ranks (plain, under Ray): both worlds are up at once and take
    turns, burst by burst."""
    from pipeline.runtime import cluster_ray
    from pipeline.training.launch_ray import launch

    cluster_ray.connect(3)
    train = Train(workers=2, threads=config.threads, max_failures=0)
    arguments = {"config": config.model_dump(mode="json"), "folder": folder}
    try:
        with ThreadPoolExecutor(1) as pool, tempfile.TemporaryDirectory() as notes:
            plain = pool.submit(plain_world, config, folder)
            under = launch(_worker, arguments, train, storage_uri=notes, name="scaling")
            return plain.result(), under
    finally:
        cluster_ray.disconnect()


def _worker(arguments: dict[str, Any]) -> list[list[Seconds]]:
    import torch.distributed as dist

    config = parse(BenchmarkConfig, arguments["config"])
    found: list[Any] = [None, None]
    dist.all_gather_object(found, bursts(config, arguments["folder"]))
    return found
