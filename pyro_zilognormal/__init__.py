"""The zero-inflated log-normal distribution for Pyro."""

from pyro_zilognormal._version import __version__

__all__ = ["__version__"]
