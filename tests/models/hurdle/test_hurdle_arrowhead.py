"""Arrowheads against dense matrices, for layouts of random effects that differ in kind."""

import pytest
import torch
from hurdle_cases import without_guide

from pyro_zilognormal.models import HurdleData
from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead, Layout

# Levels of the random effects that each row has, and the blocks and the core of all coefficients, of which four are
# fixed: the levels of both parts.
LAYOUTS = {
    "no random effects": ([[]], [], 4),
    "one factor": ([[0], [1], [2], [0]], [[0, 3], [1, 4], [2, 5]], 4),
    "nested": ([[0, 2], [0, 3], [1, 4], [1, 5]], [[0, 2, 3, 6, 8, 9], [1, 4, 5, 7, 10, 11]], 4),
    "unequal": ([[0, 2], [0, 3], [1, 4]], [[0, 2, 3, 5, 7, 8], [1, 4, 6, 9]], 4),
    "crossed": (
        [[k, 6 + k % 2] for k in range(6)] + [[0, 7]],
        [[k, 8 + k] for k in range(6)],
        8,
    ),
    "two factors of as many levels": ([[0, 2], [0, 3], [1, 2], [1, 3]], [[0, 4], [1, 5]], 8),
}
layouts = pytest.mark.parametrize("name", LAYOUTS)


def layout_of(name):
    rows = torch.tensor(LAYOUTS[name][0], dtype=torch.int64)
    levels = (rows.amax(0) - torch.cat([rows.new_tensor([-1]), rows.amax(0)])[:-1]).tolist() if rows.numel() else ()
    return Layout.of_levels(rows, levels, 4 + 2 * sum(levels))


