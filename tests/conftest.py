"""What holds for all tests."""

import gc

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leave out of every later collection what imports have made: it takes most of the time."""
    gc.collect()
    gc.freeze()
