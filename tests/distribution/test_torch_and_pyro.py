"""The checks that torch and Pyro make of their own distributions, over all of ours."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.testing.gof import auto_goodness_of_fit
from torch.distributions import constraints

from pyro_zilognormal import GroupedZeroInflatedLogNormal, LeftCensoredZeroInflatedLogNormal, ZeroInflatedLogNormal

MAX_SIGMA = 4.0
N = 20_000


class Example(NamedTuple):
    """A distribution's class and arguments."""

    kind: type[TorchDistribution]
    arguments: dict[str, Any]

    def make(self) -> TorchDistribution:
        return self.kind(**self.arguments)


ZILN, Grouped, Censored = ZeroInflatedLogNormal, GroupedZeroInflatedLogNormal, LeftCensoredZeroInflatedLogNormal
LOC, SCALE = torch.tensor([[-1.0], [0.5]], dtype=torch.double), torch.tensor([0.3, 0.5, 0.8], dtype=torch.double)
LOGITS = torch.tensor([-2.0, 0.3, 1.0], dtype=torch.double)
PLAIN = {"loc": LOC, "scale": SCALE, "zi_logits": LOGITS}
EXAMPLES = {
    "scalar": Example(ZILN, {"loc": torch.tensor(0.5), "scale": torch.tensor(0.7), "zi_logits": torch.tensor(-0.4)}),
    "logits": Example(ZILN, PLAIN),
    "probs": Example(ZILN, {"mu": LOC, "scale": SCALE, "zi_probs": LOGITS.sigmoid()}),
    "cloglog": Example(ZILN, {"loc": LOC, "scale": SCALE, "cloglog": LOGITS}),
    "censored": Example(Censored, {**PLAIN, "limit": torch.tensor(0.7, dtype=torch.double)}),
    "censored, zeros known": Example(Censored, {**PLAIN, "limit": 0.7, "zeros_known": True}),
    "grouped": Example(Grouped, {**PLAIN, "total_count": torch.tensor([[20.0], [3.0]])}),
}
OF_CELLS = {name: e for name, e in EXAMPLES.items() if e.kind is not Grouped}
PLAINS = {name: e for name, e in EXAMPLES.items() if e.kind is ZILN}


