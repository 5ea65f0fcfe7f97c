"""Every test starts from a fixed seed and an empty parameter store."""

import pyro
import pytest


@pytest.fixture(autouse=True)
def clean_pyro():
    pyro.set_rng_seed(20)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
