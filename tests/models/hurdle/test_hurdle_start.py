"""The start of the guide: modes where the gradient is 0, maximum likelihood in the limit, sds as by quadrature."""

import math

import pyro
import pytest
import torch
from hurdle_cases import KINDS, beside_depth, hurdle, information_of, trace_model, without_guide
from pyro import poutine
from torch.distributions import MultivariateNormal

from pyro_zilognormal.models import HurdleData, HurdleModel, HurdlePriors
from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead, Layout
from pyro_zilognormal.models.hurdle.components import log_scale
from pyro_zilognormal.models.hurdle.initialize import STAGES, Ascent, climb, find_pairs, find_start
from pyro_zilognormal.models.hurdle.site import Site

# Hyperparameters that are known.
KNOWN = {"intercept_sd": (1e3, 1e-6), "zero_sd": (1e3, 1e-6), "log_sigma_sd": (1e3, 1e-6)}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_gradient_is_0_at_the_mode(kind):
    """Given the hyperparameters, under the widest component of the effects."""
    model, data = without_guide(**kind)
    ascent = Ascent(model.centred(data.as_groups()), model.hierarchy)
    with torch.no_grad():
        for _ in range(120):
            ascent.step()
    block = model.hierarchy.coefficients
    mean, precision = block.moments(ascent.values)

    def log_joint(theta):
        likelihood = trace_model(model, data, ascent.values | block.split(theta))
        likelihood.compute_log_prob(lambda name, _: name == "x")
        return likelihood.nodes["x"]["log_prob_sum"] - (precision * (theta - mean).square()).sum() / 2

    theta = ascent.theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_joint(theta), theta, create_graph=True)
    assert (gradient.abs() * ascent.variance.sqrt()).max() < 1e-4
    # The site of the likelihood has its mode and curvature there; where it curves upwards it is flat.
    site = ascent.site()
    rows = [torch.autograd.grad(g.sum(), theta, retain_graph=True)[0] for g in gradient.unbind(-1)]
    observed = -torch.stack(rows, -1) - torch.diag_embed(precision.expand_as(theta))
    unit = precision.expand_as(theta).rsqrt()
    found, observed = (unit.unsqueeze(-1) * m * unit.unsqueeze(-2) for m in (site.information.dense(), observed))
    downwards = torch.linalg.eigvalsh(observed)[:, 0] > -1e-9
    torch.testing.assert_close(found[downwards], observed[downwards], rtol=1e-6, atol=1e-6)
    assert downwards.sum() > 1
    for matrix in (found, found - observed):
        assert torch.linalg.eigvalsh(matrix).min() > -1e-6
    again = site.information.plus_diagonal(precision).factor().solve(site.linear + precision * mean)
    assert ((again - theta).abs() / ascent.variance.sqrt()).max() < 1e-4


# Means of the distinct rows differ between two designs that share columns.
BESIDE = {"effects beside depth": {"zero_design": beside_depth()}}


@pytest.mark.parametrize("kind", (KINDS | BESIDE).values(), ids=KINDS | BESIDE)
def test_the_guide_starts_at_the_mode(kind):
    """Given hyperparameters and log sds, its Normal is where a step of the whole model's log density is short."""
    model, guide, data = hurdle(**kind)
    values = guide.hyper.split(guide.hyper.start)
    mean, precision = model.hierarchy.log_sds.moments(values)
    total = information_of(guide.log_sds).diagonal() + precision
    values |= model.hierarchy.log_sds.split((guide.log_sds.linear + precision * mean) / total)
    block = model.hierarchy.coefficients
    q = guide.distribution("coefficients", values).live
    theta = q.factor.colour(q.white_mean - guide.coefficients.shift).detach().requires_grad_()
    mean, precision = block.moments(values)
    trace = trace_model(model, data, values | block.split(theta))
    trace.compute_log_prob(lambda name, _: name == "x")
    log_joint = trace.nodes["x"]["log_prob_sum"] - (precision * (theta - mean).square()).sum() / 2
    (gradient,) = torch.autograd.grad(log_joint, theta)
    assert q.factor.whiten(gradient).abs().max() < 0.05  # in posterior sds


