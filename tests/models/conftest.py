"""For all tests of models."""

import pyro
import pytest


@pytest.fixture(autouse=True)
def clean_pyro():
    """Guides of all tests have the same names of parameters: none may find those of another in the store."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
