"""What every distribution of Pyro and torch must do, over the table of good laws."""

import copy
import inspect
import io
import pickle

import pyro
import pytest
import torch
from pyro.distributions import LogNormal, Normal, TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch.distributions import biject_to, constraints, kl_divergence, transform_to

from pyro_zilognormal import ZeroInflatedLogNormal
from tests.distribution.cases import GOOD, Good

PROPERTIES = ["loc", "scale", "zi_logits", "zi_probs", "prob_positive", "mean", "log_mean", "variance", "stddev"]
PROPERTIES += ["mode", "median"]
SUMMARIES = ["entropy", "perplexity"]
OF_VALUE = ["log_prob", "cdf", "log_cdf", "log_survival_function"]
good_laws = pytest.mark.parametrize("good", GOOD, ids=lambda good: good.name)


def summaries(law: ZeroInflatedLogNormal) -> dict[str, torch.Tensor]:
    values = {name: getattr(law, name) for name in PROPERTIES}
    return values | {name: getattr(law, name)() for name in SUMMARIES}


def scores(law: ZeroInflatedLogNormal, x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: getattr(law, name)(x) for name in OF_VALUE} | {"icdf": law.icdf(x / (1 + x))}


def assert_same_law(left: ZeroInflatedLogNormal, right: ZeroInflatedLogNormal) -> None:
    x = torch.tensor(1.5, dtype=left.loc.dtype)
    for a, b in ((summaries(left), summaries(right)), (scores(left, x), scores(right, x))):
        for name in a:
            torch.testing.assert_close(b[name], a[name], rtol=0, atol=0, msg=name)


def test_the_class_says_what_it_is() -> None:
    law = ZeroInflatedLogNormal
    assert issubclass(law, TorchDistribution)
    assert not issubclass(law, torch.distributions.LogNormal)
    assert set(law.arg_constraints) == {"loc", "scale", "zi_logits"}
    assert isinstance(law.support, constraints.greater_than_eq)
    assert repr(law.support) == repr(constraints.nonnegative)
    assert not law.support.is_discrete
    assert law.support.event_dim == 0
    assert law.has_rsample is True
    assert law.has_enumerate_support is False
    assert list(inspect.signature(law).parameters) == [
        "mu",
        "scale",
        "zi_logits",
        "normal_mu",
        "validate_args",
        "zi_probs",
    ]


def test_every_public_member_has_a_docstring() -> None:
    for name, member in vars(ZeroInflatedLogNormal).items():
        if not name.startswith("_") and (callable(member) or isinstance(member, property)):
            assert inspect.getdoc(member), name


@good_laws
def test_shapes_and_dtypes(good: Good) -> None:
    law = good.law()
    dtype = law.loc.dtype
    assert law.batch_shape == good.batch_shape
    assert law.event_shape == ()
    assert law.shape((2,)) == (2, *good.batch_shape)
    for name, value in summaries(law).items():
        assert value.shape == good.batch_shape, name
        assert value.dtype == dtype, name
        assert not value.isnan().any(), name
    for shape in [(), (1,), good.batch_shape, (2, *good.batch_shape)]:
        x = torch.ones(shape, dtype=dtype)
        for name, value in scores(law, x).items():
            assert value.shape == broadcast_shape(shape, good.batch_shape), name
            assert value.dtype == dtype, name
            assert not value.isnan().any(), name


@good_laws
def test_infer_shapes(good: Good) -> None:
    shapes = {k: torch.as_tensor(v).shape for k, v in good.arguments.items() if k != "normal_mu"}
    assert ZeroInflatedLogNormal.infer_shapes(**shapes) == (good.batch_shape, ())


@good_laws
@pytest.mark.parametrize("sample_shape", [None, (), (3,), (2, 3)])
def test_samples(good: Good, sample_shape: tuple[int, ...] | None) -> None:
    law = good.law()
    for draw in (law.sample(sample_shape), law.rsample(sample_shape), law(sample_shape or ())):
        assert draw.shape == (*(sample_shape or ()), *good.batch_shape)
        assert draw.dtype == law.loc.dtype
        assert law.support.check(draw).all()
        assert draw.isfinite().all()
        assert not draw.is_inference()
    assert law.sample_n(4).shape == (4, *good.batch_shape)


