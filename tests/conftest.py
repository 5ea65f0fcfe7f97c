"""For all tests."""

import warnings
from collections.abc import Iterator

import pytest
import torch

# Small tensors gain nothing from threads, and tests that run side by side lose much by them.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the notebooks, which take longest, so that no worker ends with one."""
    items.sort(key=lambda item: "tests/tutorials/" not in item.nodeid)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A test that leaves torch more threads makes all that follow several times slower."""
    yield
    left = torch.get_num_threads()
    torch.set_num_threads(1)
    assert left == 1


@pytest.fixture
def quiet_compiler() -> Iterator[None]:
    """torch.compile and torch.func import deprecated parts of torch.jit, and switch validation off for the process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", r"Guards may run slower on Python 3\.13\.0", RuntimeWarning)  # not on 3.13.1
        yield
    torch.distributions.Distribution.set_default_validate_args(True)
