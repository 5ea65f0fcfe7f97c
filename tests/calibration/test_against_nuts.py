"""The guide's posterior is that of NUTS on the same model: real data of two cell types, and simulated donors."""

import warnings

import pytest
import torch
from pyro.infer import MCMC, NUTS

from pyro_zilognormal.datasets import pbmc68k_reduced
from pyro_zilognormal.models import HurdleData, HurdleRegression, fit_hurdle
from pyro_zilognormal.svi import posterior_draws
from tests.calibration.simulations import experiment

pytestmark = pytest.mark.slow

T_CELLS = ("CD8+ Cytotoxic T", "CD4+/CD45RO+ Memory", "CD4+/CD45RA+/CD25- Naive T", "CD4+/CD25 T Reg")


def real(reduce: bool = True) -> HurdleData:
    cells = pbmc68k_reduced()
    kinds = list(cells.cell_type)
    keep = torch.tensor([k == "CD14+ Monocyte" or k in T_CELLS for k in kinds])
    monocyte = torch.tensor([k == "CD14+ Monocyte" for k in kinds])[keep]
    rows = torch.stack([torch.ones(len(monocyte)), monocyte], 1)
    return HurdleData.from_cells(cells.values[keep][:, :50], rows, reduce=reduce)


def donors() -> HurdleData:
    made = experiment(3, genes=20, share=1.0, donors=8, cells=40)
    rows = torch.stack([torch.ones_like(made.condition), made.condition], 1)
    return HurdleData.from_cells(made.x, rows, donor=made.donor)


@pytest.mark.parametrize("data", [real, donors])
def test_every_coefficient(data):
    data = data()
    regression = HurdleRegression(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, of Pyro's own shapes
        mcmc = MCMC(
            NUTS(regression.model, jit_compile=True, ignore_jit_warnings=True, target_accept_prob=0.9),
            num_samples=2500,
            warmup_steps=700,
            disable_progbar=True,
        )
        mcmc.run(*data.arguments)
    exact = mcmc.get_samples()
    effective = {k: v["n_eff"] for k, v in mcmc.diagnostics().items() if isinstance(v, dict) and "n_eff" in v}
    result = fit_hurdle(regression, data, seed=1)
    drawn = posterior_draws(result, *data.arguments, draws=4000)
    for name in ("intercept", "effects", "log_sigma", "gate_intercept", "gate_effects"):
        mean, sd = exact[name].mean(0), exact[name].std(0)
        size = effective[name].reshape(mean.shape).clamp(max=len(exact[name]))
        noise = (1 / size + 1 / 4000).sqrt()
        assert ((drawn[name].mean(0) - mean).abs() / sd < 0.1 + 2 * noise).all(), name
        assert ((drawn[name].std(0) / sd).log().abs() < 0.1 + 2 * noise).all(), name
