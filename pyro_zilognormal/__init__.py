"""The zero-inflated log-normal distribution for Pyro."""

from pyro_zilognormal import kl as _kl  # noqa: F401  (registers the divergences)
from pyro_zilognormal._version import __version__
from pyro_zilognormal.distribution import ZeroInflatedLogNormal
from pyro_zilognormal.reparam import ZeroInflatedLogNormalReparam

__all__ = ["ZeroInflatedLogNormal", "ZeroInflatedLogNormalReparam", "__version__"]
