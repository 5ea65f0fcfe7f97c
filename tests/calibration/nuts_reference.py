"""The hurdle regression written a second time, in NumPyro and from its equations alone, and its posterior by NUTS.

    pip install -c constraints.txt ".[benchmarks]"
    python -m tests.calibration.nuts_reference

writes means and standard deviations of all sites to nuts_reference.json, which the guide is compared with. Of
our code only the numbers in ``HurdlePriors`` are used. Effects are dense.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pyro_zilognormal.models import HurdleData, HurdlePriors
from tests.calibration.simulations import NUTS_DATA

PATH = Path(__file__).with_suffix(".json")
DRAWS, WARMUP = 8000, 1500


def hurdle(value: Any, design: Any, donor: Any, donors: int, priors: HurdlePriors) -> None:
    """Draw both parts' coefficients and log sigma, and add up the log likelihood of groups."""
    import jax.numpy as jnp
    import numpyro
    from jax.nn import log_sigmoid

    zeros, positives, mean, squares = (jnp.asarray(value[..., k]) for k in range(4))
    mu = predictor("", design, donor, donors, value.shape[1], priors)
    zero = predictor("zero_", design, donor, donors, value.shape[1], priors)
    log_sigma = hierarchical("log_sigma", priors.log_sigma_sd, value.shape[1], 1, priors.log_sigma_mean)[:, 0]
    variance = jnp.exp(2 * log_sigma) + 0.001**2
    numpyro.factor("zero", (zeros * log_sigmoid(zero) + positives * log_sigmoid(-zero)).sum())
    residual = squares + positives * (mean - mu) ** 2
    numpyro.factor("positive", (-positives * jnp.log(variance) / 2 - residual / (2 * variance)).sum())


def predictor(part: str, design: Any, donor: Any, donors: int, genes: int, priors: HurdlePriors) -> Any:
    """Return the linear predictor, of shape (rows, genes)."""
    import jax.numpy as jnp

    def own(name: str) -> Any:
        return getattr(priors, part + name)

    intercept = hierarchical(f"{part}intercept", own("intercept_sd"), genes, 1, own("intercept_mean"))
    effects = hierarchical(f"{part}effects", own("effects_sd"), genes, design.shape[1] - 1)
    eta = jnp.concatenate([intercept, effects], -1) @ design.T
    if donors:
        eta = eta + hierarchical(f"{part}donors", own("donors_sd"), genes, donors, shared=True)[:, donor]
    return eta.T


def hierarchical(name: str, sd: Any, genes: int, width: int, mean: Any = None, shared: bool = False) -> Any:
    """Draw coefficients of all genes, Normal about a learned mean (or 0) with a learned sd."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    median, spread = (jnp.broadcast_to(jnp.asarray(v), (1 if shared else width,)) for v in sd)
    log_sd = numpyro.sample(f"{name}_log_sd", dist.Normal(jnp.log(median), spread).to_event(1))
    centre = 0.0 if mean is None else numpyro.sample(f"{name}_mean", dist.Normal(*mean))
    normal = dist.Normal(centre, jnp.exp(log_sd)).expand([genes, width])
    return numpyro.sample(name, normal.to_event(2))


def posterior(data: HurdleData, draws: int = DRAWS, warmup: int = WARMUP) -> dict[str, np.ndarray]:
    """Return draws of all sites."""
    import jax
    import numpyro
    from numpyro.infer import MCMC, NUTS

    numpyro.enable_x64()
    priors = HurdlePriors.for_data(data, effects_share=None)
    numbers = {
        k: tuple(np.asarray(v) for v in getattr(priors, k)) for k in vars(priors) if isinstance(vars(priors)[k], tuple)
    }
    mcmc = MCMC(NUTS(hurdle, target_accept_prob=0.9), num_warmup=warmup, num_samples=draws, progress_bar=False)
    given = data.value.numpy(), data.design.numpy(), data.donor.numpy(), data.donors
    mcmc.run(jax.random.PRNGKey(0), *given, HurdlePriors(**numbers, effects_share=None))
    return {name: np.asarray(values) for name, values in mcmc.get_samples().items()}


def summary(draws: np.ndarray) -> dict[str, list[float]]:
    """Return mean, sd and the number of independent draws they are worth, of each element."""
    from numpyro.diagnostics import effective_sample_size

    flat = draws.reshape(len(draws), -1)
    each = {"mean": flat.mean(0), "sd": flat.std(0, ddof=1), "effective": effective_sample_size(flat[None])}
    return {name: [float(f"{v:.6g}") for v in values] for name, values in each.items()}


def main() -> None:
    """Sample and write."""
    found: dict[str, Any] = {"draws": DRAWS, "warmup": WARMUP, "numpyro": version("numpyro"), "jax": version("jax")}
    for name, make in NUTS_DATA.items():
        data = make()
        found[name] = {
            "statistics": float(data.value.sum()),
            "sites": {k: summary(v) for k, v in posterior(data).items()},
        }
    PATH.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
