"""The package as a whole: what importing it does, and what it promises to its users' tools."""

import importlib.metadata
import pathlib
import subprocess
import sys

import pyro_zilognormal

ROOT = pathlib.Path(__file__).parents[1]
IMPORT = """
import logging, random, sys
import numpy, pyro, torch

def state():
    numpy_state = numpy.random.get_state()
    return (
        torch.get_default_dtype(), torch.distributions.Distribution._validate_args, torch.is_grad_enabled(),
        torch.random.get_rng_state().tolist(), random.getstate(), numpy_state[1].tolist(), numpy_state[2],
        len(pyro.get_param_store()), list(logging.root.handlers), logging.root.level,
    )

before = state()
import pyro_zilognormal
assert state() == before, "importing changed global state"
heavy = {"matplotlib", "anndata", "pandas", "scipy", "sklearn", "jax", "dask"} & set(sys.modules)
assert not heavy, heavy
"""


def test_importing_has_no_side_effect() -> None:
    result = subprocess.run([sys.executable, "-W", "error", "-c", IMPORT], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_version_is_the_installed_one() -> None:
    assert pyro_zilognormal.__version__ == importlib.metadata.version("pyro-zilognormal")


def test_all_names_exist_and_are_documented() -> None:
    for name in pyro_zilognormal.__all__:
        member = getattr(pyro_zilognormal, name)
        assert name == "__version__" or member.__doc__, name


def test_types_are_shipped() -> None:
    assert (ROOT / "pyro_zilognormal" / "py.typed").exists()
