"""The lossless reduction of cells to the sufficient statistics of groups."""

from pyro_zilognormal.sufficient.distribution import GroupedZeroInflatedLogNormal
from pyro_zilognormal.sufficient.rows import row_chunks
from pyro_zilognormal.sufficient.statistics import SufficientStatistics

__all__ = ["GroupedZeroInflatedLogNormal", "SufficientStatistics", "row_chunks"]
