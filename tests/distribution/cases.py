"""Tables of good parameters and bad calls that generic checks run over."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch.distributions import kl_divergence

from pyro_zilognormal import LeftCensoredZeroInflatedLogNormal, ZeroInflatedLogNormal

INF, NAN = math.inf, math.nan


class Good(NamedTuple):
    """Arguments of a d and the batch_shape it must have."""

    name: str
    arguments: dict[str, Any]
    batch_shape: tuple[int, ...]

    def make(self, **more: Any) -> ZeroInflatedLogNormal:
        return ZeroInflatedLogNormal(**self.arguments, **more)


def _t(*values: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


GOOD = [
    Good("numbers", {"mu": 0.5, "scale": 1, "zi_logits": -1.0}, ()),
    Good("scalars", {"mu": torch.tensor(0.1), "scale": torch.tensor(2.0), "zi_logits": torch.tensor(0.3)}, ()),
    Good("float32", {"mu": torch.zeros(3), "scale": torch.ones(3), "zi_logits": torch.zeros(3)}, (3,)),
    Good("float64", {"mu": _t(-1.0, 0.0), "scale": _t(0.1, 3.0), "zi_logits": _t(-2.0, 2.0)}, (2,)),
    Good("mixed numbers and tensors", {"mu": 0.0, "scale": _t(0.5, 1.5), "zi_logits": 1}, (2,)),
    Good(
        "per gene",
        {
            "mu": torch.linspace(-3, 3, 12).double().reshape(4, 3),
            "scale": _t(0.5, 1.0, 2.0),
            "zi_logits": _t(-1.0, 0.0, 1.0),
        },
        (4, 3),
    ),
    Good("outer", {"mu": torch.zeros(2, 1), "scale": torch.ones(3), "zi_logits": torch.zeros(5, 1, 1)}, (5, 2, 3)),
    Good("ones", {"mu": torch.zeros(1), "scale": torch.ones(1, 1), "zi_logits": 0.0}, (1, 1)),
    Good("empty", {"mu": torch.zeros(0), "scale": 1.0, "zi_logits": 0.0}, (0,)),
    Good("no zeros", {"mu": _t(0.3), "scale": 0.5, "zi_logits": -INF}, (1,)),
    Good("only zeros", {"mu": _t(0.3), "scale": 0.5, "zi_logits": INF}, (1,)),
    Good("all zero parts", {"mu": 0.0, "scale": 1.0, "zi_logits": _t(-INF, -200.0, 0.0, 200.0, INF)}, (5,)),
    Good("probabilities", {"mu": _t(0.0, 1.0), "scale": 0.7, "zi_probs": _t(0.0, 0.25)}, (2,)),
    Good("all probabilities", {"mu": 0.0, "scale": 1.0, "zi_probs": _t(0.0, 1e-30, 0.5, 1.0)}, (4,)),
    Good("cloglog", {"loc": _t(0.0, 1.0, 2.0), "scale": 0.7, "cloglog": _t(-3.0, 0.0, 2.0)}, (3,)),
    Good("all cloglogs", {"loc": 0.0, "scale": 1.0, "cloglog": _t(-INF, -200.0, -0.3, 6.0, 200.0, INF)}, (6,)),
    Good("named as torch does", {"loc": torch.zeros(2), "scale": torch.ones(2), "zi_logits": torch.ones(2)}, (2,)),
    Good("several dtypes", {"mu": torch.zeros(2).bfloat16(), "scale": torch.ones(2), "zi_logits": _t(0.3)}, (2,)),
    Good("whole numbers", {"mu": torch.tensor([1, 2]), "scale": torch.ones(2, dtype=torch.int32), "zi_probs": 0}, (2,)),
    Good("normal_mu", {"mu": torch.zeros(2), "scale": 1.0, "zi_logits": 0.0, "normal_mu": torch.ones(2)}, (2,)),
    Good("float16", {"mu": torch.zeros(2).half(), "scale": torch.ones(2).half(), "zi_logits": 0.0}, (2,)),
    Good("bfloat16", {"mu": torch.zeros(2).bfloat16(), "scale": torch.ones(2).bfloat16(), "zi_logits": 0.0}, (2,)),
]


class Bad(NamedTuple):
    """A call that must fail, with which error and which words in it."""

    name: str
    call: Callable[[], Any]
    error: type[Exception]
    words: str


def _ziln(**arguments: Any) -> ZeroInflatedLogNormal:
    defaults: dict[str, Any] = {"mu": 0.0, "scale": 1.0, "zi_logits": 0.0, "validate_args": True}
    return ZeroInflatedLogNormal(**{**defaults, **arguments})


def _gated(**zero: Any) -> ZeroInflatedLogNormal:
    return ZeroInflatedLogNormal(0.0, 1.0, validate_args=True, **zero)


def _censored(**arguments: Any) -> LeftCensoredZeroInflatedLogNormal:
    defaults: dict[str, Any] = {"loc": 0.0, "scale": 1.0, "zi_logits": 0.0, "limit": 0.5, "validate_args": True}
    return LeftCensoredZeroInflatedLogNormal(**{**defaults, **arguments})


X = torch.tensor([1.0, 2.0])
BAD = [
    # constraints
    Bad("scale zero", lambda: _ziln(scale=0.0), ValueError, r"parameter scale .*GreaterThan.*invalid values: 0\.0"),
    Bad(
        "scale negative",
        lambda: _ziln(scale=torch.tensor([1.0, -2.0])),
        ValueError,
        r"scale.*-2\.0 at index \(1,\) \(1 of 2",
    ),
    Bad("scale nan", lambda: _ziln(scale=NAN), ValueError, "parameter scale .*nan"),
    Bad("mu nan", lambda: _ziln(mu=torch.tensor([0.0, NAN])), ValueError, r"parameter loc \(mu\).*nan at index \(1,\)"),
    Bad("mu infinite", lambda: _ziln(mu=INF), ValueError, r"loc \(mu\).*be finite.*inf"),
    Bad("scale infinite", lambda: _ziln(scale=INF), ValueError, "scale.*be finite.*inf"),
    Bad("zi_logits nan", lambda: _ziln(zi_logits=NAN), ValueError, "parameter zi_logits .*Real.*nan"),
    Bad("zi_probs nan", lambda: _gated(zi_probs=NAN), ValueError, "parameter zi_probs .*nan"),
    Bad("zi_probs negative", lambda: _gated(zi_probs=-0.1), ValueError, "parameter zi_probs .*Interval"),
    Bad("zi_probs above one", lambda: _gated(zi_probs=torch.tensor(1.5)), ValueError, r"parameter zi_probs .*1\.5"),
    # how many zero parts
    Bad("no zero part", lambda: _gated(), ValueError, "exactly one of zi_logits, zi_probs and cloglog, got none"),
    Bad("two zero parts", lambda: _gated(zi_logits=0.0, zi_probs=0.5), ValueError, "got zi_logits and zi_probs"),
    Bad("cloglog nan", lambda: _gated(cloglog=NAN), ValueError, "parameter cloglog .*nan"),
    Bad(
        "loc missing", lambda: ZeroInflatedLogNormal(scale=1.0, zi_logits=0.0), ValueError, "exactly one of loc and mu"
    ),
    Bad("loc and mu", lambda: _ziln(loc=0.0), ValueError, "exactly one of loc and mu, got loc and mu"),
    # shapes
    Bad(
        "mu against scale",
        lambda: _ziln(mu=torch.zeros(3), scale=torch.ones(2)),
        ValueError,
        r"mu \(3,\), scale \(2,\)",
    ),
    Bad(
        "zero part against mu",
        lambda: _ziln(mu=torch.zeros(3), zi_logits=torch.zeros(4)),
        ValueError,
        r"zi_logits \(4,\)",
    ),
    Bad(
        "probs against mu",
        lambda: ZeroInflatedLogNormal(torch.zeros(3), 1.0, zi_probs=torch.full((4,), 0.5)),
        ValueError,
        r"do not broadcast.*zi_probs \(4,\)",
    ),
    Bad("normal_mu too large", lambda: _ziln(normal_mu=torch.ones(3)), ValueError, "cannot expand normal_mu"),
    Bad("normal_mu shape", lambda: _ziln(mu=torch.zeros(2), normal_mu=torch.ones(3)), ValueError, "normal_mu"),
    Bad("expand to fewer", lambda: _ziln(mu=torch.zeros(3)).expand((2,)), ValueError, r"batch_shape \(3,\)"),
    Bad("expand away", lambda: _ziln(mu=torch.zeros(3)).expand(()), ValueError, "cannot expand batch_shape"),
    Bad("value shape", lambda: _ziln(mu=torch.zeros(3)).log_prob(X), ValueError, r"value \(2,\), batch_shape \(3,\)"),
    Bad("cdf shape", lambda: _ziln(mu=torch.zeros(3)).cdf(X), ValueError, r"value \(2,\), batch_shape \(3,\)"),
    Bad("q shape", lambda: _ziln(mu=torch.zeros(3)).icdf(X / 3), ValueError, r"q \(2,\), batch_shape \(3,\)"),
    Bad(
        "divergence shapes",
        lambda: kl_divergence(_ziln(mu=torch.zeros(2)), _ziln(mu=torch.zeros(3))),
        ValueError,
        r"p \(2,\), q \(3,\)",
    ),
    Bad("to_event too many", lambda: _ziln(mu=torch.zeros(3)).to_event(2), ValueError, r"to_event\(2\)"),
    Bad("to_event too few", lambda: _ziln(mu=torch.zeros(3)).to_event(-1), ValueError, r"to_event\(-1\)"),
    # types
    Bad("mu bools", lambda: _ziln(mu=torch.tensor([True])), TypeError, "mu must be .*bool"),
    Bad("mu bool", lambda: _ziln(mu=True), TypeError, "mu must be a number .*got bool"),
    Bad("mu complex", lambda: _ziln(mu=torch.zeros(2, dtype=torch.cfloat)), TypeError, "mu must be .*complex64"),
    Bad("scale complex", lambda: _ziln(scale=1j), TypeError, "scale must be .*complex"),
    Bad("mu text", lambda: _ziln(mu="0"), TypeError, "mu must be .*got str"),
    Bad("mu list", lambda: _ziln(mu=[0.0, 1.0]), TypeError, r"mu must be .*got list.*torch\.as_tensor\(mu\)"),
    Bad("scale missing", lambda: _ziln(scale=None), TypeError, "scale must be .*NoneType"),
    Bad(
        "devices",
        lambda: _ziln(mu=torch.zeros(2), scale=torch.ones(2, device="meta")),
        ValueError,
        "share one device.*meta",
    ),
    Bad("value device", lambda: _ziln().log_prob(X.to("meta")), ValueError, "value is on meta, the parameters on cpu"),
    Bad("value bools", lambda: _ziln().log_prob(torch.tensor([True])), TypeError, "value must be .*bool"),
    Bad("value complex", lambda: _ziln().log_prob(X + 0j), TypeError, "value must be .*complex"),
    Bad("value text", lambda: _ziln().log_prob("1"), TypeError, "value must be .*str"),
    # values
    Bad(
        "value negative",
        lambda: _ziln().log_prob(torch.tensor([0.0, -1.0])),
        ValueError,
        r"support.*-1\.0 at index \(1,\)",
    ),
    Bad("value minus inf", lambda: _ziln().log_prob(torch.tensor(-INF)), ValueError, "support.*-inf"),
    Bad(
        "value nan", lambda: _ziln().log_prob(torch.tensor([[NAN, 0.0]])), ValueError, r"support.*nan at index \(0, 0\)"
    ),
    Bad("tiny negative", lambda: _ziln().log_prob(torch.tensor(-1e-30)), ValueError, "support"),
    Bad("to_event value", lambda: _ziln(mu=X).to_event(1).log_prob(-X), ValueError, "support"),
    Bad("cdf nan", lambda: _ziln().cdf(torch.tensor(NAN)), ValueError, "not NaN"),
    Bad("log_cdf nan", lambda: _ziln().log_cdf(torch.tensor(NAN)), ValueError, "not NaN"),
    Bad("survival nan", lambda: _ziln().log_survival_function(torch.tensor(NAN)), ValueError, "not NaN"),
    Bad("q above", lambda: _ziln().icdf(torch.tensor([0.5, 1.1])), ValueError, r"q .*\[0, 1\].*1\.1.* at index \(1,\)"),
    Bad("q below", lambda: _ziln().icdf(torch.tensor(-0.1)), ValueError, r"in \[0, 1\]"),
    Bad("q nan", lambda: _ziln().icdf(torch.tensor(NAN)), ValueError, r"in \[0, 1\]"),
    # other parametrisations
    Bad("mean zero", lambda: ZeroInflatedLogNormal.from_mean(0.0, 1.0, 0.0), ValueError, r"parameter mean .*0\.0"),
    Bad("mean infinite", lambda: ZeroInflatedLogNormal.from_mean(INF, 1.0, 0.0), ValueError, "mean.*be finite"),
    Bad("mean of nothing", lambda: ZeroInflatedLogNormal.from_mean(1.0, 1.0, INF), ValueError, "loc.*be finite"),
    Bad(
        "mean shape",
        lambda: ZeroInflatedLogNormal.from_mean(torch.ones(2), torch.ones(3), 0.0),
        ValueError,
        r"mean \(2,\), scale \(3,\)",
    ),
    Bad(
        "stddev below that of zeros",
        lambda: ZeroInflatedLogNormal.from_moments(2.0, torch.tensor([3.0, 1.0]), 0.5),
        ValueError,
        r"from_moments: stddev must .*above mean \* sqrt.*1\.0 at index \(1,\)",
    ),
    Bad("stddev nan", lambda: ZeroInflatedLogNormal.from_moments(2.0, NAN, 0.5), ValueError, "stddev must .*nan"),
    Bad("only zeros", lambda: ZeroInflatedLogNormal.from_moments(2.0, 3.0, 1.0), ValueError, r"zi_probs in \[0, 1\)"),
    # a detection limit
    Bad("limit negative", lambda: _censored(limit=-1.0), ValueError, r"parameter limit .*-1\.0"),
    Bad("limit infinite", lambda: _censored(limit=INF), ValueError, "limit.*be finite"),
    Bad("limit text", lambda: _censored(limit="1"), TypeError, "limit must be .*str"),
    Bad("limit shape", lambda: _censored(limit=torch.ones(3)).log_prob(X), ValueError, r"batch_shape \(3,\)"),
    Bad("censored negative", lambda: _censored().log_prob(-X), ValueError, "support.*-1"),
    Bad("censored nan", lambda: _censored().cdf(torch.tensor(NAN)), ValueError, "not NaN"),
    # the rest
    Bad(
        "transformed",
        lambda: dist.TransformedDistribution(_ziln().expand((2,)).to_event(1), [dist.transforms.AffineTransform(0, 2)]),
        NotImplementedError,
        r"TransformedDistribution of a ZeroInflatedLogNormal .*log\(c\) to loc",
    ),
    Bad("normalized key", lambda: _ziln().get_normalized("loc"), ValueError, "'mu' .*or 'scale' .*got 'loc'"),
    Bad("normalized none", lambda: _ziln().get_normalized(None), ValueError, "got None"),
    Bad("enumerate", lambda: _ziln().enumerate_support(), NotImplementedError, "ZeroInflatedLogNormalReparam"),
    Bad("has_rsample_", lambda: _ziln().has_rsample_(None), ValueError, "True"),
]
