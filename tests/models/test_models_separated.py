"""Genes that maximum likelihood gives up on: their posteriors are finite, and where data are silent, the prior."""

import math

import pytest
import torch
from hurdle_cases import start

from pyro_zilognormal.models import Condition, HurdleData, HurdlePriors, HurdleRegression, fit_hurdle, log_fold_change
from pyro_zilognormal.models._sigma import log_scale
from pyro_zilognormal.svi import posterior_draws

CELLS = 40
ARM = torch.arange(CELLS) % 2
DESIGN = torch.stack([torch.ones(CELLS), ARM], 1)
USUAL = torch.where(torch.arange(CELLS) % 3 > 0, 1 + (torch.arange(CELLS) * 7 % 11) / 5, 0.0).double()
GENES = {
    "usual": USUAL,
    "silent in one arm": USUAL * ARM,
    "always in one arm": torch.where(ARM == 1, 2 + torch.arange(CELLS) % 5 / 3, USUAL),
    "silent in one, always in the other": ARM * (2 + torch.arange(CELLS) % 5 / 3),
    "one positive cell": USUAL * (torch.arange(CELLS) == 5),
    "never": torch.zeros(CELLS),
    "always": 1 + (torch.arange(CELLS) * 3 % 7) / 2,
    "constant": torch.where(torch.arange(CELLS) % 2 > 0, 3.0, 0.0),
    "always and constant": torch.full((CELLS,), 3.0),
    "one huge": 1e300 * (torch.arange(CELLS) == 3).double(),
    "one tiny": 1e-300 * (torch.arange(CELLS) == 3).double(),
}
PRIORS = {"normal": {}, "sparse": {"effects_share": (0.2, 1.0)}}
TABLES = {
    "all": torch.stack([v.double() for v in GENES.values()], 1),
    "ordinary": torch.stack([v.double() for v in list(GENES.values())[:-2]], 1),
    "only silent": torch.zeros(CELLS, 2, dtype=torch.float64),
    "only constant": torch.full((CELLS, 2), 3.0, dtype=torch.float64),
    "one gene": USUAL[:, None],
}


def regression_of(table, priors, donors=False):
    donor = torch.arange(CELLS) % 3 if donors else None
    data = HurdleData.from_cells(TABLES[table], DESIGN, donor=donor)
    return HurdleRegression(data, HurdlePriors.for_data(data, **PRIORS[priors])), data


@pytest.mark.parametrize("donors", [False, True])
@pytest.mark.parametrize("priors", PRIORS)
@pytest.mark.parametrize("table", TABLES)
def test_the_start_is_finite(table, priors, donors):
    regression, data = regression_of(table, priors, donors)
    found = start(regression, data)
    assert all(
        v.isfinite().all() for mode in found.modes.values() for v in (mode.theta, *vars(mode.information).values())
    )
    assert all(v.isfinite().all() and (sd > 0).all() for v, sd in found.hyper.values())
    assert all(v.isfinite().all() for v in regression.state_dict().values())


@pytest.mark.parametrize("priors", PRIORS)
@pytest.mark.parametrize("table", TABLES)
def test_posteriors_and_fold_changes_are_finite(table, priors):
    regression, data = regression_of(table, priors)
    result = fit_hurdle(regression, data, steps=10)
    draws = posterior_draws(result, *data.arguments, draws=20)
    assert all(v.isfinite().all() for v in draws.values())
    change = log_fold_change(draws, Condition([1, 1]), Condition([1, 0]))
    assert change.total.isfinite().all()
    assert change.total.shape == (20, TABLES[table].shape[1])


def law_of(regression, part, values):
    with torch.no_grad():
        law = regression._law(
            part, values, (2 * (regression.log_scale_start - log_scale(values["log_sigma"]))).exp()
        ).law
        return law.factor.transpose_solve(law.white_mean), law.factor.inverse_diagonal()


def test_a_silent_gene_has_its_prior_given_the_hyperparameters():
    regression, _ = regression_of("ordinary", "normal")
    silent = list(GENES).index("never")
    values = regression.hyper.split(regression.hyper.start.detach())
    values["log_sigma"] = regression.log_scale_start + 0.3
    mean, precision = regression.blocks["positive"].moments(values)
    found = law_of(regression, "positive", values)
    torch.testing.assert_close(found[0][silent], mean)
    torch.testing.assert_close(found[1][silent], 1 / precision, rtol=2e-4, atol=0)
    with torch.no_grad():
        sigma = regression._law("log_sigma", values).law
    expected = values["log_sigma_log_sd"].exp().square()
    torch.testing.assert_close(sigma.factor.inverse_diagonal()[silent], expected, rtol=2e-4, atol=0)
    # And a gene with data has not.
    assert (found[1][0] < 0.9 / precision).all()


def test_the_gate_knows_where_the_data_are_silent():
    """Never in one arm: the odds of a zero are higher there, by less than the prior allows."""
    regression, data = regression_of("ordinary", "normal")
    theta = start(regression, data).modes["gate"].theta
    names = list(GENES)
    assert theta[names.index("silent in one arm"), 1] < 0
    assert theta[names.index("always in one arm"), 1] < 0
    assert theta[names.index("never"), 0] > theta[:, 0].median() > theta[names.index("always"), 0]
    assert theta.abs().max() < 30


def test_a_constant_gene_has_the_smallest_sigma():
    regression, data = regression_of("ordinary", "normal")
    log_sigma = start(regression, data).modes["log_sigma"].theta.squeeze(-1)
    names = list(GENES)
    assert log_sigma.argmin() in (names.index("constant"), names.index("always and constant"))
    assert log_sigma.min() > math.log(1e-4)
