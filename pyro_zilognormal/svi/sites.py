"""What model and guide are made of: the sites they visited."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.autoguide import AutoContinuous, AutoGuide
from pyro.poutine.messenger import unwrap
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_zilognormal.svi.plates import DataPlate


@dataclass(frozen=True)
class Site:
    """One sample site.

    Args:
        name: its name.
        part: "model" or "guide".
        law: the class of its distribution.
        observed: whether it holds data.
        event_shape: the shape of one event.
        plates: the names of the plates around it.
        constants: parameters of its distribution that depend on no latent value and are not learned, as text.
    """

    name: str
    part: str
    law: str
    observed: bool
    event_shape: tuple[int, ...]
    plates: tuple[str, ...]
    constants: str = ""


def sites_of(trace: Any, part: str, other: Any = None) -> list[Site]:
    """Return the sample sites of a trace, without the subsampling of plates.

    Args:
        trace: a Pyro trace.
        part: what to call it.
        other: a trace of the same function with other latent values, to tell constants by.
    """
    nodes = {} if other is None else other.nodes
    return [_site(n, part, nodes.get(k)) for k, n in trace.nodes.items() if is_sample(n)]


def law_parameters(fn: Any) -> list[tuple[str, Any, int]]:
    """Return name, value and number of event axes of a distribution's parameters, those inside its wrappers."""
    events = 0
    while type(fn).__name__ in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        events += getattr(fn, "reinterpreted_batch_ndims", 0)
        fn = fn.base_dist
    return [(name, getattr(fn, name, None), events + _event_dim(c)) for name, c in fn.arg_constraints.items()]


def rows_frame(node: Any, plate: str | None, rows: int) -> Any:
    """Return the frame of the plate over rows around a site, or None.

    Args:
        node: of a trace.
        plate: the name of that plate; None if it has none, and as many rows as the data tell.
        rows: how many rows the data have.
    """
    # Of several plates as long as there are rows, the leftmost is taken, in whatever order they were entered.
    for frame in sorted(node["cond_indep_stack"], key=lambda frame: frame.dim or 0):
        if frame.vectorized and (frame.name == plate if plate else frame.size == rows):
            return frame
    return None


def rows_of(trace: Any, args: tuple[Any, ...], plate: str | None) -> int:
    """Return how many rows data have that came all at once.

    Of an observed site they are the elements of the named plate, or else of the leftmost plate around it that is as
    long as the first axis of one of the tensors, or, where there are no tensors, of the leftmost plate. The site with
    the most rows counts; where there is none, the first axis of the first tensor.

    Args:
        trace: the model's.
        args: its arguments.
        plate: the name of the plate over rows, or None.
    """
    lengths = [len(a) for a in args if isinstance(a, Tensor) and a.dim() > 0]
    found = []
    for node in (n for n in trace.nodes.values() if is_sample(n) and n["is_observed"]):
        frames = sorted((f for f in node["cond_indep_stack"] if f.vectorized), key=lambda frame: frame.dim)
        named = [f.size for f in frames if f.name == plate]
        fitting = [f.full_size for f in frames if plate is None and (f.full_size in lengths or not lengths)]
        found.extend([*named, *fitting][:1])
    return max(found, default=lengths[0] if lengths else 1)


def is_sample(node: Any) -> bool:
    """Whether a node of a trace is a sample site other than the subsampling of a plate."""
    return node["type"] == "sample" and not site_is_subsample(node)


def check_plate(trace: Any, plate: str | None) -> None:
    """Raise a ValueError if the model lacks the plate over rows.

    Args:
        trace: the model's trace.
        plate: the name of the plate over rows, or None for none.
    """
    if plate is None:
        return
    names = {f.name for n in trace.nodes.values() if is_sample(n) for f in n["cond_indep_stack"]}
    if plate not in names:
        raise ValueError(
            f"plate is {plate!r}, but the model's plates are {sorted(names)}; name the one over the "
            "rows of the data, or pass plate=None if the model scales minibatches by itself"
        )


