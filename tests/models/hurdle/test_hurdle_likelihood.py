"""In the limit of flat priors the start is two-part maximum likelihood: statsmodels' Logit and OLS, gene by gene."""

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from hurdle_cases import FLAT, hurdle, offsets, start, table, without_guide

from pyro_zilognormal.models import HurdlePriors

KINDS = {
    "intercept": {"effects": 0},
    "effect": {},
    "effects": {"effects": 3, "cells": 120},
    "continuous": {"effects": 2, "continuous": True, "reduce": False},
    "zero design of its own": {"zero_design": torch.cat([torch.ones(60, 1), torch.arange(60)[:, None] % 3 - 1.0], 1)},
    "offset": {"offset": offsets()},
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def classical(kind, codes=None):
    """Logit of a zero and OLS of log x of each gene; codes of donors are more columns."""
    cells = table(**{k: v for k, v in kind.items() if k not in ("offset", "zero_design", "reduce")})
    x, design = cells["x"].numpy(), cells["design"].numpy()
    zero = np.asarray(kind.get("zero_design", design))
    offset = np.asarray(kind.get("offset", torch.zeros(len(x))))
    more = np.zeros((len(x), 0)) if codes is None else codes(cells["donor"])
    for column in x.T:
        some = column > 0
        logit = sm.Logit(~some, np.concatenate([zero, more], 1)).fit(disp=0, tol=1e-12)
        response = np.log(column[some]) - offset[some]
        yield logit, sm.OLS(response, np.concatenate([design, more], 1)[some]).fit()


@kinds
def test_coefficients_and_sigma(kind):
    modes = mode(kind, FLAT)
    for gene, (logit, ols) in enumerate(classical(kind)):
        np.testing.assert_allclose(modes["zero"].theta[gene], logit.params, atol=1e-5)
        np.testing.assert_allclose(modes["positive"].theta[gene], ols.params, atol=1e-5)
        # With the coefficients integrated out sigma^2 is the unbiased one, over the degrees of freedom left.
        np.testing.assert_allclose(modes["log_sigma"].theta[gene].exp() ** 2, ols.scale, rtol=1e-5)


@kinds
def test_standard_errors(kind):
    _, guide, _ = hurdle(**kind, priors=FLAT)
    values = guide.hyper.split(guide.hyper.start)
    sds = {k: variances(guide, k, values).sqrt() for k in ("zero", "positive")}
    for gene, (logit, ols) in enumerate(classical(kind)):
        np.testing.assert_allclose(sds["zero"][gene], logit.bse, rtol=1e-5)
        np.testing.assert_allclose(sds["positive"][gene], ols.bse, rtol=1e-5)


def mode(kind, priors):
    return start(*without_guide(**kind, priors=priors))[0]


@torch.no_grad()
def variances(guide, part, values):
    if part == "positive":
        at_start = values | {"log_sigma": guide.log_scale_start}
        return guide.distribution(part, at_start).live.factor.inverse_diagonal()
    return guide.zero.unit().inverse_diagonal()  # at the mode: the site has been pretrained since


def test_donors_as_fixed_effects():
    """Levels trade off against the intercept, but the effect and the donors' differences do not."""
    kind = {"donors": 3, "cells": 150}
    modes = mode(kind, FLAT)
    for gene, fits in enumerate(classical(kind, lambda donor: np.eye(3)[donor][:, 1:])):
        for part, found in zip(("zero", "positive"), fits, strict=True):
            theta = modes[part].theta[gene].numpy()
            np.testing.assert_allclose(theta[4], found.params[1], atol=1e-5)
            np.testing.assert_allclose(theta[1:3] - theta[0], found.params[2:], atol=1e-5)
            np.testing.assert_allclose(theta[3] + theta[0], found.params[0], atol=1e-5)
        np.testing.assert_allclose(modes["log_sigma"].theta[gene].exp() ** 2, fits[1].scale, rtol=1e-5)


def test_priors_pull_towards_what_genes_share():
    """The other limit: no effects, and intercepts nearer to each other, around those of all genes together."""
    tight = dict.fromkeys(("effects_sd", "zero_effects_sd"), (1e-4, 1e-3))
    tight |= dict.fromkeys(("intercept_sd", "zero_intercept_sd"), (0.05, 1e-3))
    kind = {"genes": 8, "cells": 100}
    modes, flat = (mode(kind, p) for p in (HurdlePriors(**tight, effects_share=None), FLAT))
    for part in ("zero", "positive"):
        assert modes[part].theta[:, 1].abs().max() < 1e-5
        assert modes[part].theta[:, 0].std() < 0.35 * flat[part].theta[:, 0].std()
    pooled = (table(**kind)["x"] == 0).double().mean().logit().item()
    assert modes["zero"].theta[:, 0].mean().item() == pytest.approx(pooled, abs=0.05)
