"""A scikit-learn regressor that predicts a zero-inflated log-normal; needs ``pyro-zilognormal[sklearn]``."""

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.nn.utils import parameters_to_vector, skip_init, vector_to_parameters

from pyro_zilognormal.distribution import ZeroInflatedLogNormal
from pyro_zilognormal.nn.loss import ZILNHead, ziln_distribution, ziln_loss
from pyro_zilognormal.nn.metrics import crps_skill

try:
    from scipy.optimize import OptimizeResult, minimize
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.preprocessing import StandardScaler
    from sklearn.utils import Tags, check_random_state
    from sklearn.utils._param_validation import Interval, StrOptions
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("ZILNRegressor needs scikit-learn: pip install 'pyro-zilognormal[sklearn]'") from error


class ZILNRegressor(RegressorMixin, BaseEstimator):
    """Regression for outcomes that are 0 or positive and skewed, such as what customers spend or what claims cost.

    Each row gets its own probability of a zero and its own log-normal for the positive part: all three parameters are
    linear in the features, or outputs of a small network. L-BFGS maximises the likelihood of all rows at once, so there
    is no learning rate, and all rows must fit into memory. Features are standardised inside. One further observation,
    drawn from the distribution of all outcomes and spread over the rows, keeps the likelihood bounded where the data do
    not: outcomes that are constant or perfectly predictable.

    Args:
        hidden_layer_sizes: widths of the hidden layers; none for a linear model.
        alpha: L2 penalty, alpha / 2 times the sum of squared weights (not biases), added to the mean loss; >= 0.
        early_stopping: hold rows out, stop when their loss no longer falls, and keep the best parameters. "auto" does
            so for networks and not for linear models.
        validation_fraction: the share of rows to hold out for early stopping, in (0, 1), rounded down to whole rows.
        n_iter_no_change: how many iterations without improvement end early stopping.
        max_iter: the largest number of iterations.
        tol: without early stopping, end when no derivative is larger; >= 0.
        random_state: of the held-out rows and of a network's first weights: a seed, a numpy RandomState, or None for
            numpy's global one. A linear model without early stopping needs none.

    Attributes:
        network_: the fitted torch module, in float64, from features to a ZeroInflatedLogNormal.
        n_iter_: the number of iterations.
        validation_loss_: the best mean loss of the held-out rows, in nats; None without early stopping.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(500, 2))
        >>> y = np.exp(3 + X[:, 0] + rng.normal(size=500)) * (rng.random(500) < 0.4)
        >>> model = ZILNRegressor().fit(X, y)
        >>> model.predict(X[:2]).round(1), model.predict_proba_positive(X[:2]).round(2)
        (array([19.9, 35.9]), array([0.46, 0.48]))
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "hidden_layer_sizes": ["array-like"],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "early_stopping": ["boolean", StrOptions({"auto"})],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (),
        *,
        alpha: float = 1e-4,
        early_stopping: bool | str = "auto",
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        max_iter: int = 1000,
        tol: float = 1e-7,
        random_state: Any = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.alpha = alpha
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "ZILNRegressor":
        """Fit the model.

        Args:
            X: features, of shape (n, features): array or pandas DataFrame.
            y: outcomes >= 0, of shape (n,), in any unit.
            sample_weight: of each row, >= 0. A weight of 2 counts as two equal rows.

        Returns:
            The estimator itself.

        Raises:
            ValueError: a negative outcome, NaN or infinite values, or an argument out of its range.
            TypeError: an argument of another type.
        """
        self._validate_params()
        rows, random = self._check_rows(X, y, sample_weight), check_random_state(self.random_state)
        held_out = torch.zeros(len(rows.y), dtype=torch.bool)
        if self.early_stopping is True or (self.early_stopping == "auto" and len(self.hidden_layer_sizes) > 0):
            held_out[random.permutation(len(held_out))[: int(self.validation_fraction * len(held_out))]] = True
        train = rows.choose(~held_out)
        self.network_ = _Network(train, self.hidden_layer_sizes, random)
        stop = _EarlyStopping(self.network_, rows.choose(held_out), self.n_iter_no_change) if held_out.any() else None
        self._minimize(_objective(self.network_, train, self.alpha), stop)
        return self

    def _check_rows(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None) -> "_Rows":
        """The rows with a positive weight: a weight of 0 is the same as no row."""
        features, outcomes = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        if outcomes.min() < 0:
            raise ValueError(
                f"y must not be negative, got {outcomes.min()}. Decide what such rows mean, and clean them."
            )
        weight = _check_sample_weight(sample_weight, features, dtype=np.float64, ensure_non_negative=True)
        if not weight.any():  # scikit-learn checks it from 1.8 on
            raise ValueError("sample_weight must be positive for at least one row, got only zeros.")
        rows = _Rows(*(torch.tensor(array, dtype=torch.float64) for array in (features, outcomes, weight)))
        return rows.choose(rows.weight > 0)

    def _minimize(self, objective: Callable[..., Any], stop: "_EarlyStopping | None") -> None:
        options = {"maxiter": self.max_iter, "maxfun": 20 * self.max_iter, "gtol": self.tol, "ftol": 0.0}
        start = self.network_.get()
        found = minimize(objective, start, jac=True, method="L-BFGS-B", callback=stop, options=options)
        self.n_iter_ = found.nit
        # Status 1 is too many iterations; the others that are no success are also what scipy calls an early stop.
        if found.status == 1 or (stop is None and not found.success):
            warnings.warn(
                f"ZILNRegressor has not converged after {found.nit} iterations ({found.message}). Increase max_iter "
                f"({self.max_iter}), tol or alpha, or stop early.",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.validation_loss_ = None if stop is None else stop.best_loss
        self.network_.set(found.x if stop is None else stop.best)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The expected outcome E[y] of each row, of shape (n,)."""
        return self.predict_dist(X).mean.numpy()

    def predict_quantile(self, X: ArrayLike, q: ArrayLike = 0.5) -> np.ndarray:
        """The quantiles of each row; by default the median.

        Args:
            X: features, of shape (n, features).
            q: a level, or several, in [0, 1], for an array of shape (n, len(q)).
        """
        levels = torch.tensor(np.asarray(q), dtype=torch.float64)
        return self.predict_dist(X).icdf(levels[..., None]).movedim(-1, 0).numpy()

    def predict_proba_positive(self, X: ArrayLike) -> np.ndarray:
        """P(y > 0) of each row, of shape (n,)."""
        return self.predict_dist(X).prob_positive.numpy()

    def predict_dist(self, X: ArrayLike) -> ZeroInflatedLogNormal:
        """The distribution of each row, of batch_shape (n,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        with torch.no_grad():
            return self.network_(torch.tensor(X))

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """The CRPS skill score of the predicted distributions, 1 at best; see `crps_skill`."""
        return crps_skill(self.predict_dist(X), y, sample_weight)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags


class _Rows(NamedTuple):
    """Features, outcomes and weights."""

    x: Tensor
    y: Tensor
    weight: Tensor

    def choose(self, rows: Tensor) -> "_Rows":
        return _Rows(*(values[rows] for values in self))


class _Network(nn.Module):
    """From features to distributions, at first that of all outcomes. Torch's global random state is not touched."""

    mean: Tensor
    scale: Tensor

    def __init__(self, rows: _Rows, widths: Sequence[int], random: np.random.RandomState) -> None:
        super().__init__()
        scaler = StandardScaler().fit(rows.x.numpy(), sample_weight=rows.weight.numpy())
        self.register_buffer("mean", torch.tensor(scaler.mean_))
        self.register_buffer("scale", torch.tensor(scaler.scale_))  # of a constant: 1
        sizes = [len(self.mean), *widths]
        self.hidden = nn.Sequential()
        for fan_in, width in itertools.pairwise(sizes):
            linear = skip_init(nn.Linear, fan_in, width, dtype=torch.float64)
            for parameter in linear.parameters():
                parameter.data = torch.tensor(random.uniform(-1, 1, parameter.shape)) / math.sqrt(fan_in)
            self.hidden.extend([linear, nn.SiLU()])
        self.head = ZILNHead(sizes[-1], dtype=torch.float64).start_at(rows.y, rows.weight)

    def params(self, x: Tensor) -> Tensor:
        return self.head.params(self.hidden((x - self.mean) / self.scale))

    def forward(self, x: Tensor) -> ZeroInflatedLogNormal:
        return ziln_distribution(self.params(x))

    def get(self) -> np.ndarray:
        return parameters_to_vector(self.parameters()).detach().numpy()

    def set(self, vector: np.ndarray) -> None:
        vector_to_parameters(torch.tensor(vector), self.parameters())


