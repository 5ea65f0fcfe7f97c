"""Fixtures of the tests of the blockwise log density."""

from __future__ import annotations

import pytest
from torch import Tensor

from pyro_zilognormal import density
from pyro_zilognormal.density import autograd, blockwise


@pytest.fixture
def kernel_for_few_entries_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(density, "FEW", 0)


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of arguments whenever the kernel is used: 4 with logits, 5 with logarithms."""
    calls: list[int] = []

    def log_density(*args: Tensor) -> Tensor:
        calls.append(len(args))
        return original(*args)

    original = autograd.log_density
    monkeypatch.setattr(autograd, "log_density", log_density)
    return calls


@pytest.fixture(params=[2**20, 64], ids=["one block", "many blocks"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "BYTES", request.param)
