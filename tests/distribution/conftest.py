"""Fixtures of the tests of the fast log density, compiled and not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from pyro_zilognormal.density import autograd as _fused
from pyro_zilognormal.density import blocks as _blocks
from pyro_zilognormal.density import choice as _density
from pyro_zilognormal.density import values as _values


@pytest.fixture
def used_for_few_entries_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_density, "FEW", 0)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of arguments whenever the fast function is used."""
    calls: list[int] = []

    def with_derivatives(*args: Tensor) -> Tensor:
        calls.append(len(args))
        return original(*args)

    def alone(args: Sequence[Tensor]) -> Tensor:
        calls.append(len(args))
        return evaluate_alone(args)

    original, evaluate_alone = _fused.log_density, _values.evaluate
    monkeypatch.setattr(_fused, "log_density", with_derivatives)
    monkeypatch.setattr(_values, "evaluate", alone)
    return calls


@pytest.fixture(params=[2**21, 256], ids=["one block", "many blocks"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blocks, "BYTES", request.param)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """torch.compile compiles a function for so many kinds of arguments, and imports deprecated parts of torch.jit."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
    torch._dynamo.reset()
