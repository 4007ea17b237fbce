"""Ray, started or joined once per process, quietly."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import ray

from pipeline.errors import InputError
from pipeline.storage import StorageError

CHECKOUT = str(Path(__file__).resolve().parents[1])


def connect(cpus: int | None = None, *, dashboard: bool = False) -> None:
    """Join the cluster of RAY_ADDRESS (a submitted job has it), or start a local one with `cpus` logical CPUs (None: the machine's).

    Does nothing when this process is connected already. Workers import this checkout and use one BLAS thread each.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    joining = bool(os.environ.get("RAY_ADDRESS"))
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment = {"OMP_NUM_THREADS": "1"}
    if not joining:  # elsewhere the submitted working directory holds the code, and this path need not exist
        environment["PYTHONPATH"] = os.pathsep.join([CHECKOUT, *(path for path in inherited if path != CHECKOUT)])
    ray.init(
        runtime_env={"env_vars": environment},
        num_cpus=None if joining else cpus,
        include_dashboard=None if joining else dashboard,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    quiet()


def quiet() -> None:
    """Ray Data without progress bars and chatter in this process; errors still show."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False  # the newer reader is slow to its first batch and loses rows of a path listed twice
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Within it, bad input and failing storage met by a task come as themselves, in one line; Ray makes its traceback their message."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError | StorageError):
            raise error.cause from None
        raise


def disconnect() -> None:
    """Leave the cluster; a local one that `connect` started ends."""
    if ray.is_initialized():
        ray.shutdown()
