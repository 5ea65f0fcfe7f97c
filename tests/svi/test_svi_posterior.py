"""Item 6: draws, summaries and checks, against closed forms and in bounded memory."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from svi_cases import adam, data, delta_guide, local_model, normal_guide, normal_model
from torch.distributions import constraints

from pyro_zilognormal.svi import (
    BatchStream,
    Minibatches,
    fit,
    posterior_draws,
    posterior_predictive,
    posterior_summary,
)
from pyro_zilognormal.svi.quantiles import quantiles_of
from pyro_zilognormal.svi.streaming import passes_of

ROWS = 12


def mixed_model(x):
    """Sites of every kind of constraint, a deterministic one, and an observed one."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    low = pyro.sample("low", dist.TransformedDistribution(dist.LogNormal(0.0, 0.5), Minus()))
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    part = pyro.sample("part", dist.Beta(2.0, 2.0).expand([2]).to_event(1))
    pyro.deterministic("double", 2 * scale)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(low + share[0] + part[0], scale), obs=x)


class Minus(dist.transforms.AffineTransform):
    """A law on the negative numbers, whose map to the real line decreases."""

    codomain = constraints.less_than(0.0)

    def __init__(self):
        super().__init__(0.0, -1.0)


@pytest.fixture(scope="module")
def mixed():
    return fit(mixed_model, AutoNormal(mixed_model), data(ROWS, loc=0.0), steps=30, optimizer=adam)


@pytest.fixture(scope="module")
def local():
    x = data(ROWS)
    source = Minibatches(x, batch_size=5, plate="rows")
    return fit(local_model(ROWS), AutoNormal(local_model(ROWS)), source, steps=300, optimizer=adam), source, x


def within(found, expected, error, k=5.0):
    assert (found - expected).abs().max() < k * error, (found, expected)


def test_summary_of_a_normal_guide_has_the_moments_of_the_guide():
    result = fit(normal_model, normal_guide, data(), steps=50, optimizer=adam)
    loc, scale = result.params["q_loc"], result.params["q_scale"]
    found = posterior_summary(result, data(), draws=1000)["loc"]
    within(found.mean, loc, scale / 1000**0.5)
    within(found.sd, scale, scale / 2000**0.5)
    assert not found.exact
    levels = torch.tensor([0.05, 0.5, 0.95])
    # The standard error of a quantile is sqrt(q (1 - q) / n) / density.
    normal = dist.Normal(loc, scale)
    at = normal.icdf(levels)
    within((found.quantiles - at) / ((levels * (1 - levels) / 1000).sqrt() / normal.log_prob(at).exp()), 0.0, 1.0)


def test_summary_is_the_summary_of_the_draws(mixed):
    x = data(ROWS)
    held = posterior_draws(mixed, x, draws=64, sites=["share", "low", "double"])
    found = posterior_summary(mixed, x, draws=64, sites=["share", "low", "double"])
    for name, values in held.items():
        torch.testing.assert_close(found[name].mean, values.mean(0))
        torch.testing.assert_close(found[name].sd, values.std(0))
        expected = values.quantile(torch.tensor([0.05, 0.5, 0.95]), 0)
        torch.testing.assert_close(found[name].quantiles, expected)
        assert not found[name].exact


@pytest.mark.parametrize("max_bytes", [1, 8 * 24 * 2])
def test_memory_limits_do_not_change_the_answer(mixed, max_bytes):
    full = posterior_summary(mixed, data(ROWS), draws=24)
    small = posterior_summary(mixed, data(ROWS), draws=24, max_bytes=max_bytes)
    assert full.keys() == {"scale", "low", "share", "part"}
    for name in full:
        assert torch.equal(full[name].mean, small[name].mean)
        assert torch.equal(full[name].quantiles, small[name].quantiles)


