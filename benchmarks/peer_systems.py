"""The zero-inflated log-normals of other packages, and ours, behind one small interface.

Each system says how to build its distribution and how to ask it for a number, a gradient or draws, in float64. Nothing
is repaired on the way: what a system answers, or refuses, is passed on.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peer_exact import Exact


class TorchSystem:
    """A distribution built on torch by `build(mu, scale, gate, validate)`, gate as logits or probability."""

    def __init__(self, name: str, package: str, build: Callable[..., Any], gate_is: str = "zi_logits") -> None:
        self.name, self.version = name, importlib.metadata.version(package)
        self.build, self.gate_is = build, gate_is

    def make(self, exact: Exact, validate: bool = False, *, grad: bool = False) -> tuple[Any, list[torch.Tensor]]:
        values = (exact.mu, exact.scale, getattr(exact, self.gate_is))
        parameters = [torch.tensor(v, dtype=torch.float64, requires_grad=grad) for v in values]
        return self.build(*parameters, validate), parameters

    def number(self, exact: Exact, member: str, *arguments: float, validate: bool = False) -> float:
        found = getattr(self.make(exact, validate)[0], member)
        tensors = [torch.tensor(a, dtype=torch.float64) for a in arguments]
        return float(found(*tensors) if inspect.ismethod(found) else found)

    def kl(self, p: Exact, q: Exact) -> float:
        return float(torch.distributions.kl_divergence(self.make(p)[0], self.make(q)[0]))

    def value_and_slopes(self, exact: Exact, x: float) -> list[float]:
        found, parameters = self.make(exact, grad=True)
        value = found.log_prob(torch.tensor(x, dtype=torch.float64))
        return [float(value), *(float(slope) for slope in torch.autograd.grad(value, parameters))]

    def draws(self, exact: Exact, member: str, n: int) -> np.ndarray:
        torch.manual_seed(0)
        return getattr(self.make(exact)[0], member)((n,)).detach().numpy()

    def expanded_shape(self, exact: Exact) -> tuple[int, ...]:
        return tuple(self.make(exact)[0].expand((3,)).sample().shape)

    def in_pyro(self, exact: Exact, observed: float | None) -> float:
        """The mean log density of 100 cells in a Pyro model, drawn or all observed at a value."""
        import pyro

        def model() -> None:
            seen = None if observed is None else torch.full((100,), observed, dtype=torch.float64)
            with pyro.plate("cells", 100):
                pyro.sample("x", self.make(exact)[0], obs=seen)

        torch.manual_seed(0)
        return float(pyro.poutine.trace(model).get_trace().log_prob_sum()) / 100


class NumPyroSystem:
    """NumPyro's HurdleLogNormal, whose class takes a probability."""

    name, gate_is = "NumPyro", "gate"

    def __init__(self) -> None:
        import jax

        jax.config.update("jax_enable_x64", True)
        self.jax, self.version = jax, importlib.metadata.version("numpyro")

    def make(self, exact: Exact, validate: bool = False) -> Any:
        from numpyro.distributions import HurdleLogNormal

        return HurdleLogNormal(exact.gate, exact.mu, exact.scale, validate_args=validate)

    def number(self, exact: Exact, member: str, *arguments: float, validate: bool = False) -> float:
        found = getattr(self.make(exact, validate), member)
        return float(found(*(self.jax.numpy.asarray(a) for a in arguments)) if callable(found) else found)

    def kl(self, p: Exact, q: Exact) -> float:
        from numpyro.distributions import kl_divergence

        return float(kl_divergence(self.make(p), self.make(q)))

    def value_and_slopes(self, exact: Exact, x: float) -> list[float]:
        from numpyro.distributions import HurdleLogNormal

        def log_prob(mu: Any, scale: Any, gate: Any) -> Any:
            return HurdleLogNormal(gate, mu, scale).log_prob(x)

        value, slopes = self.jax.value_and_grad(log_prob, (0, 1, 2))(exact.mu, exact.scale, exact.gate)
        return [float(value), *(float(slope) for slope in slopes)]

    def draws(self, exact: Exact, member: str, n: int) -> np.ndarray:
        return np.asarray(getattr(self.make(exact), member)(self.jax.random.PRNGKey(0), (n,)))

    def expanded_shape(self, exact: Exact) -> tuple[int, ...]:
        return tuple(self.make(exact).expand((3,)).sample(self.jax.random.PRNGKey(0)).shape)

    def in_pyro(self, exact: Exact, observed: float | None) -> float:
        raise NotImplementedError("not a Pyro distribution")


