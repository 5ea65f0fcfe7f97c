"""What an import does: it leaves all state and all large packages alone, and a missing extra says how to install it.

Each check runs in a fork of one new process that has imported torch and Pyro, which takes seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

FORKS = """
import json, os, sys, traceback
import numpy, pyro, torch
found = {}
for name, code in json.load(sys.stdin).items():
    end, start = os.pipe()
    if os.fork() == 0:
        try:
            exec(code, {})
        except BaseException:
            os.write(start, traceback.format_exc().encode())
        os._exit(0)
    os.close(start)
    found[name] = os.fdopen(end).read()
    os.wait()
print(json.dumps(found))
"""
LIGHT = {
    "the package": "import pyro_zilognormal",
    "models": "import pyro_zilognormal.models",
    "nn": "import pyro_zilognormal.nn as nn; assert not hasattr(nn, 'ZILNClassifier')",
    "singlecell": "import pyro_zilognormal.singlecell",
    "svi": "import pyro_zilognormal.svi",
    "embedded data": "import pyro_zilognormal.datasets as d; d.pbmc68k_reduced()",
    "a reduction": (
        "from pyro_zilognormal import SufficientStatistics as S; assert S.from_cells(torch.eye(3)).n_pos.sum() == 3"
    ),
}
IMPORT = """
import logging, random, sys
import numpy, pyro, torch

def state():
    return (
        torch.get_default_dtype(), torch.distributions.Distribution._validate_args, torch.is_grad_enabled(),
        torch.random.get_rng_state().tolist(), random.getstate(), numpy.random.get_state(legacy=False),
        len(pyro.get_param_store()), pyro.settings.get(), list(logging.root.handlers), logging.root.level,
    )

before = repr(state())
{code}
assert repr(state()) == before, "changed global state"
heavy = "anndata dask formulaic jax lightning matplotlib pandas scanpy scipy sklearn".split()
loaded = [name for name in heavy if name in sys.modules]
assert not loaded, loaded
"""
# What is not installed, what needs it, and what its error says.
MISSING = {
    "sklearn": ("from pyro_zilognormal.nn import ZILNRegressor", "pip install 'pyro-zilognormal[sklearn]'"),
    "lightning": ("import pyro_zilognormal.svi.lightning", "pip install 'pyro-zilognormal[lightning]'"),
    **dict.fromkeys(
        ("anndata", "formulaic"),
        (
            "from pyro_zilognormal.singlecell import HurdleDE; HurdleDE(None, '~ condition')",
            'pip install "pyro-zilognormal[singlecell]"',
        ),
    ),
}


@pytest.fixture(scope="module")
def ends() -> dict[str, str]:
    """How each check ended: the traceback of its error, or nothing."""
    codes = {name: IMPORT.format(code=code) for name, code in LIGHT.items()}
    codes |= {name: f"import sys; sys.modules[{name!r}] = None; {code}" for name, (code, _) in MISSING.items()}
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a fork has no others
    command = [sys.executable, "-W", "error", "-c", FORKS]
    done = subprocess.run(command, input=json.dumps(codes), capture_output=True, text=True, env=one_thread, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", LIGHT)
def test_an_import_has_no_side_effect_and_loads_no_large_package(name: str, ends: dict[str, str]) -> None:
    assert not ends[name]


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_extra_says_how_to_install_it(name: str, ends: dict[str, str]) -> None:
    last = ends[name].splitlines()[-1]
    assert last.startswith(("ImportError: ", "ModuleNotFoundError: "))
    assert name in last
    assert MISSING[name][1] in last
