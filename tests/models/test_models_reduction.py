"""Groups of cells and the cells themselves are one likelihood; so are minibatches, on average over an epoch."""

import numpy as np
import pyro
import pytest
import scipy.sparse
import torch
from hurdle_cases import hurdle, latents, log_joint, offsets, table
from pyro.infer import Trace_ELBO

from pyro_zilognormal.models import HurdleData, HurdlePriors, HurdleRegression, fit_hurdle
from pyro_zilognormal.sufficient import SufficientStatistics
from pyro_zilognormal.svi import Minibatches, Objective, posterior_draws

KINDS = {
    "intercept": {"effects": 0},
    "effects": {"effects": 2},
    "donors": {"donors": 3},
    "offset": {"offset": offsets()},
    "gate": {"gate_design": torch.ones(60, 1)},
    "sparse": {"priors": HurdlePriors(effects_share=(0.2, 1.0))},
    "donors, offset, gate": {
        "donors": 2,
        "offset": offsets(),
        "gate_design": torch.arange(120).reshape(60, 2) % 3 + 0.0,
    },
}
KINDS["donors, offset, gate"]["gate_design"][:, 0] = 1
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def both(kind):
    return hurdle(**kind, reduce=True), hurdle(**kind, reduce=False)


@kinds
def test_one_density_and_one_gradient(kind):
    (groups, grouped), (cells, kept) = both(kind)
    assert grouped.reduced
    assert not kept.reduced
    assert len(grouped.design) < len(kept.design) == 60
    values = latents(groups, grouped)
    found = []
    for regression, data in [(groups, grouped), (cells, kept)]:
        leaves = {k: v.clone().requires_grad_() for k, v in values.items()}
        density = log_joint(regression, data, leaves)
        found.append((density, torch.autograd.grad(density, list(leaves.values()))))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-9, atol=0)
    for first, second in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


@kinds
def test_one_start(kind):
    """But for the gate's law, which is trained by itself where rows are groups."""
    (groups, _), (cells, _) = both(kind)
    trained = {f"laws.gate.{name}" for name, _ in cells.laws["gate"].named_parameters()}
    for name, value in cells.state_dict().items():
        if name in trained:
            continue
        torch.testing.assert_close(groups.state_dict()[name], value, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", ["cells", "numpy", "csr", "groups"])
def test_minibatches_average_to_the_whole(kind):
    """One seed gives every batch the same draw, for no latent site has rows."""
    regression, data = hurdle(donors=2, offset=offsets(), reduce=kind == "groups")
    args = [as_kind(data.value, kind), *data.arguments[1:]]
    objective = Objective(regression.model, regression.guide, Trace_ELBO(), plate="rows", rows=len(data.design))

    def loss(batch):
        pyro.set_rng_seed(3)
        return objective(*batch.args, indices=batch.indices) * batch.weight

    whole = loss(Minibatches(*args, batch_size=10_000, plate="rows").batch(torch.arange(len(data.design))))
    size = 3 if kind == "groups" else 17
    losses = [loss(b) for b in Minibatches(*args, batch_size=size, plate="rows").epoch(0, seed=1)]
    assert len(losses) > 1
    torch.testing.assert_close(torch.stack(losses).mean(), whole, rtol=1e-10, atol=0)


def as_kind(x, kind):
    return {"numpy": lambda: x.numpy(), "csr": lambda: scipy.sparse.csr_array(x.numpy())}.get(kind, lambda: x)()


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("kind", ["tensor", "float32", "integers", "numpy", "csr"])
def test_cells_of_any_kind_are_fitted(kind, reduce):
    cells = table(cells=40, genes=3)
    x = cells["x"].ceil()
    x = {"float32": x.float(), "integers": x.long(), "tensor": x}.get(kind, as_kind(x, kind))
    data = HurdleData.from_cells(**cells | {"x": x}, reduce=reduce)
    result = fit_hurdle(HurdleRegression(data), data, steps=10, batch_size=16)
    assert np.isfinite(result.losses).all()
    draws = posterior_draws(result, *data.arguments, draws=3)
    assert draws["effects"].shape == (3, 3, 1)
    assert all(v.isfinite().all() for v in draws.values())
    same = HurdleData.from_cells(**cells | {"x": cells["x"].ceil()}, reduce=reduce)
    torch.testing.assert_close(data.statistics(), same.statistics())


def test_groups_are_made_where_they_halve_the_rows():
    assert hurdle()[1].reduced
    assert not hurdle(continuous=True)[1].reduced
    assert len(hurdle(donors=4, cells=16)[1].design) > 4  # at most 8 groups of 16 cells


def test_groups_that_were_reduced_before():
    cells = table(donors=2)
    once = HurdleData.from_cells(**cells, offset=offsets())
    keys, group = torch.unique(torch.cat([cells["design"], cells["donor"][:, None]], 1), dim=0, return_inverse=True)
    stats = SufficientStatistics.from_cells(cells["x"], group, len(keys), offsets())
    again = HurdleData.from_groups(stats, keys[:, :2], donor=keys[:, 2])
    for first, second in zip(once.arguments, again.arguments, strict=True):
        torch.testing.assert_close(first, second)
    assert again.donors == once.donors == 2
    assert HurdleData.from_groups(stats, keys[:, :2], donor=keys[:, 2], donors=5).donors == 5


def test_a_subset_of_many_cells_tells_of_the_start():
    _, data = hurdle(continuous=True, cells=90, reduce=False)
    rows = data.some_rows(40)
    assert rows.tolist() == list(range(0, 90, 3))
    assert data.statistics(40).shape == (30, 5, 5)
    torch.testing.assert_close(data.statistics(40), data.statistics()[rows])
