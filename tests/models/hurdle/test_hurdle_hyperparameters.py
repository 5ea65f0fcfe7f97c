"""Hyperparameters that are log sds, against quadrature on a fine grid."""

import math

import pytest
import torch

from pyro_zilognormal.models.hurdle.components import Component
from pyro_zilognormal.models.hurdle.hyperparameters import integrate_log_sd, normal_step

LOG_SD = torch.tensor([math.log(0.3)]).double(), torch.tensor([1.0]).double()


def exact(estimate, error):
    """Mean and sd of log s, where estimates are Normal(0, s^2 + error^2)."""
    nodes = torch.linspace(-8, 4, 20_001).double()
    variance = (2 * nodes).exp() + error**2
    evidence = torch.zeros_like(nodes)
    for one in estimate:
        evidence -= (one**2 / variance + variance.log()) / 2
    weight = (evidence - ((nodes - LOG_SD[0]) / LOG_SD[1]).square() / 2).softmax(0)
    mean = weight @ nodes
    return mean, (weight @ (nodes - mean).square()).sqrt()


@pytest.mark.parametrize(("genes", "error"), [(10, 0.1), (30, 0.4), (300, 0.4), (4000, 0.2)])
def test_the_log_sd_across_genes_is_that_of_quadrature(genes, error):
    component = Component(
        "site", 1, {"mean": (torch.zeros(1).double(), torch.full((1,), 1e-6).double()), "log_sd": LOG_SD}
    )
    generator = torch.Generator().manual_seed(0)
    estimate = math.hypot(0.3, error) * torch.randn(genes, generator=generator).double()
    values = {"site_mean": torch.zeros(1).double(), "site_log_sd": LOG_SD[0].clone()}
    for _ in range(200):  # EM
        variance = 1 / (error**-2 + (-2 * values["site_log_sd"]).exp())
        theta = (estimate * error**-2 * variance).unsqueeze(-1)
        values["site_log_sd"] = normal_step(component, theta, variance.expand(genes, 1), values)["site_log_sd"][0]
    ((mean, sd),) = integrate_log_sd(component, theta, variance.expand(genes, 1), values).values()
    wanted, spread = exact(estimate, error)
    assert abs(mean - wanted) < 0.02 * spread
    assert abs((sd / spread).log()) < 0.02
