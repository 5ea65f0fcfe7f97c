"""The package as a whole: what it promises to its users' tools."""

import importlib.metadata
import pathlib

import pyro_zilognormal

ROOT = pathlib.Path(__file__).parents[1]


def test_version_is_the_installed_one() -> None:
    assert pyro_zilognormal.__version__ == importlib.metadata.version("pyro-zilognormal")


def test_all_names_exist_and_are_documented() -> None:
    for name in pyro_zilognormal.__all__:
        member = getattr(pyro_zilognormal, name)
        assert name == "__version__" or member.__doc__, name


def test_types_are_shipped() -> None:
    assert (ROOT / "pyro_zilognormal" / "py.typed").exists()
