"""The zero-inflated log-normal distribution."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import constraints

from pyro_zilognormal import density
from pyro_zilognormal.density.sparse import log_density_sum
from pyro_zilognormal.distribution import validation
from pyro_zilognormal.distribution.sampling import draw
from pyro_zilognormal.distribution.score import (
    ForwardsScore,
    PathwiseUnlessTraced,
    ScoreCount,
    provide_score,
    require_score,
)
from pyro_zilognormal.distribution.shared import SharesParameters, describe
from pyro_zilognormal.distribution.support import NonnegativeWithAtom
from pyro_zilognormal.numerics import moments, quantiles
from pyro_zilognormal.numerics.normal import exp_or_inf
from pyro_zilognormal.numerics.shapes import broadcast
from pyro_zilognormal.numerics.zero_part import ZERO_PARTS, ZeroPart


class ZeroInflatedLogNormal(ForwardsScore, SharesParameters):
    r"""Zero-inflated log-normal: exactly 0 with probability pi, log-normal otherwise.

    .. math::
        P(X = 0) = \pi = \operatorname{sigmoid}(\text{zi\_logits}), \qquad
        \log X \mid X > 0 \sim \operatorname{Normal}(\text{loc}, \text{scale})

    Densities are with respect to a point mass at 0 plus Lebesgue measure on x > 0. Only ``x == 0`` is a zero: there
    is no threshold, and 1e-30 is a positive number. It is a two-part (hurdle) distribution, so
    observed sites need no enumeration. A latent in a guide has pathwise gradients for loc and scale, and for the zero
    inflation those of the score function, which `Trace_ELBO` and `TraceEnum_ELBO` add. A latent under NUTS, HMC or an
    AutoGuide needs :class:`~pyro_zilognormal.ZeroInflatedLogNormalReparam`. To multiply X by c, add log c to loc: the
    `TransformedDistribution` of Pyro refuses this distribution, that of torch cannot be made to, and its density is
    wrong.

    Args:
        loc: mean of log X given X > 0, in log units of x. Number or tensor.
        scale: standard deviation of log X given X > 0, > 0.
        zi_logits: log odds of a zero, in [-inf, inf]: -inf is the log-normal, +inf the point mass at 0.
        normal_mu: normalised mean expression to carry along, used in no computation (as in scvi-tools).
        validate_args: check parameters and values; by default as torch's and Pyro's global switch says.
        mu: another name of loc, scvi-tools' own. Exactly one of the two must be given.
        zi_probs: probability of a zero, in [0, 1]. At exactly 0 or 1 an infinite logarithm is a constant, so an
            optimizer may stay there; learn zi_logits instead.
        cloglog: complementary log-log of P(X > 0), in [-inf, inf]: P(X > 0) = 1 - exp(-exp(cloglog)). If positive
            values arise at a rate proportional to a known depth, add log depth. Exactly one of zi_logits, zi_probs and
            cloglog must be given.

    The parameters broadcast to batch_shape without being copied, and are promoted to the widest floating dtype among
    the tensors; the event_shape is ().

    Raises:
        TypeError: a parameter that is not a number or a tensor of real numbers.
        ValueError: both or neither of loc and mu, not one of zi_logits, zi_probs and cloglog, shapes that do not
            broadcast, several devices, or, with validation, a parameter outside its constraint.

    References:
        J. Aitchison (1955), "On the distribution of a positive random variable having a discrete probability mass
        at the origin", JASA 50.

    Example:
        >>> import torch
        >>> from pyro_zilognormal import ZeroInflatedLogNormal
        >>> d = ZeroInflatedLogNormal(torch.tensor([0.0, 1.0]), scale=0.5, zi_logits=0.0)
        >>> d.log_prob(torch.tensor([0.0, 2.0]))
        tensor([-0.6931, -1.8004])
        >>> d.mean
        tensor([0.5666, 1.5401])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "zi_logits": constraints.real,
    }
    support = NonnegativeWithAtom()
    has_enumerate_support = False
    has_rsample = PathwiseUnlessTraced()

    def __init__(
        self,
        loc: float | Tensor | None = None,
        scale: float | Tensor | None = None,
        zi_logits: float | Tensor | None = None,
        normal_mu: float | Tensor | None = None,
        validate_args: bool | None = None,
        *,
        mu: float | Tensor | None = None,
        zi_probs: float | Tensor | None = None,
        cloglog: float | Tensor | None = None,
    ) -> None:
        location, loc = validation.only_one(loc=loc, mu=mu)
        parameter, zero = validation.only_one(zi_logits=zi_logits, zi_probs=zi_probs, cloglog=cloglog)
        self._loc, self._scale, zero = validation.as_tensors(**{location: loc, "scale": scale, parameter: zero})
        self._zero_part = ZERO_PARTS[parameter](zero)
        super().__init__(broadcast(self._loc.shape, self._scale.shape, zero.shape), validate_args)
        if self._validate_args:
            allowed = constraints.unit_interval if parameter == "zi_probs" else constraints.real
            validation.check_parameter("loc (mu)", self._loc, constraints.real, finite=True)
            validation.check_parameter("scale", self._scale, constraints.positive, finite=True)
            validation.check_parameter(parameter, zero, allowed, finite=False)
        if isinstance(normal_mu, Tensor):
            validation.check_expands("normal_mu", normal_mu.shape, self.batch_shape)
        self.normal_mu = normal_mu
        self._score_count = ScoreCount(parameter)

    @classmethod
    def from_mean(
        cls,
        mean: float | Tensor,
        scale: float | Tensor,
        zi_logits: float | Tensor | None = None,
        *,
        zi_probs: float | Tensor | None = None,
        cloglog: float | Tensor | None = None,
        validate_args: bool | None = None,
    ) -> Self:
        r"""The distribution with a given E[X], zeros included, as a regression of the marginal mean needs it.

        .. math:: \text{loc} = \log \text{mean} - \log(1 - \pi) - \text{scale}^2 / 2

        Args:
            mean: E[X] > 0, in units of x.
            scale: standard deviation of log X given X > 0, > 0.
            zi_logits, zi_probs, cloglog: the zero part, as in the constructor; P(X = 0) < 1.
            validate_args: as in the constructor.

        Raises:
            TypeError, ValueError: as the constructor, or, with validation, a mean that is not positive and finite.

        Example:
            >>> d = ZeroInflatedLogNormal.from_mean(3.0, 0.5, zi_probs=0.25)
            >>> d.mean, d.zi_probs
            (tensor(3.), tensor(0.2500))
        """
        parameter, zero = validation.only_one(zi_logits=zi_logits, zi_probs=zi_probs, cloglog=cloglog)
        mean, scale, zero = validation.as_tensors(**{"mean": mean, "scale": scale, parameter: zero})
        if cls._validate_args if validate_args is None else validate_args:
            validation.check_parameter("mean", mean, constraints.positive, finite=True)
        loc = moments.loc_of_mean(mean, scale, ZERO_PARTS[parameter](zero))
        return cls(loc, scale, validate_args=validate_args, **{parameter: zero})

    @classmethod
    def from_moments(
        cls, mean: float | Tensor, stddev: float | Tensor, zi_probs: float | Tensor, validate_args: bool | None = None
    ) -> Self:
        r"""The distribution with a given mean and standard deviation of X, zeros included.

        .. math:: \text{scale}^2 = \log\big((1 - \pi)(1 + (\text{stddev} / \text{mean})^2)\big)

        Args:
            mean: E[X] > 0, in units of x.
            stddev: the standard deviation of X, in units of x, above mean sqrt(pi / (1 - pi)): the zeros alone give
                that much.
            zi_probs: probability of a zero, in [0, 1).
            validate_args: as in the constructor.

        Raises:
            TypeError, ValueError: as the constructor, or, with validation, moments that no distribution has.

        Example:
            >>> d = ZeroInflatedLogNormal.from_moments(3.0, 4.0, zi_probs=0.25)
            >>> d.mean, d.stddev
            (tensor(3.), tensor(4.))
        """
        mean, stddev, zero = validation.as_tensors(mean=mean, stddev=stddev, zi_probs=zi_probs)
        loc, scale = moments.loc_and_scale(mean, stddev, ZERO_PARTS["zi_probs"](zero))
        if cls._validate_args if validate_args is None else validate_args:
            validation.check_parameter("mean", mean, constraints.positive, finite=True)
            validation.check_moments(stddev, scale)
        return cls(loc, scale, zi_probs=zero, validate_args=validate_args)

    @property
    def loc(self) -> Tensor:
        """Mean of log X given X > 0, of shape batch_shape."""
        return self._full(self._loc)

    @property
    def scale(self) -> Tensor:
        """Standard deviation of log X given X > 0, of shape batch_shape."""
        return self._full(self._scale)

    @property
    def zi_logits(self) -> Tensor:
        """log pi - log(1 - pi), of shape batch_shape."""
        return self._full(self._zero_part.logits)

    @property
    def zi_probs(self) -> Tensor:
        """pi = P(X = 0), of shape batch_shape."""
        return self._full(self._parameters()[2].zero)

    @property
    def prob_positive(self) -> Tensor:
        """1 - pi = P(X > 0), accurate also where pi rounds to 1, of shape batch_shape."""
        return self._full(self._parameters()[2].positive)

    def get_normalized(self, key: str) -> float | Tensor | None:
        """scvi-tools' accessor: "mu" gives loc, "scale" gives normal_mu."""
        if key == "mu":
            return self.loc
        if key == "scale":
            return self.normal_mu
        raise ValueError(f"get_normalized: key must be 'mu' (loc) or 'scale' (normal_mu), got {key!r}.")

    def clear_cache(self) -> None:
        """Do nothing: no value is ever cached. Here because code written for scvi-tools or Pyro may call it."""

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Self:
        """The same distribution with a larger batch_shape; parameters are shared, not copied."""
        new = super().expand(batch_shape, _instance)
        new._score_count = ScoreCount(self._zero_part.parameter)
        return new

    def log_prob(self, value: Tensor | float) -> Tensor:
        """log pi at 0, log(1 - pi) + log LogNormal(x; mu, scale) above, -inf below and at infinity.

        Args:
            value: x, broadcastable with batch_shape.

        Raises:
            ValueError: with validation, a negative or NaN value (without it: -inf, NaN).

        Example:
            >>> ZeroInflatedLogNormal(0.0, 1.0, zi_probs=0.25).log_prob(torch.tensor([0.0, 1e-30, 1.0]))
            tensor([-1.3863e+00, -2.3180e+03, -1.2066e+00])
        """
        return self._at(density.log_density, value, 0, math.inf, "in the support, >= 0")

    def log_prob_sum(self, value: Any, dim: int | None = None) -> Tensor:
        r"""The sum of `log_prob` over sparse data, without making them dense.

        .. math:: \sum_{x > 0} \log p(x) + \sum_{x = 0} \log \pi

        The first sum goes over the stored values. The second multiplies each log pi by how often it counts; where the
        zero inflation and the result together vary along both dimensions, it is a pass over all entries of the matrix.

        Args:
            value: x, a scipy CSR matrix or array, or a torch tensor of layout sparse_csr, of shape (rows, columns) to
                which batch_shape broadcasts.
            dim: the dimension to sum over: 0 for the sum of each column, 1 for that of each row, None for all.

        Returns:
            The sums, of shape (columns,), (rows,) or (); differentiable in the parameters.

        Raises:
            TypeError: another kind of value.
            ValueError: shapes that do not fit, entries stored twice, another dim, or, with validation, a negative or
                NaN value.

        Example:
            >>> from scipy.sparse import csr_array
            >>> x = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
            >>> d = ZeroInflatedLogNormal(torch.zeros(3), 1.0, torch.tensor([0.0, 0.0, 2.0]))
            >>> d.log_prob_sum(csr_array(x.numpy()), dim=0)
            tensor([-2.3052, -3.2386, -0.2539])
            >>> d.log_prob(x).sum(0)
            tensor([-2.3052, -3.2386, -0.2539])
        """
        if dim not in (None, 0, 1):
            raise ValueError(f"ZeroInflatedLogNormal.log_prob_sum: dim must be 0, 1 or None, got {dim!r}.")
        entries = validation.as_entries(value, self._loc.device, self.batch_shape)
        if self._validate_args:
            validation.check_values("value", entries.values, 0, math.inf, "in the support, >= 0")
        total = log_density_sum(entries, *self._parameters(), dim)
        return total.to(torch.promote_types(self._loc.dtype, entries.values.dtype))

    def score_parts(self, value: Tensor) -> ScoreParts:
        """The terms of Pyro's estimators: gradients are pathwise for mu and scale, by the score function for pi.

        With `has_rsample_(False)` the score is the whole of log_prob.
        """
        parts = super().score_parts(value)
        if not self.has_rsample:
            return parts
        zero = self._zero_part
        log_bernoulli = torch.where(value == 0, zero.log_zero, zero.log_positive)
        score = provide_score(self._full(log_bernoulli), zero.tensor, self._score_count)
        return ScoreParts(parts.log_prob, score, parts.entropy_term)

    def sample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Draws of shape sample_shape + batch_shape, without gradient. Positive draws never round to 0 or inf."""
        with torch.no_grad():
            return self.rsample(sample_shape).detach()  # torch.jit.trace does not record no_grad

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Draws of shape sample_shape + batch_shape: 0 where a uniform is below pi, else exp(mu + scale eps).

        They are differentiable in mu and scale. For the zero inflation there is no pathwise gradient: an estimator that
        differentiates a draw with respect to it without its score (see `score_parts`) gets a RuntimeError, not a biased
        gradient.
        """
        shape = self._extended_shape(() if sample_shape is None else sample_shape)
        x = draw(shape, *self._parameters(), self._loc.dtype).to(self._loc.dtype)
        return require_score(x, self._zero_part.tensor, self._score_count)

    def sample_n(self, n: int) -> Tensor:
        """n draws, of shape (n,) + batch_shape."""
        return self.sample(torch.Size((n,)))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Not possible: the support is not finite. See :class:`~pyro_zilognormal.ZeroInflatedLogNormalReparam`."""
        raise NotImplementedError(
            "ZeroInflatedLogNormal has uncountable support, so it cannot be enumerated. Observed sites need no "
            "enumeration; ZeroInflatedLogNormalReparam splits a latent site, so that it can be enumerated."
        )

    @property
    def mean(self) -> Tensor:
        """E[X] = (1 - pi) exp(mu + scale^2 / 2)."""
        return self._full(moments.mean(*self._parameters()))

    @property
    def log_mean(self) -> Tensor:
        """log E[X] = log(1 - pi) + mu + scale^2 / 2, finite where the mean overflows."""
        return self._full(moments.log_mean(*self._parameters()))

    @property
    def variance(self) -> Tensor:
        """Var[X] = E[LN]^2 (1 - pi) (expm1(scale^2) + pi), with E[LN] = exp(mu + scale^2 / 2)."""
        return self._full(moments.variance(*self._parameters()))

    @property
    def stddev(self) -> Tensor:
        """sqrt(Var[X]), finite where the variance overflows."""
        return self._full(moments.stddev(*self._parameters()))

    @property
    def mode(self) -> Tensor:
        """The argmax of log_prob, which is 0, or the peak exp(mu - scale^2) of the positive part if that is higher.

        It compares a probability mass with a density, so it depends on the unit of x.
        """
        return self._full(moments.mode(*self._parameters()))

    @property
    def median(self) -> Tensor:
        """icdf(1/2); 0 if pi >= 1/2."""
        return self._full(quantiles.median(*self._parameters()))

    def entropy(self) -> Tensor:
        """-E[log_prob(X)] in nats: H(Bernoulli(pi)) + (1 - pi) (mu + 1/2 + log(scale sqrt(2 pi)))."""
        return self._full(moments.entropy(*self._parameters()))

    def perplexity(self) -> Tensor:
        """exp(entropy)."""
        return self._full(exp_or_inf(moments.entropy(*self._parameters())))

    def cdf(self, value: Tensor | float) -> Tensor:
        """P(X <= x): 0 below 0, pi at 0, pi + (1 - pi) Phi((log x - mu) / scale) above.

        Raises:
            ValueError: with validation, a NaN value.

        Example:
            >>> ZeroInflatedLogNormal(0.0, 1.0, zi_probs=0.25).cdf(torch.tensor([-1.0, 0.0, 1.0]))
            tensor([0.0000, 0.2500, 0.6250])
        """
        return self._at(quantiles.cdf, value)

    def log_cdf(self, value: Tensor | float) -> Tensor:
        """log P(X <= x), accurate in both tails."""
        return self._at(quantiles.log_cdf, value)

    def log_survival_function(self, value: Tensor | float) -> Tensor:
        """log P(X > x), accurate in both tails."""
        return self._at(quantiles.log_survival_function, value)

    def icdf(self, value: Tensor | float) -> Tensor:
        """The quantile function: 0 for q <= pi, else exp(mu + scale Phi^-1((q - pi) / (1 - pi))).

        Args:
            value: q in [0, 1], broadcastable with batch_shape.

        Raises:
            ValueError: with validation, q outside [0, 1] or NaN (without it: NaN).

        Example:
            >>> ZeroInflatedLogNormal(0.0, 1.0, zi_probs=0.25).icdf(torch.tensor([0.1, 0.25, 0.625]))
            tensor([0., 0., 1.])
        """
        return self._at(quantiles.icdf, value, 0, 1, "in [0, 1]", name="q")

    def _at(
        self,
        function: Callable[..., Tensor],
        value: Tensor | float,
        low: float = -math.inf,
        high: float = math.inf,
        needed: str = "a number, not NaN",
        name: str = "value",
    ) -> Tensor:
        """The function of a value in [low, high] and the parameters, in the more precise of their dtypes."""
        value = validation.as_value(name, value, self._loc, self.batch_shape)
        if self._validate_args:
            validation.check_values(name, value, low, high, needed)
        loc, scale, zero_part = self._parameters()
        wide = value.to(torch.promote_types(value.dtype, loc.dtype))
        return self._full(function(wide, loc, scale, zero_part), value.dtype)

    def _parameters(self) -> tuple[Tensor, Tensor, ZeroPart]:
        """The parameters to compute with, in at least float32: half types lack digits, and some functions."""
        wide = torch.promote_types(self._loc.dtype, torch.float32)
        if wide == self._loc.dtype:
            return self._loc, self._scale, self._zero_part
        return self._loc.to(wide), self._scale.to(wide), self._zero_part.to(wide)

    def _full(self, result: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The result in the dtype of parameters and value, with the dimensions that only batch_shape knows of."""
        dtype = torch.promote_types(self._loc.dtype, dtype or self._loc.dtype)
        return result.to(dtype).expand(broadcast(result.shape, self.batch_shape))

    def __repr__(self) -> str:
        shown = {"loc": self._loc, "scale": self._scale, self._zero_part.parameter: self._zero_part.tensor}
        parts = [f"{k}: {describe(v, self.batch_shape)}" for k, v in shown.items()]
        return f"ZeroInflatedLogNormal({', '.join(parts)})"