def test_passes_hold_no_more_than_there_is_room_for():
    passes = passes_of({"a": 5, "b": 2, "c": 4}, 3)
    assert all(sum(stop - start for _, start, stop in p) <= 3 for p in passes)
    covered = [(n, i) for p in passes for n, start, stop in p for i in range(start, stop)]
    assert sorted(covered) == sorted((n, i) for n, size in {"a": 5, "b": 2, "c": 4}.items() for i in range(size))


def test_exact_quantiles_are_used_where_they_are_exact(mixed):
    found = posterior_summary(mixed, data(ROWS), draws=20, quantiles=[0.1, 0.9])
    # A decreasing map and a simplex have no exact ones; exp and the logistic do.
    assert {k: s.exact for k, s in found.items()} == {
        "scale": True,
        "low": False,
        "share": False,
        "part": True,
    }
    loc, scale = (mixed.params[f"AutoNormal.{w}.scale"] for w in ("locs", "scales"))
    expected = dist.LogNormal(loc, scale).icdf(torch.tensor([0.1, 0.9]))
    torch.testing.assert_close(found["scale"].quantiles, expected)
    assert (found["low"].quantiles[0] < found["low"].quantiles[1]).all()


@pytest.mark.parametrize("guide", [AutoDiagonalNormal, AutoMultivariateNormal, AutoDelta, AutoNormal])
def test_exact_quantiles_agree_with_draws(guide):
    result = fit(normal_model, guide(normal_model), data(), steps=20, optimizer=adam)
    found = posterior_summary(result, data(), draws=500)["loc"]
    assert found.exact == (guide is not AutoDelta)
    sampled = posterior_draws(result, data(), draws=500)["loc"].quantile(torch.tensor([0.05, 0.5, 0.95]))
    within(found.quantiles, sampled, 0.1 * float(found.sd) + 1e-6, 2.0)


def test_local_sites_are_summarised_for_every_row(local):
    result, source, x = local
    found = posterior_summary(result, source, draws=200)
    loc, scale = result.params["AutoNormal.locs.z"], result.params["AutoNormal.scales.z"]
    assert found["z"].mean.shape == (ROWS,)
    within((found["z"].mean - loc) / scale, 0.0, 200**-0.5)
    within(found["z"].sd / scale, 1.0, 400**-0.5)
    assert found["z"].exact
    torch.testing.assert_close(found["z"].quantiles[1], loc)
    whole = posterior_summary(result, Minibatches(x, batch_size=ROWS, plate="rows"), draws=2)
    torch.testing.assert_close(whole["z"].quantiles, found["z"].quantiles)


def test_global_draws_alone_by_default_and_local_on_request(local):
    result, source, _ = local
    assert {k: tuple(v.shape) for k, v in posterior_draws(result, source, draws=7).items()} == {"loc": (7,)}
    joint = posterior_draws(result, source, draws=7, joint=True)
    assert {k: tuple(v.shape) for k, v in joint.items()} == {"loc": (7,), "z": (7, ROWS)}
    with pytest.raises(ValueError, match="pass joint=True to hold it"):
        posterior_draws(result, source, sites=["z"])


def test_joint_draws_share_their_global_values_across_batches():
    def guide(x):
        loc = pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.0)), 5.0))
        with pyro.plate("rows", ROWS, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(loc, 0.01))

    source = Minibatches(data(ROWS), batch_size=5, plate="rows")
    result = fit(local_model(ROWS), guide, source, steps=2)
    joint = posterior_draws(result, source, draws=20, joint=True)
    within(joint["z"], joint["loc"][:, None], 0.01, 6.0)
    assert joint["loc"].std() > 1
    auxiliary = fit(normal_model, AutoDiagonalNormal(normal_model), data(), steps=2)
    batches = Minibatches(data(), batch_size=6, plate="rows")
    assert posterior_draws(auxiliary, batches, draws=3, joint=True)["loc"].shape == (3,)


