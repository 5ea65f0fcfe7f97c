"""The likelihood of single cells by passes over them: that of the distribution, its mode, and where a guide starts."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hurdle_cases import KINDS, offsets, table, without_guide

from pyro_zilognormal import ZeroInflatedLogNormal
from pyro_zilognormal.models import HurdleData, HurdleModel, HurdlePriors
from pyro_zilognormal.models.hurdle import cells as cells_module
from pyro_zilognormal.models.hurdle import data as data_module
from pyro_zilognormal.models.hurdle.cells import CellLikelihood
from pyro_zilognormal.models.hurdle.components import log_scale
from pyro_zilognormal.models.hurdle.effects import location
from pyro_zilognormal.models.hurdle.initialize import find_pairs, find_start
from pyro_zilognormal.models.hurdle.passes import NEAR, find_start_of_cells
from pyro_zilognormal.models.hurdle.predictors import GroupLikelihood, Predictors, Quadratic

SLOPE = torch.tensor([0.7]).double()
KEPT = {name: kind | {"reduce": False} for name, kind in KINDS.items()}


def coefficients(block, genes=5, scale=0.4, seed=0):
    return scale * torch.randn(genes, block.width, generator=torch.Generator().manual_seed(seed)).double()


def predict(data, block, theta):
    """The predictors of all cells, each of shape (cells, genes)."""
    return (Predictors(data, block).matrices(SLOPE) @ theta.mT).unbind()


@pytest.mark.parametrize("form", ["dense", "csr", "float32"])
@pytest.mark.parametrize("kind", KEPT.values(), ids=KEPT)
def test_log_density_and_its_derivatives_are_those_of_the_cells(kind, form, monkeypatch):
    monkeypatch.setattr(cells_module, "_ROWS_A_PIECE", (7, 7))
    model, data = without_guide(**kind)
    data = model.centred(data)
    x, block = data.value.float().double(), model.hierarchy.coefficients
    given = {"dense": x, "csr": sp.csr_matrix(x.numpy()), "float32": x.float()}[form]
    likelihood, theta = CellLikelihood(replace(data, value=given), block), coefficients(block).requires_grad_()
    log_density, score, information = likelihood.derivatives(theta, SLOPE)
    log_mean, zero, log_sigma = predict(data, block, theta)
    scale = log_scale(log_sigma).exp()
    zilognormal = ZeroInflatedLogNormal(location(log_mean, scale, zero) + data.offset[:, None], scale, zero)
    # But for the constant of a positive value, log x + log(2 pi) / 2.
    constant = torch.where(x > 0, x.clamp(min=1e-300).log() + np.log(2 * np.pi) / 2, 0.0).sum(0)
    expected = zilognormal.log_prob(x).sum(0) + constant
    torch.testing.assert_close(log_density, expected.detach(), rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(expected.sum(), theta)
    torch.testing.assert_close(score, slope, rtol=1e-10, atol=1e-10)
    # The expected information of groups of one.
    groups = replace(data, value=x).as_groups()
    quadratic = Quadratic(Predictors(groups, block).matrices(SLOPE), model.hierarchy.layout)
    each = GroupLikelihood(groups).derivatives(*quadratic.predict(theta.detach()))[1]
    torch.testing.assert_close(information, quadratic.information(each).dense(), rtol=1e-11, atol=1e-11)


def test_extreme_log_odds_keep_their_digits():
    """Where P(X = 0) is nearly 0 or 1 the sums are those of the distribution, and finite."""
    one = torch.ones(600, 1).double()
    x = torch.tensor([0.0, 1.5]).double().repeat(300, 1).mT.reshape(-1, 1).expand(600, 3).contiguous()
    data = HurdleData(x, one, one, one, torch.zeros(600, 0).long(), torch.zeros(600).double())
    block = HurdleModel(data).hierarchy.coefficients
    theta = torch.zeros(3, block.width).double()
    theta[:, block.slices["zero_intercept"]] = torch.tensor([[-40.0], [40.0], [700.0]]).double()
    log_density, score, information = CellLikelihood(data, block).derivatives(theta, 0 * SLOPE)
    zero = theta[:, block.slices["zero_intercept"].start]
    zilognormal = ZeroInflatedLogNormal(location(torch.zeros(3).double(), torch.ones(3).double(), zero), 1.0, zero)
    constant = 300 * (np.log(1.5) + np.log(2 * np.pi) / 2)
    # The scale has 0.001^2 added.
    torch.testing.assert_close(log_density, zilognormal.log_prob(x).sum(0) + constant, rtol=1e-5, atol=0)
    assert score.isfinite().all()
    assert (torch.linalg.eigvalsh(information) > -1e-9 * information.abs().amax((1, 2))[:, None]).all()


# All hyperparameters known, so that modes do not move with them.
KNOWN = {
    name: (pair[0], 1e-6)
    for name, pair in vars(HurdlePriors()).items()
    if isinstance(pair, tuple) and name != "effects_share"
}


def many(cells=4000, **kinds):
    """A model and cells of which half make the start."""
    made = table(cells=cells, **{"genes": 4, "continuous": True, "effects": 2} | kinds)
    data = HurdleData.from_cells(**made, offset=offsets(cells), reduce=False)
    return HurdleModel(data), data


def test_the_same_sums_from_blocks_and_threads(monkeypatch):
    model, data = many(levels=(3, 4))
    block = model.hierarchy.coefficients
    theta = coefficients(block, 4)
    found = []
    for threads, size in ((1, 1 << 22), (2, 1 << 10)):
        monkeypatch.setattr("pyro_zilognormal.models.hurdle.cells.VALUES_A_BLOCK", size)
        torch.set_num_threads(threads)
        try:
            found.append(CellLikelihood(model.centred(data), block).derivatives(theta, SLOPE))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-9)


def test_the_mode_of_many_cells():
    """Given the hyperparameters, a Newton step by autograd of the distribution's density is less than 1e-6 sds long."""
    _, data = many(2500, levels=(5,), genes=2, effects=1)
    model = HurdleModel(data, HurdlePriors(**KNOWN))
    data, block = model.centred(data), model.hierarchy.coefficients
    start = find_start_of_cells(data, model.hierarchy, passes=20, near=1e-7)
    site, log_sds, hyper = start.coefficients, start.log_sds, start.hyper
    values, slope = {name: mean for name, (mean, _) in hyper.items()}, hyper["zero_slope"][0]
    mean, precision = (
        torch.cat([m.expand(2, -1) for m in each], 1)
        for each in zip(*(c.moments(values) for c in model.hierarchy.log_sds), strict=True)
    )
    total = log_sds.information.diagonal() + precision
    values |= model.hierarchy.log_sds.split((log_sds.linear + precision * mean) / total)
    mean, precision = (v.expand(2, -1) for v in block.moments(values))
    given = site.sheared(slope, find_pairs(data, block))
    total = given.information.dense() + torch.diag_embed(precision)
    theta = torch.linalg.solve(total, given.linear + precision * mean).requires_grad_()
    log_mean, zero, log_sigma = Predictors(data, block).matrices(slope) @ theta.mT
    scale = log_scale(log_sigma).exp()
    zilognormal = ZeroInflatedLogNormal(location(log_mean, scale, zero) + data.offset[:, None], scale, zero)
    log_joint = zilognormal.log_prob(data.value).sum() - (precision * (theta - mean).square()).sum() / 2
    (gradient,) = torch.autograd.grad(log_joint, theta)
    step = torch.linalg.solve(total, gradient)
    assert (step.abs() * total.diagonal(dim1=-2, dim2=-1).sqrt()).max() < 1e-6


