"""Which device is taken, and what is said of one that there is not."""

import pytest

from dnascale.device import choose_device
from dnascale.errors import UsageError


def test_a_device_that_is_not_here_or_is_none_is_a_sentence() -> None:
    assert choose_device("cpu") == "cpu"
    for asked in ("cuda:0", "gpu", ""):
        with pytest.raises(UsageError, match="that is no kind of device"):
            choose_device(asked)
