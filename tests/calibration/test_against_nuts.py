"""The guide's posterior is that of NUTS on the same model: of two cell types, donors, and covariates of cells."""

import json

import numpy as np
import pytest

from pyro_zilognormal.models import HurdlePriors, draw_coefficients
from tests.calibration.nuts_reference import PATH
from tests.calibration.simulations import DENSE, NUTS_DATA, fit

pytestmark = pytest.mark.slow

DRAWS = 20000
COEFFICIENTS = ("intercept", "effects", "log_sigma", "zero_intercept", "zero_effects", "random", "zero_random")


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", NUTS_DATA)
def test_every_coefficient(name, seed):
    """Means within 0.1 posterior sd and sds within 10 %, but for two standard errors of both samplers."""
    data, reference = NUTS_DATA[name](), json.loads(PATH.read_text())[name]
    assert float(data.value.sum()) == pytest.approx(reference["statistics"], rel=1e-12), "made for other data"
    result = fit(data, HurdlePriors.for_data(data, **DENSE), seed)
    drawn = draw_coefficients(result, data, DRAWS, seed, random=DRAWS)
    compared = [site for site in COEFFICIENTS if site in reference["sites"]]
    for site in compared:
        exact = {k: np.array(v) for k, v in reference["sites"][site].items()}
        ours = drawn[site].reshape(DRAWS, -1).numpy()
        noise = np.sqrt(1 / exact["effective"] + 1 / DRAWS)
        assert (np.abs(ours.mean(0) - exact["mean"]) / exact["sd"] < 0.1 + 2 * noise).all(), site
        assert (np.abs(np.log(ours.std(0) / exact["sd"])) < 0.1 + 2 * noise).all(), site
    assert len(compared) >= 5
