"""The examples in docstrings run as they are printed."""

import doctest
import importlib
import pkgutil

import pytest

import pyro_zilognormal.svi as svi

MODULES = [m.name for m in pkgutil.iter_modules(svi.__path__, "pyro_zilognormal.svi.")]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_public_names_are_documented_and_sorted():
    assert sorted(svi.__all__) == sorted(set(svi.__all__))
    assert all(getattr(svi, name).__doc__ for name in svi.__all__)
