"""The fitted model makes data like the real ones: zero fractions and means of genes."""

import pytest

from pyro_zilognormal.svi import posterior_predictive
from tests.calibration.simulations import blood, fit

pytestmark = pytest.mark.slow


def test_zero_fractions_and_means_of_real_genes():
    grouped = blood()
    result = fit(grouped, None, seed=0)
    check = posterior_predictive(result, *blood(reduce=False).arguments, draws=400, seed=1)["x"]
    for statistic in ("zero fraction", "mean"):
        inside = ((check.tail[statistic] > 0.005) & (check.tail[statistic] < 0.995)).double().mean()
        assert inside >= 0.97, (statistic, inside)
