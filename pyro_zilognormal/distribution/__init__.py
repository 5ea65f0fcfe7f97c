"""The zero-inflated log-normal distribution."""

from pyro_zilognormal.distribution import kl as _kl  # noqa: F401  (registers the divergences)
from pyro_zilognormal.distribution.censored import LeftCensoredZeroInflatedLogNormal
from pyro_zilognormal.distribution.reparam import ZeroInflatedLogNormalReparam
from pyro_zilognormal.distribution.ziln import ZeroInflatedLogNormal

__all__ = ["LeftCensoredZeroInflatedLogNormal", "ZeroInflatedLogNormal", "ZeroInflatedLogNormalReparam"]
