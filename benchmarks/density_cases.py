"""The log density of zero-inflated log-normals, forward and backward, in each package that has one."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import NamedTuple

import torch
from scvi_class import scvi_class
from torch import Tensor

Step = Callable[[], object]
Make = Callable[[Tensor, Tensor, Tensor], torch.distributions.Distribution]


class Data(NamedTuple):
    """Values, and parameters that need a gradient."""

    x: Tensor
    parameters: list[Tensor]

    @classmethod
    def drawn(cls, rows: int, columns: int, zeros: float, per_gene: bool, device: str = "cpu") -> Data:
        """mu for each entry; scale and logits for each entry or each column; a share of zeros."""
        generator = torch.Generator().manual_seed(0)
        shape = (columns,) if per_gene else (rows, columns)
        mu = torch.randn(rows, columns, generator=generator)
        scale = 0.5 + torch.rand(shape, generator=generator)
        logits = torch.randn(shape, generator=generator)
        x = (mu + torch.randn(mu.shape, generator=generator)).exp()
        x[torch.rand(mu.shape, generator=generator) < zeros] = 0
        return cls(x.to(device), [p.to(device).requires_grad_() for p in (mu, scale, logits)])


def ours(mu: Tensor, scale: Tensor, logits: Tensor, validate: bool = False) -> torch.distributions.Distribution:
    from pyro_zilognormal import ZeroInflatedLogNormal

    return ZeroInflatedLogNormal(mu, scale, logits, validate_args=validate)


def scvi_tools() -> Make:
    kind, _ = scvi_class()
    return lambda mu, scale, logits: kind(mu, scale, logits, validate_args=False)


def pyro_zero_inflated() -> Make:
    from pyro.distributions import LogNormal, ZeroInflatedDistribution

    return lambda mu, scale, logits: ZeroInflatedDistribution(
        LogNormal(mu, scale, validate_args=False), gate_logits=logits, validate_args=False
    )


def torch_step(make: Make, data: Data, compiled: bool = False, mask: Tensor | None = None) -> Step:
    """Forward and backward of the sum of log_prob, the distribution built anew as in a training step."""

    def total(x: Tensor, *parameters: Tensor) -> Tensor:
        found = make(*parameters).log_prob(x)
        return (found if mask is None else torch.where(mask, found, 0)).sum()

    function = torch.compile(total) if compiled else total

    def step() -> None:
        for parameter in data.parameters:
            parameter.grad = None
        function(data.x, *data.parameters).backward()
        if data.x.is_cuda:
            torch.cuda.synchronize()

    return step


def numpyro_step(data: Data) -> Step:
    """The same in NumPyro under jit."""
    import jax
    from numpyro.distributions import HurdleLogits, LogNormal

    def total(mu: object, scale: object, logits: object, x: object) -> object:
        return HurdleLogits(LogNormal(mu, scale), logits).log_prob(x).sum()

    function = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
    arguments = [jax.numpy.asarray(t.detach().numpy()) for t in (*data.parameters, data.x)]
    return lambda: jax.block_until_ready(function(*arguments))


SCVI, PYRO, NUMPYRO = "scvi-tools", "Pyro ZeroInflatedDistribution", "NumPyro HurdleLogits, jit"
PACKAGES = {SCVI: "scvi-tools", PYRO: "pyro-ppl", NUMPYRO: "numpyro"}
STEPS: dict[str, Callable[[Data], Step]] = {
    SCVI: lambda data: torch_step(scvi_tools(), data),
    PYRO: lambda data: torch_step(pyro_zero_inflated(), data),
    NUMPYRO: numpyro_step,
}


def available() -> tuple[dict[str, str], dict[str, str]]:
    """The versions of the peers that can be run here, and why the others cannot."""
    found, missing = {}, {}
    tiny = Data.drawn(2, 2, 0.5, per_gene=False)
    for name, step in STEPS.items():
        try:
            step(tiny)()
            found[name] = scvi_class()[1] if name == SCVI else importlib.metadata.version(PACKAGES[name])
        except ImportError as error:
            missing[name] = str(error)
    return found, missing
