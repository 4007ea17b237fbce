"""A storage root with lake, weights and judge, of which each module has its own."""

import pytest
from untrained import fill


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("runs"))
    fill(root)
    return root
