"""One BLAS thread everywhere: the tests are small, and several threads on a busy machine
only slow them down."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread() -> Iterator[None]:
    import torch

    torch.set_num_threads(1)
    yield