def test_the_start_of_many_cells_is_that_of_all(monkeypatch):
    """With a limit of 400 of 1,000 cells, passes lead where an ascent on all of them does."""
    model, data = many(1000, genes=24)
    data = model.centred(data)
    groups = data.as_groups()
    monkeypatch.setattr(data_module, "_MOST_CELLS", 400)
    assert len(data.some().design) == 400
    start, whole = find_start_of_cells(data, model.hierarchy, passes=40, near=1e-3), find_start(groups, model.hierarchy)
    site, same = start.coefficients, whole.coefficients
    precision = same.information.diagonal()
    modes = [torch.linalg.solve(s.information.dense() + torch.eye(s.linear.shape[1]), s.linear) for s in (site, same)]
    assert ((modes[0] - modes[1]).abs() * precision.sqrt()).max() < 0.05
    found, expected = site.information.values, same.information.values
    torch.testing.assert_close(found, expected, rtol=0.05, atol=float(0.05 * precision.min()))
    for name, (mean, sd) in whole.hyper.items():
        assert ((start.hyper[name][0] - mean).abs() < 0.05 * sd).all(), name
    torch.testing.assert_close(start.log_sds.linear, whole.log_sds.linear, rtol=0.2, atol=0.5)


def test_hyperparameters_of_steps_that_need_no_pass():
    """They are those of passes to the very mode, for columns too of which data say little."""
    torch.manual_seed(0)
    cells, genes = 4000, 30
    design = torch.cat([torch.ones(cells, 1), torch.randn(cells, 4)], 1)
    values = ZeroInflatedLogNormal(torch.zeros(genes), 0.5, 1.0).sample((cells,))
    data = HurdleData.from_cells(values, design, reduce=False)
    model = HurdleModel(data)
    data = model.centred(data)
    found, mode = (find_start_of_cells(data, model.hierarchy, near=near).hyper for near in (NEAR, 1e-2))
    for name, (mean, sd) in mode.items():
        assert ((found[name][0] - mean).abs() < 0.1 * sd).all(), name
        torch.testing.assert_close(found[name][1], sd, rtol=0.02, atol=0)
