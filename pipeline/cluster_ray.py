"""Ray, started or joined once per process, quietly."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
    quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    threads = {"OMP_NUM_THREADS": "1"}
    if os.environ.get("RAY_ADDRESS"):  # the submitted working directory holds the code there
        ray.init(runtime_env={"env_vars": threads}, **quietly)
    else:
        inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != CHECKOUT]
        imports = {"PYTHONPATH": os.pathsep.join([CHECKOUT, *inherited]), "RAY_USAGE_STATS_ENABLED": "0"}
        with _environment(threads | imports):  # inherited by the cluster; a runtime_env would cost every worker seconds more
            ray.init(num_cpus=cpus, include_dashboard=dashboard, **quietly)
    quiet()


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """`values` in this process's environment for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