def check_guide_plate(guide: Any, model: Any, plate: DataPlate | None) -> None:
    """Raise a ValueError if the guide has outside the plate over rows what the model has inside it.

    Args:
        guide: the guide's trace.
        model: the model's trace.
        plate: the plate over rows, or None for none.
    """
    if plate is None or plate.batch_rows == plate.rows:
        return
    for name, node in model.nodes.items():
        twin = guide.nodes.get(name)
        if twin is None or not is_sample(node) or not inside(node, plate) or inside(twin, plate):
            continue
        raise ValueError(
            f"site {name!r} is inside plate {plate.name!r} in the model, but not in the guide, where its plates are "
            f"{[f.name for f in twin['cond_indep_stack']]}, so that the guide's minibatches would not count for all "
            f"rows; put it inside a plate named {plate.name!r} there too"
        )


def inside(node: Any, plate: DataPlate) -> bool:
    """Whether a site is inside the plate over rows."""
    return any(f.name == plate.name for f in node["cond_indep_stack"])


def check_joint_guide(guide: Any, plate: DataPlate | None) -> None:
    """Raise a ValueError if an AutoGuide would share one joint vector of local values between minibatches.

    Args:
        guide: the guide, after its first run.
        plate: the plate over rows, or None for none.
    """
    if plate is None or (plate.batch_rows == plate.rows and plate.indices is not None):
        return
    for part, local in _joint_parts(guide, lambda frame: frame.name == plate.name):
        raise ValueError(
            f"{part} cannot be trained on minibatches, nor on a BatchStream: sites {local} have one value a row, in "
            "one vector with all others. Use AutoNormal or AutoDelta with Minibatches, a guide that computes local "
            "values from the data, or all data at once"
        )


def check_held_out(guide: Any, rows: int) -> None:
    """Raise a ValueError if an AutoGuide's joint vector holds a value for every row of the training data.

    Args:
        guide: the guide, after its first run.
        rows: how many rows the training data have.
    """
    for part, local in _joint_parts(guide, lambda frame: frame.full_size == rows):
        raise ValueError(
            f"{part} holds a value for every row, at sites {local}: held-out rows have none. Stop on the "
            "training loss (EarlyStopping() without held_out), or use a guide that computes its local "
            "values from the data"
        )


def _joint_parts(guide: Any, over_rows: Callable[[Any], bool]) -> Iterator[tuple[str, list[str]]]:
    """Yield the AutoGuides with one joint vector that hold local sites, with these sites."""
    guide = unwrap(guide)
    for part in guide.modules() if isinstance(guide, AutoGuide) else ():
        if isinstance(part, AutoContinuous):
            nodes = part.prototype_trace.iter_stochastic_nodes()
            local = [n for n, node in nodes if any(map(over_rows, node["cond_indep_stack"]))]
            if local:
                yield type(part).__name__, local


def _constants(node: Any, other: Any) -> str:
    if other is None:
        return ""
    again = {name: value for name, value, _ in law_parameters(other["fn"])}
    found = []
    for name, value, _ in law_parameters(node["fn"]):
        twin: Any = again.get(name)
        fixed = isinstance(value, Tensor) and isinstance(twin, Tensor) and not value.requires_grad
        if fixed and value.shape == twin.shape and torch.equal(value, twin):
            # Few digits, so that another device's rounding makes no other model of it; two means, so that the order of
            # the elements is seen.
            flat = value.detach().double().flatten()
            tilted = (flat * torch.linspace(0.0, 1.0, len(flat), dtype=flat.dtype, device=flat.device)).mean()
            order = f" in order {tilted.item():.4g}" if len(flat) > 1 else ""
            found.append(f"{name}={flat.mean().item():.4g}{order}")
    return ", ".join(found)


def _event_dim(constraint: Any) -> int:
    try:
        return constraint.event_dim
    except NotImplementedError:  # of a constraint that depends on other parameters
        return 0


def _site(node: Any, part: str, other: Any) -> Site:
    fn = node["fn"]
    base = getattr(fn, "base_dist", fn) if type(fn).__name__ == "Independent" else fn
    return Site(
        node["name"],
        part,
        type(base).__name__,
        bool(node["is_observed"]),
        tuple(getattr(fn, "event_shape", ())),
        tuple(frame.name for frame in node["cond_indep_stack"]),
        _constants(node, other),
    )