@good_laws
def test_sample_is_reproducible_and_detached(good: Good) -> None:
    arguments = {
        k: v.requires_grad_() if isinstance(v, torch.Tensor) else v for k, v in copy.deepcopy(good.arguments).items()
    }
    law = ZeroInflatedLogNormal(**arguments)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = law.sample((2,))
        torch.manual_seed(0)
        assert torch.equal(law.rsample((2,)), first)
    assert not first.requires_grad
    assert law.rsample().requires_grad == any(isinstance(v, torch.Tensor) for v in arguments.values())


@good_laws
@pytest.mark.parametrize("extra", [(), (2,), (3, 2)])
@pytest.mark.parametrize("shape_type", [torch.Size, tuple, list])
def test_expand(good: Good, extra: tuple[int, ...], shape_type: type) -> None:
    law = good.law()
    large = law.expand(shape_type(extra + good.batch_shape))
    assert large.batch_shape == extra + good.batch_shape == law.expand_by(shape_type(extra)).batch_shape
    assert type(large) is ZeroInflatedLogNormal
    x = large.sample()
    assert x.shape == large.batch_shape
    torch.testing.assert_close(large.log_prob(x), law.log_prob(x), rtol=0, atol=0)
    torch.testing.assert_close(large.mean, law.mean.expand(large.batch_shape), rtol=0, atol=0)
    wrapped = TorchDistribution.expand(law, shape_type(extra + good.batch_shape))
    torch.testing.assert_close(wrapped.log_prob(x), large.log_prob(x), rtol=0, atol=0)


def test_expand_of_a_one_draws_independently() -> None:
    law = ZeroInflatedLogNormal(torch.zeros(2, 1), 1.0, 0.0)
    draw = law.expand((2, 50)).sample()
    assert len(draw.unique()) > 25
    assert law.expand((5, 2, 1)).expand((5, 2, 3)).batch_shape == (5, 2, 3)


def test_nothing_is_copied_to_the_full_shape() -> None:
    mu, scale = torch.zeros(1000, 1), torch.ones(1, 1000)
    law = ZeroInflatedLogNormal(mu, scale, 0.0).expand((10, 1000, 1000))
    for view, given in ((law.loc, mu), (law.scale, scale)):
        assert view.shape == (10, 1000, 1000)
        assert view.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
    bytes_of = {name: value.untyped_storage().nbytes() for name, value in summaries(law).items()}
    assert bytes_of["zi_logits"] == bytes_of["zi_probs"] == 4
    assert max(bytes_of.values()) == 4 * 1000 * 1000


@good_laws
def test_to_event_and_mask(good: Good) -> None:
    law = good.law()
    x = law.sample()
    for ndims in range(len(good.batch_shape) + 1):
        event = law.to_event(ndims)
        assert event.event_shape == good.batch_shape[len(good.batch_shape) - ndims :]
        assert event.support.event_dim == event.event_dim == ndims
        total = law.log_prob(x).sum(tuple(range(-ndims, 0))) if ndims else law.log_prob(x)
        torch.testing.assert_close(event.log_prob(x), total, rtol=0, atol=0)
        assert event.to_event(-ndims) is law
        assert type(event.expand((2, *event.batch_shape))) is type(event)
    for mask in (torch.zeros(good.batch_shape, dtype=torch.bool), torch.tensor(True), True, False):
        masked = law.mask(mask)
        expected = torch.where(torch.as_tensor(mask), law.log_prob(x), 0)
        torch.testing.assert_close(masked.log_prob(x), expected.to(masked.log_prob(x).dtype), rtol=0, atol=0)
        assert masked.to_event().mask(torch.tensor(True)).to_event(0).event_shape == good.batch_shape


@good_laws
def test_copies_are_the_same_law(good: Good) -> None:
    law = good.law()
    buffer = io.BytesIO()
    torch.save(law, buffer)
    buffer.seek(0)
    for other in (
        copy.copy(law),
        copy.deepcopy(law),
        pickle.loads(pickle.dumps(law)),
        torch.load(buffer, weights_only=False),
    ):
        assert type(other) is ZeroInflatedLogNormal
        assert_same_law(law, other)


def test_deepcopy_after_use_with_parameters() -> None:
    mu = torch.nn.Parameter(torch.zeros(2))
    law = ZeroInflatedLogNormal(mu, 1.0, 0.0).expand((3, 2))
    for _ in range(2):  # a graph cached on the instance would break the second backward pass, and the copy
        law.score_parts(law.rsample()).log_prob.sum().backward()
        (law.mean.sum() + law.variance.sum() + law.entropy().sum()).backward()
    assert copy.deepcopy(law).loc.requires_grad
    with torch.no_grad():
        mu.fill_(1.0)
    assert (law.loc == 1).all()  # nothing goes stale


