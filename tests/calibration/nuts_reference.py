"""The hurdle regression written a second time, in NumPyro and from its equations alone, and its posterior by NUTS.

    pip install -c constraints.txt ".[benchmarks]"
    python -m tests.calibration.nuts_reference

writes means and standard deviations of all sites to nuts_reference.json, which the guide is compared with. Of
our code only numbers are used, those of ``HurdlePriors`` and the sds of the effects. Most genes have effects, since a
sampler does not move between a narrow and a wide component.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pyro_zilognormal.models import HurdleData, HurdlePriors
from pyro_zilognormal.models.hurdle.components import EFFECT_SDS
from tests.calibration.simulations import DENSE, NUTS_DATA

PATH = Path(__file__).with_suffix(".json")
DRAWS, WARMUP = 3000, 1000


def hurdle(value: Any, designs: Any, factors: Any, levels: Any, priors: HurdlePriors) -> None:
    """Draw the coefficients of log mean, zero part and log sigma, and add up the log likelihood of groups."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.nn import log_sigmoid

    zeros, positives, mean, squares = (jnp.asarray(value[..., k]).T for k in range(4))
    genes = value.shape[1]
    # Intercepts are those of the average of the distinct rows.
    centres = [np.unique(d, axis=0).mean(0)[1:] for d in designs]
    design, zero_design, scale_design = (d[:, 1:] - c for d, c in zip(designs, centres, strict=True))
    intercept = hierarchical("centred_intercept", priors.intercept_mean, priors.intercept_sd, genes, 1)
    effects = sparse_effects(design.shape[1], genes, priors)
    log_mean = intercept + effects @ design.T + random_effects("", factors, levels, genes, priors)
    slope = numpyro.sample("zero_slope", dist.Normal(*priors.zero_slope))
    columns = zero_design.shape[1]
    sds = on_log_scale(priors.zero_sd, priors.zero_spread)
    zero_log_sd = hierarchical("zero_log_sd", *sds, genes, min(1 + columns, 2))
    noise = numpyro.sample("deviation_noise", dist.Normal(0, 1).expand([genes, 1 + columns]).to_event(2))
    deviation = noise * jnp.exp(zero_log_sd)[:, [0, *[1] * columns]]
    zero_mean = numpyro.sample("zero_intercept_mean", dist.Normal(*priors.zero_intercept_mean))
    zero_intercept = zero_mean + slope * priors.intercept_mean[0] + deviation[:, :1]
    means, sd = (jnp.broadcast_to(v, (columns,)) for v in priors.zero_effects_mean)
    zero_effects = numpyro.sample("zero_effects_mean", dist.Normal(means, sd).to_event(1)) + deviation[:, 1:]
    zero = zero_intercept + zero_effects @ zero_design.T - slope * log_mean
    zero = zero + random_effects("zero_", factors, levels, genes, priors)
    sigma_mean, sigma_sd = (
        tuple(
            np.append(a, np.broadcast_to(b, scale_design.shape[1:]))
            for a, b in zip(*(getattr(priors, f"log_sigma_{e}{k}") for e in ("", "effects_")), strict=True)
        )
        for k in ("mean", "sd")
    )
    coefficients = hierarchical("centred_log_sigma", sigma_mean, sigma_sd, genes, scale_design.shape[1] + 1)
    log_sigma = coefficients[:, :1] + coefficients[:, 1:] @ scale_design.T
    for name, first, others, centre in [
        ("intercept", intercept, effects, centres[0]),
        ("zero_intercept", zero_intercept, zero_effects, centres[1]),
        ("log_sigma", coefficients[:, :1], coefficients[:, 1:], centres[2]),
    ]:
        at_origin = first - (others @ centre)[:, None]
        rest = [others] if name == "log_sigma" else []
        numpyro.deterministic(name, jnp.concatenate([at_origin, *rest], 1))
    numpyro.deterministic("zero_effects", zero_effects)
    variance = jnp.exp(2 * log_sigma) + 0.001**2
    mu = log_mean - log_sigmoid(-zero) - variance / 2
    numpyro.factor("zero", (zeros * log_sigmoid(zero) + positives * log_sigmoid(-zero)).sum())
    residual = squares + positives * (mean - mu) ** 2
    numpyro.factor("positive", (-positives * jnp.log(variance) / 2 - residual / (2 * variance)).sum())


