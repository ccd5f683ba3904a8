"""Shared fixtures: the built-in human coding sequences, prepared once a test session."""

import signal

import hypothesis
import pytest

from dnascale.data.prepare import PrepareOptions, prepare
from dnascale.data.shards import Dataset


def pytest_configure() -> None:
    """Signals work in tests and in what they start, also where the tests were started in the background, or by nohup, without them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    hypothesis.settings.register_profile("untimed", deadline=None)  # how busy the machine is fails no test
    hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def human_cds(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """1,920 real human coding sequences, a tenth of the genes held out."""
    return prepare(["builtin:human-cds"], tmp_path_factory.mktemp("data") / "human-cds", PrepareOptions(valid=0.1))
