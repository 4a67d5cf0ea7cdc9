"""What all tests share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from xtuner.log import get_logger

# beside other programs a single input may take seconds, which is no fault of the test
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps prepared data and box indexes out of the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTUNER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def framework_log() -> Iterator[list[logging.LogRecord]]:
    """Gathers what the framework logs; its logger passes nothing on to the root's, where `caplog` listens."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    get_logger().addHandler(handler)
    yield records
    get_logger().removeHandler(handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests that need a GPU where there is none, and says so."""
    if torch.cuda.is_available():
        return
    for item in items:
        # item.keywords hold the names of folders too, that of the checkout for one
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
