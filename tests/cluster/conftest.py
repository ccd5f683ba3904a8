"""The training jobs of the integration tests, and the data that they train on."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Network, network

sys.path.append(str(Path(__file__).parents[1] / "integration"))


@pytest.fixture
def three_hosts(tmp_path: Path) -> Iterator[Network]:
    with network(3, tmp_path) as made:
        yield made
