"""One BLAS thread everywhere: the tests are small, and several threads on a busy machine
only slow them down."""

import os
import secrets
import sys
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray writes one into a home that has none; two sessions that start there at once would hold different ones
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
# its workers are nice to what else the machine does: here that is another test, which may take all there is
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start Ray or whole jobs come first: a long one at the end would leave one of two processes
    with nothing to do."""
    long = {item.path for item in items for name in ("ray", "e2e") if item.get_closest_marker(name)}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread() -> Iterator[None]:
    import torch

    torch.set_num_threads(1)
    yield


@pytest.fixture(scope="module", autouse=True)
def ray_ends_with_the_module() -> Iterator[None]:
    """What one module left running would give the next one workers of another environment: its credentials,
    its number of CPUs."""
    yield
    if "ray" in sys.modules:
        from pipeline.runtime import cluster_ray

        cluster_ray.disconnect()