def over(examples: dict[str, Example]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", examples.values(), ids=examples.keys())


@over(EXAMPLES)
def test_the_constructor_takes_what_arg_constraints_names(example: Example) -> None:
    d = example.make()
    again = example.kind(**{name: getattr(d, name) for name in d.arg_constraints})
    assert again.batch_shape == d.batch_shape
    if example.kind is not Grouped and "zeros_known" not in example.arguments:
        x = d.sample()
        torch.testing.assert_close(again.log_prob(x), d.log_prob(x))


@over(EXAMPLES)
def test_parameters_have_their_shapes_and_satisfy_their_constraints(example: Example) -> None:
    d = example.make()
    for name, constraint in d.arg_constraints.items():
        parameter = getattr(d, name)
        assert parameter.shape == d.batch_shape
        assert constraint.check(parameter).all()


@over(EXAMPLES)
def test_shapes_are_inferred(example: Example) -> None:
    d = example.make()
    shapes = {k: torch.as_tensor(v).shape for k, v in example.arguments.items() if k != "zeros_known"}
    assert example.kind.infer_shapes(**shapes) == (d.batch_shape, d.event_shape)


@over(EXAMPLES)
def test_draws_are_detached_and_in_the_support(example: Example) -> None:
    arguments = {
        k: v.clone().requires_grad_() if isinstance(v, torch.Tensor) else v for k, v in example.arguments.items()
    }
    d = example.kind(**arguments)
    x = d.sample((7,))
    assert not x.requires_grad
    assert x.shape == (7, *d.batch_shape, *d.event_shape)
    assert d.support.event_dim == d.event_dim
    assert not d.support.is_discrete
    valid = d.support.check(x)
    assert valid.shape == (7, *d.batch_shape)
    assert valid.all()
    assert d.log_prob(x).shape == valid.shape
    assert d.log_prob(x).requires_grad
    assert d.has_enumerate_support is False


@over(EXAMPLES)
def test_values_of_other_shapes_are_refused(example: Example) -> None:
    d = example.make().expand((2, 3))
    x = d.sample()
    with pytest.raises(ValueError, match="broadcast"):
        d.log_prob(torch.cat([x, x]))


@over(EXAMPLES)
@pytest.mark.parametrize("default", [False, True], ids=["own", "Pyro's"])
def test_expand(example: Example, default: bool) -> None:
    def expand(d: TorchDistribution, shape: tuple[int, ...]) -> TorchDistribution:
        return TorchDistribution.expand(d, torch.Size(shape)) if default else d.expand(shape)

    small = example.make()
    for shapes in ([(2, 1), (2, 3)], [(2, 1, 1), (2, 1, 3), (2, 5, 3)]):
        large = small
        for shape in shapes:
            large = expand(large, (*shape, *small.batch_shape))
            assert large.batch_shape == (*shape, *small.batch_shape)
            assert large.event_shape == small.event_shape
            x, y = small.sample(), large.sample()
            assert y.shape == large.batch_shape + large.event_shape
            torch.testing.assert_close(large.log_prob(x), small.log_prob(x).expand(large.batch_shape))
            torch.testing.assert_close(large.log_prob(y), small.log_prob(y))
        with pytest.raises((ValueError, RuntimeError)):
            large.expand((4, *small.batch_shape))


@over(EXAMPLES)
def test_a_subclass_expands_to_itself(example: Example) -> None:
    class Same(example.kind):  # type: ignore[name-defined]
        pass

    class Other(example.kind):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__(**example.arguments)

    for d in (Same(**example.arguments), Other()):
        larger = d.expand((4, *d.batch_shape))
        assert type(larger) is type(d)
        x = d.sample()
        torch.testing.assert_close(larger.log_prob(x), d.log_prob(x).expand(larger.batch_shape))


@over(EXAMPLES)
def test_repr_and_copies(example: Example) -> None:
    d = example.make()
    assert type(d).__name__ in repr(d)
    on_meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in example.arguments.items()}
    assert type(d).__name__ in repr(example.kind(**on_meta, validate_args=False))
    x = d.sample()
    for other in (copy.deepcopy(d), pickle.loads(pickle.dumps(d))):
        torch.testing.assert_close(other.log_prob(x), d.log_prob(x), rtol=0, atol=0)


@over(EXAMPLES)
def test_wrappers_sum_and_mask(example: Example) -> None:
    d = example.make().expand((2, 3))
    x, mask = d.sample(), torch.tensor([[True, False, True], [False, True, True]])
    torch.testing.assert_close(d.to_event(1).log_prob(x), d.log_prob(x).sum(-1))
    torch.testing.assert_close(d.mask(mask).to_event(2).log_prob(x), d.log_prob(x)[mask].sum())


METHODS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "log_prob": lambda d, x: d.log_prob(x),
    "cdf": lambda d, x: d.cdf(x),
    "icdf": lambda d, x: d.icdf(x / (1 + x)),
    "sample": lambda d, x: d.sample((2,)),
    **{name: lambda d, x, name=name: getattr(d, name) for name in ("mean", "variance", "stddev", "median", "mode")},
    "entropy": lambda d, x: d.entropy(),
}


