"""Genes that maximum likelihood gives up on: their posteriors are finite, and where data are silent, the prior."""

import copy
import functools
import math

import pytest
import torch
from hurdle_cases import start

from pyro_zilognormal.models import (
    Condition,
    HurdleData,
    HurdleGuide,
    HurdleModel,
    HurdlePriors,
    fit_hurdle,
    log_fold_change,
)
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
PRIORS = {"normal": {"effects_share": None}, "sparse": {}}
TABLES = {
    "all": torch.stack([v.double() for v in GENES.values()], 1),
    "ordinary": torch.stack([v.double() for v in list(GENES.values())[:-2]], 1),
    "only silent": torch.zeros(CELLS, 2, dtype=torch.float64),
    "only constant": torch.full((CELLS, 2), 3.0, dtype=torch.float64),
    "one gene": USUAL[:, None],
}


@functools.cache
def case(table, priors, donors=False):
    donor = torch.arange(CELLS) % 3 if donors else None
    data = HurdleData.from_cells(TABLES[table], DESIGN, donor=donor)
    model = HurdleModel(data, HurdlePriors.for_data(data, **PRIORS[priors]))
    return model, HurdleGuide(model, data), data


CASES = [(table, priors) for table in ("all", "only silent") for priors in PRIORS]
CASES += [("ordinary", "normal"), ("only constant", "sparse"), ("one gene", "sparse")]


@pytest.mark.parametrize(
    ("table", "priors", "donors"),
    [(*c, False) for c in CASES] + [("all", "sparse", True), ("only silent", "normal", True)],
)
def test_the_start_is_finite(table, priors, donors):
    _, guide, _ = case(table, priors, donors)
    assert (guide.hyper.unit > 0).all()
    assert all(v.isfinite().all() for v in guide.state_dict().values())


@pytest.mark.parametrize(("table", "priors"), CASES)
def test_posteriors_and_fold_changes_are_finite(table, priors):
    model, guide, data = case(table, priors)
    result = fit_hurdle(model, copy.deepcopy(guide), data, steps=10)
    draws = posterior_draws(result, *data.arguments, draws=20)
    assert all(v.isfinite().all() for v in draws.values())
    change = log_fold_change(draws, Condition([1, 1]), Condition([1, 0]))
    assert change.total.isfinite().all()
    assert change.total.shape == (20, TABLES[table].shape[1])


@torch.no_grad()
def moments(guide, part, values):
    q = guide.distribution(part, values).live
    return q.factor.transpose_solve(q.white_mean), q.factor.inverse_diagonal()


def test_a_silent_gene_has_its_prior_given_the_hyperparameters():
    model, guide, _ = case("ordinary", "normal")
    silent = list(GENES).index("never")
    values = guide.hyper.split(guide.hyper.start)
    values["log_sigma"] = guide.log_scale_start + 0.3
    mean, precision = model.blocks["positive"].moments(values)
    found = moments(guide, "positive", values)
    torch.testing.assert_close(found[0][silent], mean)
    torch.testing.assert_close(found[1][silent], 1 / precision, rtol=2e-4, atol=0)
    expected = values["log_sigma_log_sd"].exp().square()
    torch.testing.assert_close(moments(guide, "log_sigma", values)[1][silent], expected, rtol=2e-4, atol=0)
    # And a gene with data has not.
    assert (found[1][0] < 0.9 / precision).all()


def test_the_odds_of_a_zero_where_the_data_are_silent():
    """Never in one arm: the odds of a zero are higher there, by less than the prior allows."""
    model, _, data = case("ordinary", "normal")
    theta = start(model, data)[0]["zero"].theta
    names = list(GENES)
    assert theta[names.index("silent in one arm"), 1] < 0
    assert theta[names.index("always in one arm"), 1] < 0
    assert theta[names.index("never"), 0] > theta[:, 0].median() > theta[names.index("always"), 0]
    assert theta.abs().max() < 30


def test_a_constant_gene_has_the_smallest_sigma():
    model, _, data = case("ordinary", "normal")
    log_sigma = start(model, data)[0]["log_sigma"].theta.squeeze(-1)
    names = list(GENES)
    assert log_sigma.argmin() in (names.index("constant"), names.index("always and constant"))
    assert log_sigma.min() > math.log(1e-4)