def test_a_guide_may_be_fitted_again_and_called_with_all_rows():
    x, guide = data(ROWS), AutoNormal(local_model(ROWS))
    source = Minibatches(x, batch_size=5, plate="rows")
    first = fit(local_model(ROWS), guide, source, steps=10, optimizer=adam)
    before = posterior_summary(first, source, draws=3)["z"].mean
    second = fit(local_model(ROWS), guide, source, steps=10, optimizer=adam)
    assert second.guide(x)["z"].shape == (ROWS,)
    assert torch.equal(posterior_summary(first, source, draws=3)["z"].mean, before)
    assert not torch.equal(posterior_summary(second, source, draws=3)["z"].mean, before)


def test_a_fit_of_all_data_is_read_in_batches_row_by_row():
    x = data(ROWS)
    result = fit(local_model(ROWS), AutoNormal(local_model(ROWS)), x, steps=10, optimizer=adam)
    with torch.no_grad():
        result.objective.trainable()["AutoNormal.scales.z"].fill_(-20.0)
        result.values["AutoNormal.scales.z"].fill_(-20.0)
    source = Minibatches(x, batch_size=5, plate="rows")
    joint = posterior_draws(result, source, draws=2, joint=True)["z"]
    torch.testing.assert_close(joint[0], result.params["AutoNormal.locs.z"], atol=1e-4, rtol=0)


def test_other_rows_are_not_given_the_parameters_of_those_of_the_fit(local):
    result, _, x = local
    for other in (x[:5], Minibatches(data(30), batch_size=10, plate="rows")):
        with pytest.raises(ValueError, match=r"held-out rows have none|nothing says which rows"):
            posterior_summary(result, other, draws=2)


def test_observed_sites_are_held_only_when_named(mixed):
    assert "x" not in posterior_draws(mixed, data(ROWS), draws=2)
    assert torch.equal(posterior_draws(mixed, data(ROWS), draws=2, sites=["x"])["x"][1], data(ROWS))


def test_draws_are_repeatable_and_leave_the_seed_alone(mixed):
    before = torch.get_rng_state()
    first = posterior_draws(mixed, data(ROWS), draws=5, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    again = posterior_draws(mixed, data(ROWS), draws=5, seed=3)
    other = posterior_draws(mixed, data(ROWS), draws=5, seed=4)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not any(torch.equal(first[k], other[k]) for k in first)


def test_a_stream_of_batches_is_summarised():
    model = lambda x: normal_model(x)  # noqa: E731
    stream = BatchStream(list(data().split(6)), plate="rows")
    result = fit(model, delta_guide, stream, steps=5)
    assert posterior_summary(result, stream, draws=3)["loc"].sd == 0


def test_quantiles_of_agrees_with_torch():
    values = torch.randn(101, 7)
    levels = [0.0, 0.03, 0.5, 0.731, 1.0]
    torch.testing.assert_close(quantiles_of(values, levels), values.quantile(torch.tensor(levels), 0))


BAD = [
    ({"draws": 0}, ValueError, "draws is 0"),
    ({"draws": True}, ValueError, "draws is True"),
    ({"sites": ["y"]}, ValueError, "sites holds 'y'; the model's sites are"),
    ({"sites": "loc"}, TypeError, r"needed a list of names, \['loc'\]"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
@pytest.mark.parametrize("call", [posterior_draws, posterior_summary, posterior_predictive])
def test_bad_arguments_are_refused(call, arguments, error, message, mixed):
    message = message.replace("model's sites", "model's (observed )?sites")
    with pytest.raises(error, match=message):
        call(mixed, data(ROWS), **arguments)


@pytest.mark.parametrize("call", [posterior_summary, posterior_predictive])
def test_quantiles_out_of_range_are_refused(call, mixed):
    with pytest.raises(ValueError, match=r"quantiles is \[1.5\]; needed numbers from 0 to 1"):
        call(mixed, data(ROWS), quantiles=[1.5])
