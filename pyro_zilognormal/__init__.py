"""The zero-inflated log-normal distribution for Pyro."""

from pyro_zilognormal._version import __version__
from pyro_zilognormal.distribution import (
    LeftCensoredZeroInflatedLogNormal,
    ZeroInflatedLogNormal,
    ZeroInflatedLogNormalReparam,
)
from pyro_zilognormal.sufficient import GroupedZeroInflatedLogNormal, SufficientStatistics, row_chunks

__all__ = [
    "GroupedZeroInflatedLogNormal",
    "LeftCensoredZeroInflatedLogNormal",
    "SufficientStatistics",
    "ZeroInflatedLogNormal",
    "ZeroInflatedLogNormalReparam",
    "__version__",
    "row_chunks",
]
