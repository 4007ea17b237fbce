"""Run a function on every rank of a gloo world, each rank in a process of its own."""

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = timedelta(seconds=120)  # a rank that hangs fails the test instead of the machine
multiprocessing.set_forkserver_preload(["torch", "tiny"])  # imported once a session, not once a rank


def run_world(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(*arguments)` with a process group of `world` ranks; what each rank returned (tensors,
    numbers, plain data).

    `function` is importable by name. An exception on any rank is raised here, with its traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _rank, (world_size, folder, function, arguments), nprocs=world_size, start_method="forkserver"
        )
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _rank(
    rank: int, world_size: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size, timeout=TIMEOUT
    )
    try:
        torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
