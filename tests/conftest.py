"""For all tests."""

from collections.abc import Iterator

import pytest
import torch

# Small tensors gain nothing from threads, and tests that run side by side lose much by them.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A test that leaves torch more threads makes all that follow several times slower."""
    yield
    left = torch.get_num_threads()
    torch.set_num_threads(1)
    assert left == 1
