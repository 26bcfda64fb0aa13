"""What the tests of the rewriter share."""

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def imported_objects_set_aside() -> Iterator[None]:
    """Measuring a peak looks through all objects that the collector knows: those of imports need no look."""
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
