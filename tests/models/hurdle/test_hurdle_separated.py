"""Genes that maximum likelihood gives up on: their posteriors are finite, and without data they are the prior."""

import copy
import functools
import math

import pyro
import pytest
import torch

from pyro_zilognormal.models import (
    Condition,
    HurdleData,
    HurdleGuide,
    HurdleModel,
    draw_coefficients,
    fit_hurdle,
    log_fold_change,
)
from pyro_zilognormal.models.hurdle.components import log_scale

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
TABLES = {
    "all": torch.stack([v.double() for v in GENES.values()], 1),
    "ordinary": torch.stack([v.double() for v in list(GENES.values())[:-2]], 1),
    "only silent": torch.zeros(CELLS, 2, dtype=torch.float64),
    "only constant": torch.full((CELLS, 2), 3.0, dtype=torch.float64),
    "one gene": USUAL[:, None],
}
NAMES = list(GENES)
# Levels of random effects: two without cells, one with all positive values, one for each cell.
FACTORS = {
    "none": None,
    "donors": torch.arange(CELLS) % 3 * 2,
    "all in one": (torch.arange(CELLS) > 30) * 2,
    "each cell": torch.arange(CELLS),
}


@functools.cache
def case(table, factors="none"):
    x, who = TABLES[table], FACTORS[factors]
    if factors == "all in one":
        x = torch.where((who == 2).unsqueeze(1), x + 2.0, 0.0)
    data = HurdleData.from_cells(x, DESIGN, factors=who, reduce=True)
    model = HurdleModel(data)
    return model, HurdleGuide(model, data), data


CASES = [(table, "none") for table in TABLES]
CASES += [("all", "donors"), ("only silent", "donors"), ("ordinary", "all in one"), ("one gene", "each cell")]
cases = pytest.mark.parametrize(("table", "factors"), CASES)


@cases
def test_the_start_is_finite(table, factors):
    _, guide, data = case(table, factors)
    assert (guide.hyper.unit > 0).all()
    assert all(v.isfinite().all() for v in guide.state_dict().values())
    if factors == "donors":
        assert data.levels == (5,)
        assert data.factors.unique().tolist() == [0, 2, 4]


@cases
def test_posteriors_and_fold_changes_are_finite(table, factors):
    model, guide, data = case(table, factors)
    result = fit_hurdle(model, copy.deepcopy(guide), data, steps=10)
    assert torch.tensor(result.losses).isfinite().all()
    draws = draw_coefficients(result, data, draws=20, random=20)
    assert all(v.isfinite().all() for v in draws.values())
    change = log_fold_change(draws, Condition([1, 1]), Condition([1, 0]))
    for part in (change.total, change.detection, change.dispersion, change.abundance):
        assert part.isfinite().all()
        assert part.shape == (20, TABLES[table].shape[1])


def known(guide):
    """Hyperparameters as at the start, and log sds of -1."""
    log_sds = {c.name: torch.full((guide.genes, c.width), -1.0).double() for c in guide.hierarchy.log_sds}
    return guide.hyper.split(guide.hyper.start) | log_sds


@torch.no_grad()
def moments(guide, values):
    """Mean and variance of the coefficients under the widest component, by name."""
    block = guide.hierarchy.coefficients
    q = guide.distribution("coefficients", values).live
    return block.split(q.factor.colour(q.white_mean)), block.split(q.factor.covariance().diagonal())


def test_without_positive_values_sigma_has_its_prior():
    _, guide, _ = case("ordinary")
    values = known(guide) | {"log_sigma_log_sd": torch.full((2,), -1.0).double()}
    mean, variance = moments(guide, values)
    silent = NAMES.index("never")
    torch.testing.assert_close(mean["log_sigma"][silent], values["log_sigma_mean"])
    torch.testing.assert_close(variance["log_sigma"][silent], values["log_sigma_log_sd"].exp().square())
    # And a gene with values has not.
    assert (variance["log_sigma"][0] < 0.9 * values["log_sigma_log_sd"].exp().square()).all()


def test_levels_without_cells_have_their_prior():
    _, guide, _ = case("all", "donors")
    values = known(guide)
    mean, variance = moments(guide, values)
    for part in ("random", "zero_random"):
        assert mean[part][:, [1, 3]].abs().max() < 1e-12
        torch.testing.assert_close(variance[part][:, [1, 3]], torch.full((len(NAMES), 2), math.exp(-2)).double())
        assert (variance[part][0, [2, 4]] < 0.999 * math.exp(-2)).all()  # the first has zeros alone


def test_the_log_mean_is_lower_where_the_data_are_silent():
    _, guide, _ = case("ordinary")
    mean, _ = moments(guide, known(guide))
    effect, zero = mean["effects"][:, 0], mean["zero_intercept"][:, 0]
    for name in ("silent in one arm", "silent in one, always in the other"):
        assert effect[NAMES.index(name)] > 1
    assert zero[NAMES.index("never")] > zero.median() > zero[NAMES.index("always")]
    assert all(v.abs().max() < 30 for v in mean.values())


def test_a_constant_gene_has_the_smallest_sigma():
    _, guide, _ = case("ordinary")
    mean, _ = moments(guide, known(guide))
    log_sigma = mean["log_sigma"] @ torch.tensor([1.0, 0.5]).double()
    assert NAMES[int(log_sigma.argmin())] in ("constant", "always and constant")
    assert log_scale(log_sigma).min() >= math.log(1e-3)


def test_all_of_a_donor():
    """Genes that are positive in one donor alone have random effects of large sds."""
    _, guide, _ = case("ordinary", "all in one")
    pyro.set_rng_seed(0)
    with torch.no_grad():
        draws = guide.sample_coefficients(guide.sample_hyperparameters(50), 1, 1)
    usual = NAMES.index("usual")
    assert draws["random"][:, usual, 2].mean() > draws["random"][:, usual, 0].mean() + 1
    assert draws["random_log_sd"][:, usual].mean() > -1
