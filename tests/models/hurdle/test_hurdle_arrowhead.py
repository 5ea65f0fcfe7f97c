"""Arrowhead matrices: every operation against the dense matrix that it stands for."""

import pytest
import torch

from pyro_zilognormal.models.hurdle.arrowhead import Arrowhead

SHAPES = [(batch, donors, core) for batch in [(), (3,), (2, 3)] for donors in (0, 1, 7) for core in (1, 3)]
shapes = pytest.mark.parametrize(("batch", "donors", "core"), SHAPES, ids=str)


def normal(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def factor(batch, donors, core, seed=0):
    """A lower triangular factor with a diagonal well above 0."""
    block = 0.5 + normal(*batch, donors, seed=seed).abs()
    square = normal(*batch, core, core, seed=seed + 1)
    last = square.tril(-1) + torch.diag_embed(0.5 + square.diagonal(dim1=-2, dim2=-1).abs())
    return Arrowhead(block, normal(*batch, core, donors, seed=seed + 2), last)


def dense(arrow, symmetric=False):
    above = arrow.border.mT if symmetric else torch.zeros_like(arrow.border.mT)
    rows = [torch.cat([torch.diag_embed(arrow.block), above], -1), torch.cat([arrow.border, arrow.core], -1)]
    return torch.cat(rows, -2)


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@shapes
def test_products_of_factors(batch, donors, core):
    left, right = factor(batch, donors, core), factor(batch, donors, core, seed=10)
    same(dense(left @ right), dense(left) @ dense(right))
    same(dense(left.solve_factor(right)), torch.linalg.solve(dense(left), dense(right)))
    same(dense(left.gram(), symmetric=True), dense(left) @ dense(left).mT)


@shapes
def test_cholesky(batch, donors, core):
    lower = factor(batch, donors, core)
    found = lower.gram().cholesky()
    same(dense(found), torch.linalg.cholesky(dense(lower) @ dense(lower).mT))
    same(dense(found), dense(lower))  # the factor with a positive diagonal is the only one


@shapes
def test_sums_and_multiples(batch, donors, core):
    precision = factor(batch, donors, core).gram()
    diagonal, scale = normal(donors + core, seed=3), normal(*batch, 1, seed=4).exp()
    shape = (*batch, donors + core)
    same(dense(precision.add_diagonal(diagonal), True), dense(precision, True) + torch.diag(diagonal))
    each = normal(*shape, seed=5)
    same(dense(precision.add_diagonal(each), True), dense(precision, True) + torch.diag_embed(each))
    same(dense(precision.scale(scale), True), scale.unsqueeze(-1) * dense(precision, True))


@shapes
@pytest.mark.parametrize("more", [(), (4,)], ids=["one vector", "many"])
def test_vectors(batch, donors, core, more):
    lower = factor(batch, donors, core)
    full, vector = dense(lower), normal(*more, *batch, donors + core, seed=6)
    column = vector.unsqueeze(-1)
    same(lower.times(vector), (full @ column).squeeze(-1))
    same(lower.transpose_times(vector), (full.mT @ column).squeeze(-1))
    expanded = full.expand(*more, *full.shape)
    same(lower.solve(vector), torch.linalg.solve(expanded, column).squeeze(-1))
    same(lower.transpose_solve(vector), torch.linalg.solve(expanded.mT, column).squeeze(-1))


@shapes
def test_diagonals(batch, donors, core):
    lower = factor(batch, donors, core)
    full = dense(lower)
    same(lower.diagonal(), full.diagonal(dim1=-2, dim2=-1))
    same(lower.inverse_diagonal(), torch.linalg.inv(full @ full.mT).diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_a_diagonal_matrix(batch):
    values = normal(*batch, 4, seed=7).exp()
    arrow = Arrowhead.from_diagonal(values)
    same(dense(arrow), torch.diag_embed(values))
    same(dense(arrow.cholesky()), torch.diag_embed(values.sqrt()))
    same(arrow.cholesky().inverse_diagonal(), 1 / values)
    same(arrow.solve(values), torch.ones_like(values))


@pytest.mark.parametrize("donors", [0, 2])
@pytest.mark.parametrize(
    "operation",
    [
        lambda a, b, v: a.gram().cholesky().solve(v),
        lambda a, b, v: a.gram().scale(v[:1].exp()).add_diagonal(v.exp()).cholesky().transpose_solve(v),
        lambda a, b, v: (a @ b).times(v),
        lambda a, b, v: a.solve_factor(b).transpose_times(v),
        lambda a, b, v: a.inverse_diagonal() + b.diagonal(),
    ],
    ids=["solve", "update", "times", "divide", "diagonals"],
)
def test_gradients(operation, donors):
    first, second, vector = factor((), donors, 2), factor((), donors, 2, seed=20), normal(donors + 2, seed=8)
    tensors = [t.clone().requires_grad_() for a in (first, second) for t in vars(a).values()] + [vector]

    def of(*parts):
        return operation(*(Arrowhead(p[0], p[1], p[2].tril()) for p in (parts[:3], parts[3:6])), parts[6])

    assert torch.autograd.gradcheck(of, tensors)
