"""Name the site, the parameters and the rows that a loss or gradient that is not finite comes from."""

import math
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_zilognormal.svi.elbo import Batch, SVIModule, isolated, set_rng_state

_ROWS_SHOWN = 5


@dataclass(frozen=True)
class DivergenceReport:
    """What was found at a step whose loss or gradient is not finite.

    Attributes:
        step: the step, from 1.
        what: what was not finite: "loss", "gradient" or "update" (the parameters after the last step).
        site: the first sample site at fault, guide before model; None where none could be named.
        part: "model" or "guide", where the site is.
        cause: what of the site is not finite.
        rows: the first rows of the data with a value or density at fault, at most 5, from 0; none for a stream.
        parameters: the parameters that are not finite or have a gradient that is not.
    """

    step: int
    what: str
    site: str | None = None
    part: str | None = None
    cause: str = ""
    rows: list[int] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"the {self.what} of step {self.step} is not finite"]
        if self.cause:
            lines.append(self.cause if self.site is None else f"site {self.site!r} of the {self.part}: {self.cause}")
        if self.rows:
            lines.append(f"first rows at fault: {self.rows}")
        return "; ".join([*lines, f"parameters not finite, or with such a gradient: {self.parameters or 'none'}"])


def diagnose(module: SVIModule, batch: Batch, random: dict[str, Any], step: int, what: str) -> DivergenceReport:
    """Run guide and model on the batch of a bad step again, from the same random state, and name the site at fault."""
    found = {k: [p.detach()] + ([] if p.grad is None else [p.grad]) for k, p in module.trainable().items()}
    bad = [k for k, tensors in found.items() if not all_finite(tensors)]
    with isolated(), torch.enable_grad(), pyro.validation_enabled(False):
        set_rng_state(random)
        try:
            where = _search(module, batch)
        except (RuntimeError, ValueError) as error:
            where = {"cause": f"running model and guide again failed: {error}"}
    return DivergenceReport(step, what, parameters=bad, **where)


def sample_sites(trace: Any) -> list[Any]:
    """Return the sample sites of a trace, without the subsampling of plates."""
    return [n for n in trace.nodes.values() if n["type"] == "sample" and not site_is_subsample(n)]


def row_plate(node: Any, plate: str | None, rows: int) -> Any:
    """Return the plate over rows around a site: that of the name, or else the only one of so many elements; or None."""
    frames = [f for f in node["cond_indep_stack"] if f.vectorized]
    frames = [f for f in frames if (f.size == rows if plate is None else f.name == plate)]
    return frames[0] if len(frames) == 1 else None


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether every value of every tensor is finite; reads one number from the device."""
    # The largest absolute value, unlike a sum or a 2-norm, overflows for no finite input.
    tensors = [tensor for tensor in tensors if tensor.numel()]
    return not tensors or math.isfinite(torch.stack(list(torch._foreach_norm(tensors, math.inf))).max().item())


def _search(module: SVIModule, batch: Batch) -> dict[str, Any]:
    """Describe the first density, or else the first gradient, that is not finite."""
    guide, model = map(sample_sites, module.traces(batch))
    sites = [("guide", n) for n in guide if not n["is_observed"]]  # a GuideMessenger runs the model too
    sites += [("model", n) for n in model]
    found = [(part, node, node["fn"].log_prob(node["value"])) for part, node in sites]

    def described(part: str, node: Any, cause: str, bad: Tensor) -> dict[str, Any]:
        return {"part": part, "site": node["name"], "cause": cause, "rows": _rows(module, batch, node, bad)}

    for part, node, density in found:
        bad = ~torch.isfinite(scale_and_mask(density.detach(), mask=node["mask"]))
        if bad.any():
            return described(part, node, _cause(node, density, bad), bad)
    parameters = list(module.trainable().values())
    for part, node, density in found:
        if density.requires_grad:
            gradients = torch.autograd.grad(density.sum(), parameters, retain_graph=True, allow_unused=True)
            if not all_finite([g for g in gradients if g is not None]):
                # A mask leaves values out of the loss, but 0 times their NaN spoils its gradient.
                bad = ~torch.isfinite(density.detach())
                return described(part, node, "the gradient of its log density is not finite", bad)
    return {"cause": "no site could be named"}


def _cause(node: Any, density: Tensor, bad: Tensor) -> str:
    """Say what is not finite where the density is not: the value, a parameter, or nothing but the density."""
    fn, value = node["fn"], node["value"]
    while not fn.arg_constraints and hasattr(fn, "base_dist"):  # Independent and the like
        fn = fn.base_dist
    values = {"value": value[bad] if value.shape[: bad.dim()] == bad.shape else value}
    parameters = {f"parameter {k!r}": getattr(fn, k, None) for k in fn.arg_constraints}
    # A latent value that is not finite comes from its parameters, an observed one from the data.
    for name, tensor in ({**values, **parameters} if node["is_observed"] else {**parameters, **values}).items():
        if isinstance(tensor, Tensor) and not torch.isfinite(tensor).all():
            return f"its {name} is {tensor[~torch.isfinite(tensor)][0].item()}"
    return f"its log density is {density[bad][0].item()}"


def _rows(module: SVIModule, batch: Batch, node: Any, bad: Tensor) -> list[int]:
    """Return the first rows in which an element is marked, if the site is inside the plate over rows."""
    frame = row_plate(node, module.plate, batch.rows)
    if frame is None or batch.indices is None or bad.dim() < -frame.dim:
        return []
    at = bad.movedim(frame.dim, 0).reshape(frame.size, -1).any(1)
    rows: list[int] = batch.indices.cpu()[at.cpu()].sort().values[:_ROWS_SHOWN].tolist()
    return rows