def _objective(network: _Network, rows: _Rows, alpha: float) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """The penalised mean loss of the rows and its gradient, as a function of all parameters in one vector."""
    everyone, parameters = ziln_distribution(network.head.bias.detach().clone()), list(network.parameters())
    total = rows.weight.sum()

    def evaluate(vector: np.ndarray) -> tuple[float, np.ndarray]:
        network.set(vector)
        predicted = ziln_distribution(network.params(rows.x), validate_args=False)  # a trial step may go too far
        losses = _expected_loss(everyone, predicted) / total - predicted.log_prob(rows.y)
        penalty = sum(p.square().sum() for p in parameters if p.dim() == 2)
        loss = (rows.weight * losses).sum() / total + alpha / 2 * penalty
        return loss.item(), parameters_to_vector(torch.autograd.grad(loss, parameters)).numpy()

    return evaluate


def _expected_loss(truth: ZeroInflatedLogNormal, predicted: ZeroInflatedLogNormal) -> Tensor:
    """E[-log p(X)] for X of the truth, but for a constant."""
    zero, positive, scale = logsigmoid(predicted.zi_logits), logsigmoid(-predicted.zi_logits), predicted.scale
    squares = (truth.scale**2 + (truth.loc - predicted.loc) ** 2) / (2 * scale**2)
    return truth.prob_positive * (scale.log() + squares - positive) - truth.zi_probs * zero


class _EarlyStopping:
    """Ends the minimisation when the loss of held-out rows has not improved for some iterations; keeps the best."""

    def __init__(self, network: _Network, rows: _Rows, patience: int) -> None:
        self._network, self._rows, self._patience, self._waited = network, rows, patience, 0
        self.best, self.best_loss = network.get(), self._loss()

    @torch.no_grad()
    def _loss(self) -> float:
        return ziln_loss(self._network.params(self._rows.x), self._rows.y, weight=self._rows.weight).item()

    def __call__(self, intermediate_result: OptimizeResult) -> None:
        self._network.set(intermediate_result.x)
        loss, self._waited = self._loss(), self._waited + 1
        if loss < self.best_loss:
            self.best, self.best_loss, self._waited = intermediate_result.x.copy(), loss, 0
        if self._waited >= self._patience:
            raise StopIteration
