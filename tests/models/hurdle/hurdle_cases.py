"""Small data, models of them, and densities that the tests of the hurdle regression share."""

import copy

import pyro
import scipy.sparse
import torch
from pyro import poutine

from pyro_zilognormal.models import HurdleData, HurdleGuide, HurdleModel
from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead


def table(cells=60, genes=5, effects=1, levels=(), continuous=False, seed=0):
    """Cells with effects on all parts, as keyword arguments of HurdleData.from_cells."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    columns = normal(cells, effects) if continuous else (normal(cells, effects) > 0).double()
    design = torch.cat([torch.ones(cells, 1), columns], 1)
    factors = torch.stack([torch.arange(cells) // 3**k % n for k, n in enumerate(levels)], 1) if levels else None
    shift = sum((0.3 * normal(n, genes))[f] for n, f in zip(levels, factors.mT, strict=True)) if levels else 0.0
    mu = design @ torch.cat([1 + normal(1, genes), 0.4 * normal(effects, genes)]) + shift
    odds = design @ torch.cat([0.7 * normal(1, genes), 0.5 * normal(effects, genes)]) - shift
    positive = torch.rand(cells, genes, dtype=torch.float64, generator=generator) > odds.sigmoid()
    x = torch.where(positive, (mu + 0.5 * normal(cells, genes)).exp(), 0.0)
    return {"x": x, "design": design, "factors": factors}


def as_kind(x, kind):
    """The values as a tensor, a numpy array or CSR."""
    return {"numpy": lambda: x.numpy(), "csr": lambda: scipy.sparse.csr_array(x.numpy())}.get(kind, lambda: x)()


def offsets(cells=60):
    return torch.linspace(-0.5, 0.8, cells, dtype=torch.float64)


def with_depth(cells=60, bins=4):
    """A design of the intercept and the centred log depth of bins of equal size."""
    return torch.stack([torch.ones(cells), torch.arange(cells) * 7 % cells // (cells // bins) - (bins - 1) / 2], 1)


def beside_depth(bins=4):
    """The design of the table with such a depth, of whose bins only some have cells of both conditions."""
    design, depth = table()["design"], with_depth(bins=bins)[:, 1:]
    return torch.cat([design, torch.where(design[:, 1:] > 0, depth.clamp(min=0), depth)], 1)


# Designs that differ, and several factors. "two factors" has more groups than half the cells, and is kept as cells.
KINDS = {
    "intercept": {"effects": 0},
    "effects": {"effects": 2},
    "continuous": {"continuous": True},
    "donors": {"levels": (3,)},
    "two factors": {"levels": (3, 4), "offset": offsets()},
    "depth of zeros": {"zero_design": with_depth(), "scale_design": torch.ones(60, 1)},
    "all differ": {"zero_design": torch.ones(60, 1), "scale_design": with_depth(), "levels": (2,)},
}


def hurdle(priors=None, **kinds):
    """A model, its guide and their data; arguments are those of HurdleData.from_cells and of the table."""
    model, data = without_guide(priors, **kinds)
    asked = repr((priors, kinds | {"reduce": data.reduced}))
    if asked not in _MADE:
        _MADE[asked] = model, HurdleGuide(model, data), data
    model, guide, data = _MADE[asked]
    return *copy.deepcopy((model, guide)), data


# The start of a guide takes a while: it is found once.
_MADE = {}


def without_guide(priors=None, **kinds):
    own = {k: kinds.pop(k, None) for k in ("zero_design", "scale_design", "offset", "reduce")}
    data = HurdleData.from_cells(**table(**kinds), **own)
    return HurdleModel(data, priors), data


def information_of(site):
    """The likelihood's information of a site of the guide."""
    return Arrowhead(site.layout, site.information)


def latents(guide, data, seed=0):
    """One draw of all latent sites from the guide, without those that are only its own."""
    pyro.set_rng_seed(seed)
    return sites(poutine.trace(guide).get_trace(*data.arguments))


def sites(trace):
    """Values of what is drawn, without plates and what only the guide has."""
    return {
        k: v["value"].detach()
        for k, v in trace.nodes.items()
        if v["type"] == "sample"
        and not v["is_observed"]
        and not v["infer"].get("is_auxiliary")
        and k not in ("genes", "rows")
    }


def trace_model(model, data, values):
    """A trace of the model at latent values."""
    return poutine.trace(poutine.condition(model, data=values)).get_trace(*data.arguments)


def log_joint(model, data, values):
    """The model's log density of latent values and data."""
    return trace_model(model, data, values).log_prob_sum()
