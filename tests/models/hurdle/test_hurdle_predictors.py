"""The linear predictors of model, start and fold changes against sums by hand; their likelihood and its derivatives."""

import numpy as np
import pytest
import torch
from hurdle_cases import KINDS, information_of, offsets, sites, table, trace_model, without_guide

from pyro_zilognormal.models import Condition, HurdleData, HurdleGuide, HurdleModel, cell_parameters
from pyro_zilognormal.models.hurdle.components import log_scale
from pyro_zilognormal.models.hurdle.effects import location
from pyro_zilognormal.models.hurdle.predictors import GroupLikelihood, Predictors, Quadratic
from pyro_zilognormal.sufficient import GroupedZeroInflatedLogNormal

kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
# Zeros, positives, mean and sum of squares of three groups of two genes, one of them empty.
VALUE = torch.tensor(
    [
        [[3.0, 5, 0.7, 2.1, 0], [0, 4, -0.3, 0.9, 0]],
        [[6, 0, 0, 0, 0], [2, 1, 1.1, 0, 0]],
        [[0, 0, 0, 0, 0], [9, 7, 0.2, 3, 0]],
    ],
    dtype=torch.float64,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(kind, seed=0):
    """A model, its data, and coefficients far from the start."""
    model, data = without_guide(**kind)
    values = sites(trace_model(model, data, {}))
    names = {c.name for c in model.hierarchy.coefficients}
    values |= {k: 0.5 * normal(*values[k].shape, seed=seed + len(k)) for k in names}
    return model, data, values | {"zero_slope": torch.tensor([0.7]).double()}


def by_hand(data, values, row, gene):
    """Log mean, log odds of a zero and log sigma of a row, in sums of products."""

    def product(design, *names):
        coefficients = [float(b) for n in names if n in values for b in values[n][gene]]
        return sum(float(d) * b for d, b in zip(design[row], coefficients, strict=True))

    log_mean = product(data.design, "intercept", "effects")
    zero = product(data.zero_design, "zero_intercept", "zero_effects")
    before = 0
    for factor, levels in enumerate(data.levels):
        level = before + int(data.factors[row, factor])
        log_mean += float(values["random"][gene, level])
        zero += float(values["zero_random"][gene, level])
        before += levels
    return log_mean, zero - float(values["zero_slope"]) * log_mean, product(data.scale_design, "log_sigma")


@kinds
def test_all_have_the_same_linear_predictors(kind):
    model, data, values = drawn(kind)
    rows = range(len(data.design))
    origin = model.at_origin(values)
    expected = [[by_hand(data, origin, row, gene) for row in rows] for gene in range(5)]
    log_mean, zero, log_sigma = torch.tensor(expected, dtype=torch.float64).unbind(-1)
    scale = log_scale(log_sigma).exp()
    mu = location(log_mean, scale, zero)
    # The model's, from the distribution of its values.
    likelihood = trace_model(model, data, values).nodes["x"]["fn"]
    while not hasattr(likelihood, "zi_logits"):
        likelihood = likelihood.base_dist
    for own, same in [("loc", mu + data.offset), ("scale", scale), ("zi_logits", zero)]:
        torch.testing.assert_close(getattr(likelihood, own).mT, same)
    # Those of the start.
    block = model.hierarchy.coefficients
    matrices = Predictors(model.centred(data), block).matrices(values["zero_slope"])
    theta = torch.cat([values[c.name] for c in block], -1)
    torch.testing.assert_close(matrices @ theta.mT, torch.stack([log_mean, zero, log_sigma]).mT)
    # Those of fold changes, in which random effects may be left out.
    draws = {k: v.unsqueeze(0) for k, v in origin.items()} | {"zero_slope": values["zero_slope"].reshape(1, 1, 1)}
    for row in rows:
        condition = Condition(data.design[row], data.zero_design[row], data.scale_design[row])
        cell = cell_parameters(draws, condition, data.random_elements[row].tolist())
        for own, same in [("log_mean", log_mean), ("zi_logits", zero), ("scale", scale), ("mu", mu)]:
            torch.testing.assert_close(getattr(cell, own)[0], same[:, row])


@kinds
def test_intercepts_are_those_of_the_average_of_the_distinct_rows(kind):
    model, data, values = drawn(kind)
    designs = {"intercept": data.design, "zero_intercept": data.zero_design, "log_sigma": data.scale_design}
    origin = model.at_origin(values)
    for name, design in designs.items():
        average = np.unique(design.numpy(), axis=0).mean(0)
        effects = (
            origin["log_sigma"][:, 1:] if name == "log_sigma" else origin.get(name.replace("intercept", "effects"))
        )
        at = origin[name][:, 0] + (0.0 if effects is None else effects @ torch.tensor(average[1:]))
        torch.testing.assert_close(values[name][:, 0], at)


def predictors(seed=0):
    """Predictors of VALUE, each of shape (genes, rows)."""
    return 0.6 * normal(3, 2, 3, seed=seed)


def grouped(value=VALUE):
    one = torch.ones(len(value), 1).double()
    return HurdleData(value, one, one, one, torch.zeros(len(value), 0).long(), torch.zeros(len(value)).double())


def test_the_density_is_that_of_the_distribution_but_for_a_constant():
    likelihood, found = GroupLikelihood(grouped()), []
    for seed in range(6):
        log_mean, zero, log_sigma = predictors(seed)
        scale = log_scale(log_sigma).exp()
        same = GroupedZeroInflatedLogNormal(location(log_mean, scale, zero).mT, scale.mT, zero.mT)
        found.append(likelihood.log_density(log_mean, zero, log_sigma) - same.log_prob(VALUE).sum(0))
    torch.testing.assert_close(torch.stack(found), found[0].expand(6, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, -6.5], ids=["usual sigma", "the least sigma"])
def test_the_score_is_autograds(shift):
    likelihood, at = GroupLikelihood(grouped()), predictors()
    at[2] += shift
    at.requires_grad_()
    (expected,) = torch.autograd.grad(likelihood.log_density(*at).sum(), at)
    torch.testing.assert_close(likelihood.derivatives(*at)[0], expected)


@pytest.mark.parametrize("shift", [0.0, -6.5], ids=["usual sigma", "the least sigma"])
def test_information_is_the_expected_curvature(shift):
    """Given the number of positives the log density is linear in mean, mean^2 and the sum of squares, whose
    expectations are those of two values of the mean."""
    at = predictors()
    at[2] += shift
    log_mean, zero, log_sigma = at
    scale, count = log_scale(log_sigma).exp(), VALUE[..., 1].mT
    mu, error = location(log_mean, scale, zero), scale / count.clamp(min=1).sqrt()
    hessians = []
    for sign in (-1, 1):
        value = VALUE.clone()
        value[..., 2] = (mu + sign * error).mT
        value[..., 3] = ((count - 1).clamp(min=0) * scale.square()).mT
        likelihood = GroupLikelihood(grouped(value))
        hessians.append(torch.autograd.functional.hessian(lambda p, own=likelihood: own.log_density(*p).sum(), at))
    curvature = -(hessians[0] + hessians[1]) / 2
    information = GroupLikelihood(grouped()).derivatives(*at)[1]
    for k, (a, b) in enumerate([(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]):
        for gene in range(2):
            found = torch.diag(information[k, gene])
            torch.testing.assert_close(curvature[a, gene, :, b, gene], found, rtol=1e-9, atol=1e-7)


@kinds
def test_score_and_information_of_the_coefficients(kind):
    """By the chain rule: autograd through the predictors, and products of all their derivatives."""
    model, data, values = drawn(kind)
    block = model.hierarchy.coefficients
    groups = data.as_groups()
    quadratic = Quadratic(Predictors(groups, block).matrices(values["zero_slope"]), model.hierarchy.layout)
    theta = torch.cat([values[c.name] for c in block], -1).requires_grad_()
    likelihood = GroupLikelihood(groups)
    (expected,) = torch.autograd.grad(likelihood.log_density(*quadratic.predict(theta)).sum(), theta)
    score, information = likelihood.derivatives(*quadratic.predict(theta.detach()))
    torch.testing.assert_close(quadratic.score(score), expected)
    symmetric = torch.stack([information[k] for k in (0, 1, 2, 1, 3, 4, 2, 4, 5)]).unflatten(0, (3, 3))
    matrices = quadratic.matrices
    whole = torch.einsum("arp,abgr,brq->gpq", matrices, symmetric, matrices)
    torch.testing.assert_close(quadratic.information(information).dense(), whole)


def test_of_many_cells_some_make_the_start():
    cells = table(cells=4003, genes=2, continuous=True)
    offset = offsets(4003)
    found = HurdleData.from_cells(**cells, offset=offset).as_groups()
    some = torch.randperm(4003, generator=torch.Generator().manual_seed(0))[:2000].sort().values
    kept = {k: None if v is None else v[some] for k, v in cells.items()}
    same = HurdleData.from_cells(**kept, offset=offset[some], reduce=False).as_groups()
    assert found.reduced
    assert len(found.design) == 2000
    torch.testing.assert_close(found.design, cells["design"][some].double())
    torch.testing.assert_close(found.value[..., :2].sum((0,)), same.value[..., :2].sum((0,)))
    HurdleModel(found)


def test_the_start_stands_for_all_cells():
    """A design that repeats, kept as 6,000 cells and as groups: the starts have the same precision."""
    x = torch.rand(6000, 3, generator=torch.Generator().manual_seed(1)).double().exp()
    x[torch.rand(6000, 3, generator=torch.Generator().manual_seed(2)) < 0.4] = 0
    design = torch.stack([torch.ones(6000), torch.arange(6000) % 2], 1)
    guides = []
    for reduce in (False, True):
        data = HurdleData.from_cells(x, design, reduce=reduce)
        guides.append(HurdleGuide(HurdleModel(data), data))
    by_cells, by_groups = (information_of(g.coefficients).diagonal() for g in guides)
    assert ((by_cells / by_groups).log().abs() < 0.15).all()
