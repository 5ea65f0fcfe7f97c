"""Groups of cells and the cells themselves are one likelihood; so are minibatches, on average over an epoch."""

import numpy as np
import pytest
import torch
from hurdle_cases import KINDS, as_kind, hurdle, latents, log_joint, offsets, table, without_guide

from pyro_zilognormal.models import HurdleData, HurdleGuide, HurdleModel, draw_coefficients, fit_hurdle
from pyro_zilognormal.sufficient import SufficientStatistics

kinds = pytest.mark.parametrize("kind", [v for k, v in KINDS.items() if k != "continuous"])


def both(kind):
    return hurdle(**kind, reduce=True), hurdle(**kind, reduce=False)


@kinds
def test_one_density_and_one_gradient(kind):
    (groups, guide, grouped), (cells, _, kept) = both(kind)
    assert grouped.reduced
    assert not kept.reduced
    assert len(grouped.design) < len(kept.design) == 60
    values = latents(guide, grouped)
    found = []
    for model, data in [(groups, grouped), (cells, kept)]:
        leaves = {k: v.clone().requires_grad_() for k, v in values.items()}
        density = log_joint(model, data, leaves)
        found.append((density, torch.autograd.grad(density, list(leaves.values()))))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-9, atol=0)
    for first, second in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


@kinds
def test_one_start(kind):
    (_, groups, _), (_, cells, _) = both(kind)
    for name, value in cells.state_dict().items():
        torch.testing.assert_close(groups.state_dict()[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["tensor", "float32", "integers", "numpy", "csr"])
def test_cells_of_any_kind_are_fitted(kind):
    cells = table(cells=40, genes=3)
    x = cells["x"].ceil()
    x = {"float32": x.float(), "integers": x.long(), "tensor": x}.get(kind, as_kind(x, kind))
    for reduce in (True, False):
        data = HurdleData.from_cells(**cells | {"x": x}, reduce=reduce)
        same = HurdleData.from_cells(**cells | {"x": cells["x"].ceil()}, reduce=reduce)
        torch.testing.assert_close(data.as_groups().value, same.as_groups().value)
    model = HurdleModel(data)  # cells: groups have become the same statistics
    result = fit_hurdle(model, HurdleGuide(model, data), data, steps=10, batch_size=16)
    assert np.isfinite(result.losses).all()
    draws = draw_coefficients(result, data, draws=3)
    assert draws["effects"].shape == (3, 3, 1)
    assert all(v.isfinite().all() for v in draws.values())


def test_groups_are_made_where_they_halve_the_rows():
    assert without_guide()[-1].reduced
    assert not without_guide(continuous=True)[-1].reduced
    assert not without_guide(levels=(20,))[-1].reduced


def test_groups_that_were_reduced_before():
    cells = table(levels=(2, 3))
    once = HurdleData.from_cells(**cells, offset=offsets(), reduce=True)
    keys, group = torch.unique(torch.cat([cells["design"], cells["factors"]], 1), dim=0, return_inverse=True)
    stats = SufficientStatistics.from_cells(cells["x"], group, len(keys), offsets())
    again = HurdleData.from_groups(stats, keys[:, :2], factors=keys[:, 2:])
    for first, second in zip(once.arguments, again.arguments, strict=True):
        torch.testing.assert_close(first, second)
    assert again.levels == once.levels == (2, 3)
    elements = once.random_elements
    assert elements[:, 0].tolist() == once.factors[:, 0].tolist()
    assert elements[:, 1].tolist() == (once.factors[:, 1] + 2).tolist()