@good_laws
def test_repr_shows_all_three_parameters(good: Good) -> None:
    shown = repr(good.law())
    gate = "zi_probs" if "zi_probs" in good.arguments else "zi_logits"
    assert shown.startswith("ZeroInflatedLogNormal(loc: ")
    assert "scale: " in shown
    assert f"{gate}: " in shown


def test_scvi_members() -> None:
    normal_mu = torch.tensor([0.5, 0.6])
    law = ZeroInflatedLogNormal(torch.tensor([1.0, 2.0]), 0.5, 0.0, normal_mu, True)
    assert law.get_normalized("mu") is not None
    assert torch.equal(law.get_normalized("mu"), law.loc)
    assert law.get_normalized("scale") is normal_mu is law.normal_mu
    assert ZeroInflatedLogNormal(0.0, 1.0, 0.0).get_normalized("scale") is None
    assert law.clear_cache() is None
    assert isinstance(law.base_dist, Normal)
    assert torch.equal(law.base_dist.loc, law.loc)
    assert torch.equal(law.base_dist.scale, law.scale)


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
    law = ZeroInflatedLogNormal(0.0, 1.0, 0.0)
    assert law.log_prob(0.0) == law.log_prob(torch.tensor(0.0)) == law.log_prob(torch.tensor(-0.0))
    assert law.cdf(2) == law.cdf(torch.tensor(2.0))
    assert law.log_prob(torch.tensor(2.0, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("value_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", [*OF_VALUE, "icdf"])
def test_a_less_precise_value_is_computed_with_the_precision_of_the_law(value_dtype: torch.dtype, method: str) -> None:
    law = ZeroInflatedLogNormal(torch.tensor(-0.6, dtype=torch.float64), 0.01, -1.0)
    value = torch.tensor(0.55, dtype=value_dtype)
    actual, exact = getattr(law, method)(value), getattr(law, method)(value.double())
    torch.testing.assert_close(actual, exact, rtol=1e-15, atol=0)


def test_has_rsample_survives_wrapping() -> None:
    law = ZeroInflatedLogNormal(torch.zeros(2), 1.0, 0.0).has_rsample_(False)
    for other in (
        law,
        law.expand((3, 2)),
        law.to_event(1),
        law.mask(True),
        law.to_event(1).expand((3,)),
        copy.copy(law),
    ):
        assert other.has_rsample is False
    assert ZeroInflatedLogNormal.has_rsample is True
    wrapped = ZeroInflatedLogNormal(torch.zeros(2), 1.0, 0.0).to_event(1).has_rsample_(False)
    assert wrapped.has_rsample is wrapped.base_dist.has_rsample is False


def test_no_bijection_to_the_reals_is_invented() -> None:
    law = ZeroInflatedLogNormal(torch.zeros(2), 1.0, 0.0)
    for constraint in (law.support, law.to_event(1).support):
        with pytest.raises(NotImplementedError, match="ZeroInflatedLogNormalReparam"):
            biject_to(constraint)
        start = transform_to(constraint)  # init strategies may start from a constant, but nothing moves along it
        with pytest.raises(NotImplementedError, match="ZeroInflatedLogNormalReparam"):
            start(torch.zeros(2, requires_grad=True))
    biject_to(constraints.nonnegative)  # torch's own is as it was


@good_laws
def test_kl_shapes_and_wrappers(good: Good) -> None:
    p, q = good.law(), ZeroInflatedLogNormal(torch.tensor(0.1, dtype=good.law().loc.dtype), 1.3, 0.2)
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


def large_kl_sum(law: ZeroInflatedLogNormal, kl: torch.Tensor) -> torch.Tensor:
    return kl.expand(law.batch_shape).sum(-1)


def test_pyro_sample() -> None:
    pyro.set_rng_seed(0)
    law = ZeroInflatedLogNormal(torch.zeros(3), 1.0, 0.0)

    def model() -> torch.Tensor:
        with pyro.plate("cells", 5, dim=-2):
            return pyro.sample("x", law)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["x"]["value"].shape == trace.nodes["x"]["log_prob"].shape == (5, 3)
