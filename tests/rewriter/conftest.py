"""Holds the fixtures that the tests of the rewriter share."""

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def imported_objects_set_aside() -> Iterator[None]:
    """Excludes the objects of imports from the garbage collector, which measuring a peak searches."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch: kernels of small models run faster so, and not slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
