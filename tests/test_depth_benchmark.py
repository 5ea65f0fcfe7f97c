"""The ways in which depth explains zeros, against statsmodels."""

import sys
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import depth as benchmark

NAMES = list(benchmark.ways(torch.linspace(0, 1, 50, dtype=torch.float64)))


@pytest.mark.parametrize("name", NAMES)
def test_each_way_has_the_fit_of_statsmodels(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    depth = 7 + 0.5 * torch.randn(400, dtype=torch.float64, generator=generator)
    rate = (depth - 7).exp()[:, None] * torch.tensor([0.2, 1.0, 2.0], dtype=torch.float64)
    positive = (torch.rand(400, 3, dtype=torch.float64, generator=generator) < -torch.expm1(-rate)).double()
    way, half = benchmark.ways(depth)[name], torch.arange(400) < 200
    beta = way.fit(positive, half)
    held = way.log_likelihood(beta, positive, ~half)
    family = sm.families.Binomial(sm.families.links.CLogLog() if way.cloglog else None)
    for gene in range(3):
        model = sm.GLM(positive[half, gene].numpy(), way.x[half].numpy(), family, offset=way.offset[half].numpy())
        fit = model.fit()
        np.testing.assert_allclose(beta[:, gene], fit.params, rtol=1e-5, atol=1e-6)
        p = fit.predict(way.x[~half].numpy(), offset=way.offset[~half].numpy())
        y = positive[~half, gene].numpy()
        np.testing.assert_allclose(held[gene], (y * np.log(p) + (1 - y) * np.log1p(-p)).sum(), rtol=1e-5)