def test_columns_that_designs_share_have_one_centre():
    """Though the distinct rows differ, so that an effect on the mean has its counterpart in the zero part."""
    model, data = without_guide(**BESIDE["effects beside depth"])
    centred, block = model.centred(data), model.hierarchy.coefficients
    assert torch.equal(centred.design[:, 1], centred.zero_design[:, 1])
    pairs = list(zip(*find_pairs(centred, block), strict=True))
    assert (block.slices["effects"].start, block.slices["zero_effects"].start) in pairs


def saturated(value):
    """Statistics of groups as data of one design for all parts, with a condition for each group."""
    rows = len(value)
    design = torch.eye(rows, dtype=torch.float64)
    design[:, 0] = 1
    return HurdleData(value, design, design, design, torch.zeros(rows, 0).long(), torch.zeros(rows).double())


def test_in_the_limit_of_much_data_it_is_maximum_likelihood():
    """Saturated, that is the share of zeros, and mean and variance of log x in each condition; the errors of the log
    means are those of the delta method."""
    shares = torch.tensor([[0.2, 0.9], [0.5, 0.3], [0.7, 0.6]]).double()
    mean, variance = torch.tensor([[1.0, 0.2], [2.0, 0.5], [0.5, 3.0]]).double(), shares / 2 + 0.1
    cells = 1e9
    positive = cells * (1 - shares)
    value = torch.stack([cells * shares, positive, mean, positive * variance, 0 * mean], -1)
    data = saturated(value)
    priors = HurdlePriors(**KNOWN, log_sigma_effects_mean=(0.0, 1e3), zero_effects_mean=(0.0, 1e3))
    site = find_start(data, HurdleModel(data, priors).hierarchy).coefficients
    theta = torch.linalg.solve(site.information.dense(), site.linear)
    block = HurdleModel(data, priors).hierarchy.coefficients
    parts = block.split(theta)
    log_mean = (torch.cat([parts["intercept"], parts["effects"]], 1) @ data.design.mT).mT
    zero = (torch.cat([parts["zero_intercept"], parts["zero_effects"]], 1) @ data.design.mT).mT
    expected = (1 - shares).log() + mean + variance / 2
    torch.testing.assert_close(log_mean, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(zero.sigmoid(), shares, rtol=0, atol=1e-6)
    log_sigma = (parts["log_sigma"] @ data.design.mT).mT
    torch.testing.assert_close((2 * log_scale(log_sigma)).exp(), variance, rtol=1e-6, atol=0)
    design = torch.zeros(3, block.width).double()
    design[:, block.slices["intercept"]], design[:, block.slices["effects"]] = 1, data.design[:, 1:]
    error = (design @ site.information.dense().inverse() @ design.mT).diagonal(dim1=-2, dim2=-1).mT
    delta = shares / positive + variance / positive + variance.square() / (2 * positive)
    torch.testing.assert_close(error, delta, rtol=1e-5, atol=0)


def test_genes_share_strength():
    """The nearer the sds to 0, the nearer the genes to what they share."""
    sds = dict.fromkeys(("intercept_sd", "zero_sd", "zero_spread", "log_sigma_sd"), (0.02, 1e-3))
    tight = HurdlePriors(**sds)
    found = []
    for priors in (HurdlePriors(), tight):
        model, data = without_guide(priors, effects=0, genes=8)
        start = find_start(data.as_groups(), model.hierarchy)
        site, values = start.coefficients, {k: m for k, (m, _) in start.hyper.items()}
        values["zero_log_sd"] = values["zero_log_sd_mean"].expand(8, 1)
        mean, precision = model.hierarchy.coefficients.moments(values)
        factor = site.information.plus_diagonal(precision).factor()
        found.append(factor.solve(site.linear + precision * mean).std(0))
    assert (found[1] < 0.2 * found[0])[1:].all()  # sigma is the same for all


# Balanced one-way layouts of positive values with a known sigma: y_k ~ N(beta, tau^2 + sigma^2 / n).
LEVELS, CELLS, SIGMA = 6, 20, 0.5
LAYOUT = HurdlePriors(
    intercept_mean=(1.0, 1e-4),
    intercept_sd=(2.0, 1e-4),
    **dict.fromkeys(("random_sd", "zero_random_sd"), (0.25, 1e-4)),
    **dict.fromkeys(("random_spread", "zero_random_spread"), (0.8, 1e-4)),
    log_sigma_mean=(math.log(SIGMA), 1e-4),
    log_sigma_sd=(1e-4, 1e-4),
    zero_intercept_mean=(-40.0, 1e-3),
    zero_sd=(1e-3, 1e-3),
    zero_spread=(1e-3, 1e-3),
    zero_slope=(1e-9, 1e-9),
)


def layout(spreads):
    """Means of levels whose sd is the gene's spread."""
    shape = torch.linspace(-1.4, 1.4, LEVELS).double()
    means = 1 + shape.unsqueeze(1) * torch.tensor(spreads).double()
    count = torch.full_like(means, CELLS)
    value = torch.stack([0 * means, count, means, count * SIGMA**2, 0 * means], -1)
    one = torch.ones(LEVELS, 1).double()
    who = torch.arange(LEVELS).unsqueeze(1)
    return HurdleData(value, one, one, one, who, torch.zeros(LEVELS).double(), (LEVELS,))


def test_the_sd_of_random_effects_is_that_of_quadrature():
    data = layout([0.0, 0.1, 0.3, 1.0])
    start = find_start(data, HurdleModel(data, LAYOUT).hierarchy)
    # The mean of y varies by intercept and sigma: mu is lambda - sigma^2 / 2.
    nodes = torch.linspace(-8, 3, 2001, dtype=torch.float64)
    cov = torch.full((LEVELS, LEVELS), 4.0).double()
    eye = torch.eye(LEVELS).double()
    covs = cov + eye * ((2 * nodes).exp() + SIGMA**2 / CELLS)[:, None, None]
    marginal = MultivariateNormal(torch.full((LEVELS,), 1 - SIGMA**2 / 2).double(), covs)
    prior = -((nodes - math.log(0.25)) / 0.8).square() / 2
    for gene in range(4):
        weight = (marginal.log_prob(data.value[:, gene, 2]) + prior).softmax(0)
        mean = weight @ nodes
        sd = (weight @ (nodes - mean).square()).sqrt()
        information = start.log_sds.information.diagonal()[gene]
        precision = information[1] + 0.8**-2
        found = (start.log_sds.linear[gene, 1] + 0.8**-2 * math.log(0.25)) / precision
        assert abs(found - mean) < 0.03 * sd
        assert precision.rsqrt().item() == pytest.approx(sd.item(), rel=0.03)
        # Values that are never zero say nothing of the zero part's.
        assert information[2] < 0.02 * 0.8**-2
    assert (start.coefficients.information.diagonal() > -1e-9).all()


TRUTH = {
    "intercept_mean": [1.5],
    "intercept_log_sd": [-0.2],
    "zero_intercept_mean": [0.4],
    "zero_effects_mean": [0.2],
    "zero_log_sd_mean": [-1.0, -1.5],
    "zero_log_sd_log_sd": [-0.5, -0.8],
    "log_sigma_mean": [-0.6, 0.1],
    "log_sigma_log_sd": [-1.3, -2.0],
    "random_log_sd_mean": [-1.2],
    "random_log_sd_log_sd": [-0.9],
    "zero_random_log_sd_mean": [-1.0],
    "zero_random_log_sd_log_sd": [-0.9],
    "zero_slope": [0.8],
    "effects_logits": [-3.0, -3.0, -2.5, -1.5, -2.5, -4.0],
}


def test_hyperparameters_are_recovered():
    genes, donors = 400, 12
    empty = torch.zeros(donors, genes, 5).double()
    empty[..., 0] = 150
    design = torch.stack([torch.ones(donors), torch.arange(donors) % 2], 1).double()
    who, offset = torch.arange(donors).unsqueeze(1), torch.zeros(donors).double()
    blank = HurdleData(empty, design, design, design, who, offset, (donors,))
    truth = {k: torch.tensor(v, dtype=torch.float64) for k, v in TRUTH.items()}
    model = HurdleModel(blank, HurdlePriors(intercept_mean=(1.5, 2.5)))
    assert truth.keys() == model.hierarchy.hyperpriors().keys()
    pyro.set_rng_seed(1)
    drawn = poutine.trace(poutine.condition(model, truth)).get_trace(*blank.arguments[:-1]).nodes
    data = HurdleData(drawn["x"]["value"], design, design, design, who, offset, (donors,))
    start = find_start(model.centred(data), model.hierarchy)
    for name, value in truth.items():
        mean, sd = start.hyper[name]
        if name == "effects_logits":
            # Neighbouring components share genes, so only the share of affected genes is known well.
            shares = [1 - torch.cat([v.new_zeros(1), v]).softmax(0)[0] for v in (mean, value)]
            assert abs(shares[0] - shares[1]) < 0.1
        else:
            assert ((mean - value).abs() < 3.5 * sd).all(), name
            # The one change of a gene says little of the sd of its changes.
            assert (sd < (0.25 if name.startswith("zero_log_sd") else 0.1)).all(), name
    # So are the coefficients, given the sds of random effects, within their own sds.
    block = model.hierarchy.coefficients
    site = start.coefficients.sheared(start.hyper["zero_slope"][0], find_pairs(data, block))
    values = {k: m for k, (m, _) in start.hyper.items()}
    values |= {k: drawn[k]["value"] for k in ("zero_log_sd", "random_log_sd", "zero_random_log_sd")}
    mean, precision = block.moments(values)
    factor = site.information.plus_diagonal(precision).factor()
    at = factor.solve(site.linear + precision * mean)
    theta = torch.cat([drawn[c.name]["value"] for c in block], -1)
    # The intercepts of the zero part are compared where the data are.
    intercept = block.slices["zero_intercept"]
    theta[:, intercept] -= (truth["zero_slope"] - start.hyper["zero_slope"][0]) * 1.5
    z = (theta - at) / factor.covariance().diagonal().sqrt()
    for name, part in block.split(z).items():
        assert part.mean().abs() < 0.2, name
        assert part.std().item() == pytest.approx(1, abs=3.5 / (2 * part.numel()) ** 0.5), name


def test_shearing_is_a_change_of_variables():
    """exp(b' t - t' A t / 2) of t, for t = S u with the slope taken from S, and back."""
    generator = torch.Generator().manual_seed(0)
    square, linear, u = (torch.randn(3, 5, 5, generator=generator).double() for _ in range(3))
    pairs, slope = ([0, 2], [1, 4]), torch.tensor([0.7])
    site = Site(Arrowhead.take(Layout(5), square @ square.mT), linear[:, 0], linear[:, :0, 0])
    u = u[:, 0]
    t = u.clone()
    t[:, [1, 4]] -= 0.7 * u[:, [0, 2]]
    found = site.sheared(slope, pairs)

    def log_density(site, at):
        return (site.linear * at).sum(1) - (at * site.information.times(at)).sum(1) / 2

    torch.testing.assert_close(log_density(found, u), log_density(site, t))
    back = found.sheared(-slope, pairs)
    torch.testing.assert_close(back.information.dense(), site.information.dense())
    torch.testing.assert_close(back.linear, site.linear)


def test_the_stages_lead_to_where_more_of_them_do():
    """Of donors whose zero part deviates little: the slope and the sds of random effects find each other slowly."""
    generator = torch.Generator().manual_seed(8)
    donors, genes, cells = 8, 150, 60

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    donor = torch.arange(donors).repeat_interleave(cells)
    design = torch.stack([torch.ones(donors * cells), donor % 2], 1).double()
    log_mean = normal(genes) + 0.2 * normal(donors, genes)[donor] + 0.3 * design[:, 1:] * (normal(genes) > 1)
    logits = 0.5 + 0.3 * normal(genes) - 1.2 * log_mean
    x = torch.bernoulli(logits.neg().sigmoid(), generator=generator)
    x = x * (log_mean - logits.neg().sigmoid().log() - 0.08 + 0.4 * normal(*x.shape)).exp()
    data = HurdleData.from_cells(x, design, factors=donor)
    model = HurdleModel(data)
    found = []
    with torch.no_grad():
        for stages in (STAGES, 6 * STAGES):
            ascent = Ascent(model.centred(data), model.hierarchy)
            climb(ascent, stages)
            found.append(ascent.hyper)
    for name, (mean, sd) in found[1].items():
        if name != "effects_logits":  # neighbouring components explain nearly the same
            assert ((found[0][name][0] - mean).abs() < 0.5 * sd).all(), name