@over(OF_CELLS)
@pytest.mark.parametrize("method", METHODS)
def test_a_trace_serves_other_parameters(example: Example, method: str) -> None:
    """As torch's own: traced at one set of parameters and run at another."""
    if example.kind is Censored and method not in ("log_prob", "cdf", "icdf", "sample"):
        with pytest.raises(AttributeError if method == "median" else NotImplementedError):
            METHODS[method](example.make(), torch.ones(()))
        return
    tensors = {k: v for k, v in example.arguments.items() if isinstance(v, torch.Tensor)}
    others = {k: v for k, v in example.arguments.items() if k not in tensors}

    def function(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return METHODS[method](example.kind(**dict(zip(tensors, values, strict=True)), **others), x)

    x = example.make().sample()
    moved = [0.9 * value for value in tensors.values()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit
        traced = torch.jit.trace(function, (x, *tensors.values()), check_trace=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = function(x, *moved)
        torch.manual_seed(1)
        torch.testing.assert_close(traced(x, *moved), expected)


def mean_is(values: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether the means over the first dimension are as expected, within MAX_SIGMA standard errors."""
    error = values.std(0) / len(values) ** 0.5
    return bool(((values.mean(0) - expected).abs() <= MAX_SIGMA * error + 1e-12).all())


@over(PLAINS)
def test_moments_and_entropy_are_those_of_draws(example: Example) -> None:
    d: Any = example.make()
    torch.manual_seed(2)
    x = d.sample((N,))
    assert mean_is(x, d.mean)
    assert mean_is((x - d.mean) ** 2, d.variance)
    assert mean_is(-d.log_prob(x), d.entropy())
    assert (d.log_prob(x) <= d.log_prob(d.mode)).all()


@over(OF_CELLS)
def test_goodness_of_fit(example: Example) -> None:
    """Pyro's test takes a density or a mass; of a mixed distribution each part is tested: the atoms and the rest."""
    d = example.make()
    torch.manual_seed(3)
    x = d.sample((N,))
    atoms = torch.tensor([0.0, 0.7] if example.kind is Censored else [0.0], dtype=torch.double)
    rest = torch.ones(x.shape, dtype=torch.bool)
    for atom in atoms:
        at_atom = x == atom
        probability = d.log_prob(atom).exp() if at_atom.any() else torch.zeros(())
        assert mean_is(at_atom.double(), probability.double())
        rest &= ~at_atom
    density = d.log_prob(x).exp()
    for index in torch.cartesian_prod(*map(torch.arange, d.batch_shape)) if d.batch_shape else [()]:
        at = (slice(None), *index)
        share = rest[at].double().mean()
        assert auto_goodness_of_fit(x[at][rest[at]], density[at][rest[at]] / share) > 1e-3


@over(OF_CELLS)
def test_cdf_undoes_icdf_above_the_atoms(example: Example) -> None:
    """As Pyro's test_cdf_icdf, but for u at an atom, where cdf(icdf(u)) is the cdf there."""
    d = example.make()
    torch.manual_seed(4)
    u = torch.rand(100, *d.batch_shape, dtype=torch.double)
    x = d.icdf(u)
    at_atom = (x == 0) | (x == getattr(d, "limit", 0))
    torch.testing.assert_close(d.cdf(x)[~at_atom], u[~at_atom].to(d.cdf(x).dtype), rtol=1e-4, atol=1e-5)
    assert (d.cdf(x)[at_atom] >= u[at_atom] - 1e-6).all()
    assert 0 < at_atom.double().mean() < 1


@over(OF_CELLS)
def test_the_slope_of_the_cdf_is_the_density(example: Example) -> None:
    d = example.make()
    x = torch.linspace(0.75, 6, 40).reshape(-1, *[1] * len(d.batch_shape)).expand(-1, *d.batch_shape).requires_grad_()
    (slope,) = torch.autograd.grad(d.cdf(x).sum(), x)
    torch.testing.assert_close(slope, d.log_prob(x).exp().to(slope.dtype), rtol=1e-4, atol=1e-6)


def test_supports_are_constraints_with_an_atom() -> None:
    for kind in (ZILN, Censored):
        assert isinstance(kind.support, constraints.greater_than_eq)
        assert kind.support.check(torch.tensor([0.0, -1.0, 1.0])).tolist() == [True, False, True]