def random_case(name, batch=(3,), seed=0):
    """Positive definite arrowheads, the same as dense matrices, and vectors."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    layout = layout_of(name)
    square = normal(*batch, layout.width, layout.width)
    found = Arrowhead.take(layout, square + square.mT).plus_diagonal(8.0 * layout.width + normal(layout.width))
    return found, found.dense(), normal(*batch, layout.width)


@layouts
def test_blocks_are_levels_that_rows_connect(name):
    layout, (_, blocks, core) = layout_of(name), LAYOUTS[name]
    assert [[k for k in block if k < layout.width] for block in layout.blocks.tolist()] == blocks
    assert len(layout.core) == core


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@layouts
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_they_are_as_dense(name, batch):
    arrowhead, dense, x = random_case(name, batch)
    factor, width = arrowhead.factor(), arrowhead.layout.width
    # Blocks first: the order in which they are eliminated.
    order = torch.cat([arrowhead.layout.blocks.flatten(), arrowhead.layout.core])
    order = order[order < width]
    permuted = dense[..., order, :][..., order]
    lower = torch.linalg.cholesky(permuted)
    close(factor.diagonal()[..., order], lower.diagonal(dim1=-2, dim2=-1))
    close(factor.whiten(x)[..., order], torch.linalg.solve(lower, x[..., order]))
    close(factor.colour(x)[..., order], torch.linalg.solve(lower.mT, x[..., order]))
    close(factor.uncolour(x)[..., order], (lower.mT @ x[..., order, None]).squeeze(-1))
    close(factor.solve(x), torch.linalg.solve(dense, x))
    close(arrowhead.times(x), (dense @ x.unsqueeze(-1)).squeeze(-1))
    close(arrowhead.diagonal(), dense.diagonal(dim1=-2, dim2=-1))
    inverse = factor.covariance()
    close(inverse.dense(), Arrowhead.take(arrowhead.layout, dense.inverse()).dense())
    draws = torch.stack([x, 2 * x, x.flip(-1)])
    for k, draw in enumerate(draws):
        for of in (factor.whiten, factor.colour, factor.uncolour):
            close(of(draws)[k], of(draw))


@layouts
def test_shears_are_products(name):
    arrowhead, dense, _ = random_case(name)
    width, half = arrowhead.layout.width, arrowhead.layout.width // 2 - 2
    own, other = [*range(half), width - 4], [*range(half, 2 * half), width - 2]
    slope = torch.tensor([0.7, -0.3]).double()[:, None, None]
    found = arrowhead.sheared(slope, arrowhead.shears(own, other)).dense()
    for k, s in enumerate(slope.flatten()):
        shear = torch.eye(width).double()
        shear[other, own] = -s
        close(found[k], shear.mT @ dense @ shear)


@layouts
def test_gradients(name):
    arrowhead, _, x = random_case(name, (1,))

    def through(values, x):
        factor = Arrowhead(arrowhead.layout, values).plus_diagonal(torch.ones_like(x)).factor()
        return factor.diagonal().log().sum(), factor.colour(factor.whiten(x) + x), factor.uncolour(x)

    def dense(values, x):
        given = Arrowhead(arrowhead.layout, values).dense() + torch.eye(x.shape[-1])
        order = torch.cat([arrowhead.layout.blocks.flatten(), arrowhead.layout.core])
        order = order[order < x.shape[-1]]
        lower = torch.linalg.cholesky(given[..., order, :][..., order])
        x = x[..., order].unsqueeze(-1)
        white = torch.linalg.solve_triangular(lower, x, upper=False) + x
        colour = torch.linalg.solve_triangular(lower.mT, white, upper=True)
        back = order.argsort()
        parts = (v.squeeze(-1)[..., back] for v in (colour, lower.mT @ x))
        return lower.diagonal(dim1=-2, dim2=-1).log().sum(), *parts

    gradients = []
    for of in (through, dense):
        leaves = [arrowhead.values.clone().requires_grad_(), x.clone().requires_grad_()]
        log_det, colour, uncolour = of(*leaves)
        total = log_det + colour.sin().sum() + uncolour.cos().sum()
        by_values, by_x = torch.autograd.grad(total, leaves)
        # Of a symmetric matrix only the sum over both places of an element has a meaning.
        summed = torch.zeros(1, x.shape[-1] + 1, x.shape[-1] + 1).double()
        for index in [(arrowhead.layout.rows, arrowhead.layout.columns)]:
            summed = summed.index_put((torch.tensor([0]), *index), by_values[0], accumulate=True)
        gradients.append((summed + summed.mT)[:, :-1, :-1])
        gradients.append(by_x)
    close(gradients[1], gradients[3])
    assert gradients[0].abs().max() > 0.01
    close(gradients[0], gradients[2])


@layouts
def test_a_bound_is_at_least_its_matrix(name):
    """And the matrix itself where one block at most has any of it."""
    layout = layout_of(name)
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, layout.width, 2, dtype=torch.float64, generator=generator)
    root[1, layout.core] = 0
    root[2, layout.blocks[layout.blocks < layout.width]] = 0
    root[3, layout.blocks[1:][layout.blocks[1:] < layout.width]] = 0
    matrix = root @ root.mT
    found = Arrowhead.bound(layout, matrix).dense()
    assert torch.linalg.eigvalsh(found - matrix).min() > -1e-9
    torch.testing.assert_close(found[2:], matrix[2:])
    # Of its size: it has the trace times the number of blocks at most.
    number = max(1, len(layout.blocks))
    assert (found.diagonal(dim1=-2, dim2=-1).sum(-1) <= number * matrix.diagonal(dim1=-2, dim2=-1).sum(-1) + 1e-9).all()


@layouts
def test_matrices_that_are_not_positive_definite(name):
    arrowhead, dense, _ = random_case(name)
    # Of the second the least eigenvalue becomes negative.
    least = torch.linalg.eigvalsh(dense)[:, 0] * torch.tensor([0.0, 1.0, 0.0]) * (1 + 1e-6)
    changed = arrowhead.plus_diagonal(-least.unsqueeze(-1).expand(-1, arrowhead.layout.width))
    assert changed.is_positive().tolist() == [True, False, True]
    with pytest.raises(torch.linalg.LinAlgError, match="not positive-definite"):
        changed.factor()


def test_random_effects_of_data_are_blocks():
    for levels, number in [((), 0), ((3,), 3), ((3, 4), 4)]:
        model, _ = without_guide(levels=levels)
        assert len(model.hierarchy.layout.blocks) == number


def test_levels_without_rows_are_in_the_core():
    one, who = torch.ones(2, 1).double(), torch.tensor([[0], [2]])
    data = HurdleData(torch.zeros(2, 1, 5).double(), one, one, one, who, torch.zeros(2).double(), (4,))
    layout = Layout.of_levels(data.random_elements, data.levels, 11)
    assert layout.blocks.tolist() == [[0, 4], [2, 6]]
    assert layout.core.tolist() == [1, 3, 5, 7, 8, 9, 10]
