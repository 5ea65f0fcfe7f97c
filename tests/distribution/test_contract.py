"""What every distribution of Pyro and torch must do, over the table of good parameters."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from pyro.distributions import LogNormal, TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch.distributions import constraints, kl_divergence

from pyro_zilognormal import ZeroInflatedLogNormal
from tests.distribution.cases import GOOD, Good

PROPERTIES = ["loc", "scale", "zi_logits", "zi_probs", "prob_positive", "mean", "log_mean", "variance", "stddev"]
PROPERTIES += ["mode", "median"]
SUMMARIES = ["entropy", "perplexity"]
OF_VALUE = ["log_prob", "cdf", "log_cdf", "log_survival_function"]
all_good = pytest.mark.parametrize("good", GOOD, ids=lambda good: good.name)


def summaries(d: ZeroInflatedLogNormal) -> dict[str, torch.Tensor]:
    values = {name: getattr(d, name) for name in PROPERTIES}
    return values | {name: getattr(d, name)() for name in SUMMARIES}


def scores(d: ZeroInflatedLogNormal, x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: getattr(d, name)(x) for name in OF_VALUE} | {"icdf": d.icdf(x / (1 + x))}


def assert_same(left: ZeroInflatedLogNormal, right: ZeroInflatedLogNormal) -> None:
    x = torch.tensor(1.5, dtype=left.loc.dtype)
    for a, b in ((summaries(left), summaries(right)), (scores(left, x), scores(right, x))):
        for name in a:
            torch.testing.assert_close(b[name], a[name], rtol=0, atol=0, msg=name)


def test_the_class_says_what_it_is() -> None:
    d = ZeroInflatedLogNormal
    assert issubclass(d, TorchDistribution)
    assert not issubclass(d, torch.distributions.LogNormal)
    assert set(d.arg_constraints) == {"loc", "scale", "zi_logits"}
    assert isinstance(d.support, constraints.greater_than_eq)
    assert repr(d.support) == repr(constraints.nonnegative)
    assert not d.support.is_discrete
    assert d.support.event_dim == 0
    assert d.has_rsample is True
    assert d.has_enumerate_support is False
    ours = ["loc", "scale", "zi_logits", "normal_mu", "validate_args", "mu", "zi_probs", "cloglog"]
    assert list(inspect.signature(d).parameters) == ours


def test_every_public_member_has_a_docstring() -> None:
    for name, member in vars(ZeroInflatedLogNormal).items():
        if not name.startswith("_") and (callable(member) or isinstance(member, property)):
            assert inspect.getdoc(member), name


@all_good
def test_shapes_and_dtypes(good: Good) -> None:
    d = good.make()
    dtype = d.loc.dtype
    assert d.batch_shape == good.batch_shape
    assert d.event_shape == ()
    assert d.shape((2,)) == (2, *good.batch_shape)
    for name, value in summaries(d).items():
        assert value.shape == good.batch_shape, name
        assert value.dtype == dtype, name
        assert not value.isnan().any(), name
    for shape in [(), (1,), good.batch_shape, (2, *good.batch_shape)]:
        x = torch.ones(shape, dtype=dtype)
        for name, value in scores(d, x).items():
            assert value.shape == broadcast_shape(shape, good.batch_shape), name
            assert value.dtype == dtype, name
            assert not value.isnan().any(), name


@all_good
def test_infer_shapes(good: Good) -> None:
    shapes = {k: torch.as_tensor(v).shape for k, v in good.arguments.items() if k != "normal_mu"}
    assert ZeroInflatedLogNormal.infer_shapes(**shapes) == (good.batch_shape, ())


@all_good
def test_samples(good: Good) -> None:
    d = good.make()
    for sample_shape in (None, (), (3,), (2, 3)):
        for draw in (d.sample(sample_shape), d.rsample(sample_shape), d(sample_shape or ())):
            assert draw.shape == (*(sample_shape or ()), *good.batch_shape)
            assert draw.dtype == d.loc.dtype
            assert d.support.check(draw).all()
            assert draw.isfinite().all()
            assert not draw.is_inference()
    assert d.sample_n(4).shape == (4, *good.batch_shape)


@all_good
def test_sample_is_reproducible_and_detached(good: Good) -> None:
    arguments = copy.deepcopy(good.arguments)
    floats = [v for v in arguments.values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    for parameter in floats:
        parameter.requires_grad_()
    d = ZeroInflatedLogNormal(**arguments)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = d.sample((2,))
        torch.manual_seed(0)
        assert torch.equal(d.rsample((2,)), first)
    assert not first.requires_grad
    assert d.rsample().requires_grad == bool(floats)


@all_good
def test_expand(good: Good) -> None:
    d = good.make()
    for extra, shape_type in (((), torch.Size), ((2,), tuple), ((3, 2), list)):
        large = d.expand(shape_type(extra + good.batch_shape))
        assert large.batch_shape == extra + good.batch_shape == d.expand_by(shape_type(extra)).batch_shape
        assert type(large) is ZeroInflatedLogNormal
        x = large.sample()
        assert x.shape == large.batch_shape
        torch.testing.assert_close(large.log_prob(x), d.log_prob(x), rtol=0, atol=0)
        torch.testing.assert_close(large.mean, d.mean.expand(large.batch_shape), rtol=0, atol=0)
        wrapped = TorchDistribution.expand(d, shape_type(extra + good.batch_shape))
        torch.testing.assert_close(wrapped.log_prob(x), large.log_prob(x), rtol=0, atol=0)


def test_expand_of_a_one_draws_independently() -> None:
    d = ZeroInflatedLogNormal(torch.zeros(2, 1), 1.0, 0.0)
    draw = d.expand((2, 50)).sample()
    assert len(draw.unique()) > 25
    assert d.expand((5, 2, 1)).expand((5, 2, 3)).batch_shape == (5, 2, 3)


def test_nothing_is_copied_to_the_full_shape() -> None:
    mu, scale = torch.zeros(1000, 1), torch.ones(1, 1000)
    d = ZeroInflatedLogNormal(mu, scale, 0.0).expand((10, 1000, 1000))
    for view, given in ((d.loc, mu), (d.scale, scale)):
        assert view.shape == (10, 1000, 1000)
        assert view.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
    bytes_of = {name: value.untyped_storage().nbytes() for name, value in summaries(d).items()}
    assert bytes_of["zi_logits"] == bytes_of["zi_probs"] == 4
    assert max(bytes_of.values()) == 4 * 1000 * 1000


@all_good
def test_to_event_and_mask(good: Good) -> None:
    d = good.make()
    x = d.sample()
    for ndims in range(len(good.batch_shape) + 1):
        event = d.to_event(ndims)
        assert event.event_shape == good.batch_shape[len(good.batch_shape) - ndims :]
        assert event.support.event_dim == event.event_dim == ndims
        total = d.log_prob(x).sum(tuple(range(-ndims, 0))) if ndims else d.log_prob(x)
        torch.testing.assert_close(event.log_prob(x), total, rtol=0, atol=0)
        assert event.to_event(-ndims) is d
        assert type(event.expand((2, *event.batch_shape))) is type(event)
    for mask in (torch.zeros(good.batch_shape, dtype=torch.bool), torch.tensor(True), True, False):
        masked = d.mask(mask)
        expected = torch.where(torch.as_tensor(mask), d.log_prob(x), 0)
        torch.testing.assert_close(masked.log_prob(x), expected.to(masked.log_prob(x).dtype), rtol=0, atol=0)
        assert masked.to_event().mask(torch.tensor(True)).to_event(0).event_shape == good.batch_shape


@all_good
def test_copies_are_the_same_distribution(good: Good) -> None:
    d = good.make()
    buffer = io.BytesIO()
    torch.save(d, buffer)
    buffer.seek(0)
    for other in (
        copy.copy(d),
        copy.deepcopy(d),
        pickle.loads(pickle.dumps(d)),
        torch.load(buffer, weights_only=False),
    ):
        assert type(other) is ZeroInflatedLogNormal
        assert_same(d, other)


def test_deepcopy_after_use_with_parameters() -> None:
    mu = torch.nn.Parameter(torch.zeros(2))
    d = ZeroInflatedLogNormal(mu, 1.0, 0.0).expand((3, 2))
    for _ in range(2):  # a graph cached on the instance would break the second backward pass, and the copy
        d.score_parts(d.rsample()).log_prob.sum().backward()
        (d.mean.sum() + d.variance.sum() + d.entropy().sum()).backward()
    assert copy.deepcopy(d).loc.requires_grad
    with torch.no_grad():
        mu.fill_(1.0)
    assert (d.loc == 1).all()  # nothing goes stale


@all_good
def test_repr_shows_all_three_parameters(good: Good) -> None:
    shown = repr(good.make())
    (zero,) = good.arguments.keys() & {"zi_logits", "zi_probs", "cloglog"}
    assert shown.startswith("ZeroInflatedLogNormal(loc: ")
    assert "scale: " in shown
    assert f"{zero}: " in shown


def test_scvi_members() -> None:
    normal_mu = torch.tensor([0.5, 0.6])
    d = ZeroInflatedLogNormal(torch.tensor([1.0, 2.0]), 0.5, 0.0, normal_mu, True)
    assert d.get_normalized("mu") is not None
    assert torch.equal(d.get_normalized("mu"), d.loc)
    assert d.get_normalized("scale") is normal_mu is d.normal_mu
    assert ZeroInflatedLogNormal(0.0, 1.0, 0.0).get_normalized("scale") is None
    assert d.clear_cache() is None
    assert not hasattr(d, "base_dist")  # Pyro's AutoReparam takes what has one for a wrapper


def test_numbers_take_the_dtype_of_the_tensors_or_the_default() -> None:
    assert ZeroInflatedLogNormal(0, 1, torch.zeros(2).double()).loc.dtype == torch.float64
    assert ZeroInflatedLogNormal(0, 1, 0).loc.dtype == torch.float32
    try:
        torch.set_default_dtype(torch.float64)
        assert ZeroInflatedLogNormal(0, 1, 0).log_prob(torch.tensor(1.0)).dtype == torch.float64
        single = ZeroInflatedLogNormal(torch.zeros((), dtype=torch.float32), 1, 0)
        assert single.log_prob(torch.tensor(-0.0, dtype=torch.float32)).dtype == torch.float32
        assert single.sample().dtype == torch.float32
        assert ZeroInflatedLogNormal(torch.zeros(1).float(), 1, zi_probs=0.0).zi_logits.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_values_may_be_numbers_or_of_another_precision() -> None:
    d = ZeroInflatedLogNormal(0.0, 1.0, 0.0)
    assert d.log_prob(0.0) == d.log_prob(torch.tensor(0.0)) == d.log_prob(torch.tensor(-0.0))
    assert d.cdf(2) == d.cdf(torch.tensor(2.0))
    assert d.log_prob(torch.tensor(2.0, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("value_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", [*OF_VALUE, "icdf"])
def test_a_less_precise_value_is_computed_with_the_precision_of_the_law(value_dtype: torch.dtype, method: str) -> None:
    d = ZeroInflatedLogNormal(torch.tensor(-0.6, dtype=torch.float64), 0.01, -1.0)
    value = torch.tensor(0.55, dtype=value_dtype)
    actual, exact = getattr(d, method)(value), getattr(d, method)(value.double())
    torch.testing.assert_close(actual, exact, rtol=1e-15, atol=0)


@all_good
def test_kl_shapes_and_wrappers(good: Good) -> None:
    p, q = good.make(), ZeroInflatedLogNormal(torch.tensor(0.1, dtype=good.make().loc.dtype), 1.3, 0.2)
    kl = kl_divergence(p, q)
    assert kl.shape == good.batch_shape
    assert kl.dtype == p.loc.dtype
    assert (kl >= 0).all()
    torch.testing.assert_close(kl_divergence(p, p), torch.zeros_like(kl), rtol=0, atol=1e-6)
    large_p, large_q = p.expand((2, *good.batch_shape)), q.expand((2, *good.batch_shape))
    torch.testing.assert_close(kl_divergence(large_p, large_q), kl.expand(large_p.batch_shape), rtol=0, atol=0)
    torch.testing.assert_close(kl_divergence(large_p.to_event(1), large_q.to_event(1)), large_kl_sum(large_p, kl))
    mask = torch.rand(good.batch_shape) < 0.5
    expected = torch.where(mask, kl, 0)
    torch.testing.assert_close(
        kl_divergence(p.mask(mask), q.expand(good.batch_shape).mask(mask)), expected, rtol=0, atol=0
    )
    normal = LogNormal(q.loc, q.scale)
    assert kl_divergence(p, normal).shape == kl_divergence(normal, p).shape == good.batch_shape


def large_kl_sum(d: ZeroInflatedLogNormal, kl: torch.Tensor) -> torch.Tensor:
    return kl.expand(d.batch_shape).sum(-1)
