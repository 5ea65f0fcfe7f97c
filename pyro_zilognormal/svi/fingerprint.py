"""What data, model and settings a run is of, so that a checkpoint of another can be refused."""

from pyro_zilognormal.svi.digests import describe
from pyro_zilognormal.svi.holdings import held_by
from pyro_zilognormal.svi.isolation import global_state_kept
from pyro_zilognormal.svi.run import Run
from pyro_zilognormal.svi.trial import PREFIX, close, tried_densities


def fingerprint(run: Run) -> dict[str, str]:
    """Return what identifies a run, each under a name that can be read in an error.

    Args:
        run: the run, before its first step.
    """
    with global_state_kept():  # a shuffling loader draws from torch's global generator
        found = {f"data argument {i}": describe(value) for i, value in enumerate(run.source.arguments())}
    found["data"] = f"{type(run.source).__name__} of {run.rows} rows in {run.source.batches} batches{_reading(run)}"
    for part in ("model", "guide"):
        held = held_by(run.objective.callable(part), run.objective.owner(part))
        found |= {f"{part} holds {name!r}": describe(value) for name, value in held.items()}
    for site in run.sites:
        seen = "observed" if site.observed else "latent"
        found[f"{site.part} site {site.name!r}"] = (
            f"{seen} {site.law}({site.constants}) {site.event_shape} in plates {site.plates}"
        )
    constraints = run.objective.constraints()
    for name, parameter in run.objective.trainable().items():
        found[f"parameter {name!r}"] = f"{tuple(parameter.shape)} {parameter.dtype} {constraints[name]}"
    with global_state_kept():
        return found | _settings(run) | tried_densities(run)


def difference(saved: dict[str, str], now: dict[str, str]) -> str:
    """Return in words how two fingerprints differ, or "" where they do not."""
    lines = []
    for name in [*saved, *(k for k in now if k not in saved)]:
        if not _agree(name, saved, now):
            lines.append(f"{name}: {saved.get(name, 'absent')} in the checkpoint, {now.get(name, 'absent')} now")
    return "; ".join(lines)


def _agree(name: str, saved: dict[str, str], now: dict[str, str]) -> bool:
    """Whether two fingerprints agree in one thing; log densities are compared where both have them."""
    if name.startswith(PREFIX):
        return name not in saved or name not in now or close(saved[name], now[name])
    return saved.get(name) == now.get(name)


def _reading(run: Run) -> str:
    """How the rows are read, as far as the source says."""
    named = {k: getattr(run.source, k, None) for k in ("batch_size", "shuffle", "plate", "dtype")}
    said = {k: v for k, v in named.items() if v is not None}
    return f" {said}" if said else ""


def _settings(run: Run) -> dict[str, str]:
    loss, optimizer = run.objective.loss, run.optimizer
    simple = (
        {k: v for k, v in vars(loss).items() if isinstance(v, bool | int | float | str)}
        if hasattr(loss, "loss")
        else {}
    )
    found = {
        "seed": str(run.seed),
        "loss": f"{getattr(loss, '__name__', type(loss).__name__)} {simple}",
        "optimizer": f"{type(optimizer).__name__} {optimizer.defaults}",
        "optimizer groups": str([{**g, "params": len(g["params"])} for g in optimizer.param_groups]),
    }
    for i, callback in enumerate(c for c in run.callbacks if hasattr(c, "state_dict")):
        inner = callback.settings() if hasattr(callback, "settings") else ""
        found[f"callback {i} with a state"] = f"{type(callback).__name__} {inner}".strip()
    return found