class TFPSystem:
    """TensorFlow Probability's Inflated over a LogNormal, gate given as logits."""

    name, gate_is, keyword = "TFP", "zi_logits", "inflated_loc_logits"

    def __init__(self) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow as tf
        import tensorflow_probability as tfp

        self.tf, self.tfd, self.version = tf, tfp.distributions, tfp.__version__

    def make(self, exact: Exact, validate: bool = False) -> tuple[Any, list[Any]]:
        values = (exact.mu, exact.scale, getattr(exact, self.gate_is))
        parameters = [self.tf.Variable(value, dtype=self.tf.float64) for value in values]
        base = self.tfd.LogNormal(*parameters[:2], validate_args=validate)
        return self.tfd.Inflated(base, **{self.keyword: parameters[2]}, validate_args=validate), parameters

    def number(self, exact: Exact, member: str, *arguments: float, validate: bool = False) -> float:
        member = "quantile" if member == "icdf" else member
        found = getattr(self.make(exact, validate)[0], member)
        return float(found(*(self.tf.constant(a, self.tf.float64) for a in arguments)))

    def kl(self, p: Exact, q: Exact) -> float:
        return float(self.tfd.kl_divergence(self.make(p)[0], self.make(q)[0]))

    def value_and_slopes(self, exact: Exact, x: float) -> list[float]:
        with self.tf.GradientTape() as tape:
            found, parameters = self.make(exact)
            value = found.log_prob(self.tf.constant(x, self.tf.float64))
        return [float(value), *(float(slope) for slope in tape.gradient(value, parameters))]

    def draws(self, exact: Exact, member: str, n: int) -> np.ndarray:
        found = self.make(exact)[0]
        if member == "rsample" and found.reparameterization_type == self.tfd.NOT_REPARAMETERIZED:
            raise NotImplementedError("not reparameterized")
        return found.sample(n, seed=0).numpy()

    def expanded_shape(self, exact: Exact) -> tuple[int, ...]:
        return tuple(self.make(exact)[0].expand((3,)).sample(seed=0).shape)

    def in_pyro(self, exact: Exact, observed: float | None) -> float:
        raise NotImplementedError("not a Pyro distribution")


class TFPProbsSystem(TFPSystem):
    """The same, gate given as a probability."""

    gate_is, keyword = "gate", "inflated_loc_probs"


def scvi_system() -> TorchSystem:
    from scvi.distributions import ZeroInflatedLogNormal

    def build(mu: torch.Tensor, scale: torch.Tensor, gate: torch.Tensor, validate: bool) -> Any:
        return ZeroInflatedLogNormal(mu, scale, gate, validate_args=validate)

    return TorchSystem("scvi-tools", "scvi-tools", build)


def pyro_system() -> TorchSystem:
    from pyro.distributions import LogNormal, ZeroInflatedDistribution

    def build(mu: torch.Tensor, scale: torch.Tensor, gate: torch.Tensor, validate: bool) -> Any:
        base = LogNormal(mu, scale, validate_args=validate)
        for part in (base, base.base_dist):
            part._validate_args = validate  # a LogNormal made without validation still holds a Normal with it
        return ZeroInflatedDistribution(base, gate_logits=gate, validate_args=validate)

    return TorchSystem("Pyro", "pyro-ppl", build)


def xgboostlss_system() -> TorchSystem:
    from xgboostlss.distributions.zero_inflated import ZeroAdjustedLogNormal

    def build(mu: torch.Tensor, scale: torch.Tensor, gate: torch.Tensor, validate: bool) -> Any:
        return ZeroAdjustedLogNormal(mu, scale, gate, validate_args=validate)

    return TorchSystem("XGBoostLSS", "xgboostlss", build, gate_is="gate")


def our_system() -> TorchSystem:
    from pyro_zilognormal import ZeroInflatedLogNormal, __version__

    def build(mu: torch.Tensor, scale: torch.Tensor, gate: torch.Tensor, validate: bool) -> Any:
        return ZeroInflatedLogNormal(mu, scale, gate, validate_args=validate)

    ours = TorchSystem("ours", "torch", build)
    ours.version = __version__
    return ours