def on_log_scale(sd: Any, spread: Any) -> tuple[Any, Any]:
    """Return priors of mean and sd of log sds from those of median and spread."""
    return (np.log(sd[0]), sd[1]), spread


def hierarchical(name: str, mean: Any, sd: Any, genes: int, width: int) -> Any:
    """Draw coefficients of all genes, Normal about a learned mean with a learned sd."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    centre, spread = (jnp.broadcast_to(jnp.asarray(v), (width,)) for v in mean)
    middle = numpyro.sample(f"{name}_mean", dist.Normal(centre, spread).to_event(1))
    median, spread = (jnp.broadcast_to(jnp.asarray(v), (width,)) for v in sd)
    log_sd = numpyro.sample(f"{name}_log_sd", dist.Normal(jnp.log(median), spread).to_event(1))
    return numpyro.sample(name, dist.Normal(middle, jnp.exp(log_sd)).expand([genes, width]).to_event(2))


def sparse_effects(width: int, genes: int, priors: HurdlePriors) -> Any:
    """Draw effects from a mixture of Normals of several sds, with learned weights for each column."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    sds = jnp.asarray((priors.spike_sd, *EFFECT_SDS))
    share, spread = priors.effects_share
    centre = jnp.full((width, len(EFFECT_SDS)), jnp.log(share / (1 - share) / len(EFFECT_SDS)))
    logits = numpyro.sample("effects_logits", dist.Normal(centre, spread).to_event(2))
    weights = dist.Categorical(logits=jnp.pad(logits, ((0, 0), (1, 0))))
    normals = dist.Normal(jnp.zeros((width, len(sds))), sds)
    mixture = dist.MixtureSameFamily(weights, normals)
    return numpyro.sample("effects", mixture.expand([genes, width]).to_event(2))


def random_effects(part: str, factors: Any, levels: Any, genes: int, priors: HurdlePriors) -> Any:
    """Draw effects of the levels of each factor, with sds of each gene, and return their sums, (genes, rows)."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    if not levels:
        return 0.0
    sd, spread = (getattr(priors, f"{part}random_{k}") for k in ("sd", "spread"))
    log_sds = hierarchical(f"{part}random_log_sd", *on_log_scale(sd, spread), genes, len(levels))
    owner = np.repeat(np.arange(len(levels)), levels)
    noise = numpyro.sample(f"{part}noise", dist.Normal(0, 1).expand([genes, sum(levels)]).to_event(2))
    effects = numpyro.deterministic(f"{part}random", noise * jnp.exp(log_sds[:, owner]))
    before = np.concatenate([[0], np.cumsum(levels)[:-1]]).astype(int)
    return sum(effects[:, before[f] + factors[:, f]] for f in range(len(levels)))


def posterior(data: HurdleData, draws: int = DRAWS, warmup: int = WARMUP) -> dict[str, np.ndarray]:
    """Return draws of all sites."""
    import jax
    import numpyro
    from numpyro.infer import MCMC, NUTS

    numpyro.enable_x64()
    priors = HurdlePriors.for_data(data, **DENSE)
    data = data.as_groups()
    numbers = {
        k: tuple(np.asarray(v) for v in value) if isinstance(value, tuple) else value
        for k, value in vars(priors).items()
    }
    mcmc = MCMC(NUTS(hurdle, target_accept_prob=0.9), num_warmup=warmup, num_samples=draws, progress_bar=False)
    designs = tuple(d.numpy() for d in (data.design, data.zero_design, data.scale_design))
    mcmc.run(
        jax.random.PRNGKey(0), data.value.numpy(), designs, data.factors.numpy(), data.levels, HurdlePriors(**numbers)
    )
    return {k: np.asarray(v) for k, v in mcmc.get_samples().items() if "noise" not in k and "centred" not in k}


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
