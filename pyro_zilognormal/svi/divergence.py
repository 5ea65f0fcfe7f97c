"""Where a loss that is not a finite number comes from, and what to do about it."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_zilognormal.svi.batch import Batch
from pyro_zilognormal.svi.isolation import global_state_kept
from pyro_zilognormal.svi.rng import set_torch_rng_state
from pyro_zilognormal.svi.sites import is_sample, law_parameters

if TYPE_CHECKING:
    from pyro_zilognormal.svi.objective import Objective
    from pyro_zilognormal.svi.result import FitResult

_SHOWN = 5


@dataclass(frozen=True)
class DivergenceReport:
    """What was found at a step whose loss or gradient is not finite.

    Args:
        step: the step, from 1.
        what: what was not finite: "loss", "gradient" or "update" (the parameters after the last step).
        site: the first sample site at fault, or None where none could be named.
        part: "model" or "guide", where the site is.
        cause: what of the site is not finite.
        rows: the first offending rows, at most 5, counted in all data where that is known.
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
        if self.site is not None:
            lines.append(f"site {self.site!r} of the {self.part}: {self.cause}")
        else:
            lines.append(f"no site could be named{': ' + self.cause if self.cause else ''}")
        if self.rows:
            lines.append(f"first offending rows: {self.rows}")
        lines.append(f"parameters not finite, or with such a gradient: {self.parameters or 'none'}")
        return "; ".join(lines)


class DivergenceError(RuntimeError):
    """A fit met a loss or gradient that is not finite.

    Args:
        report: what was found.
        result: the fit with its last good state: the last parameters whose loss and gradient were finite.
    """

    def __init__(self, report: DivergenceReport, result: "FitResult") -> None:
        super().__init__(
            f"{report}. The last good parameters are in this error's .result. Look at the named rows and "
            "site, lower the learning rate, clip gradients, or pass SkipBadSteps() in callbacks"
        )
        self.report, self.result = report, result


class SkipBadSteps:
    """Leave out steps whose loss or gradient is not finite, instead of stopping at the first.

    The skipped steps are in ``FitResult.skipped``, and their loss in ``FitResult.losses`` is NaN.

    Args:
        in_a_row: stop with a :class:`DivergenceError` once so many steps in a row are bad.

    Example:
        >>> SkipBadSteps(in_a_row=3).in_a_row
        3
    """

    def __init__(self, in_a_row: int = 10) -> None:
        if in_a_row < 1:
            raise ValueError(f"in_a_row is {in_a_row}; needed at least 1")
        self.in_a_row = in_a_row

    def __call__(self, run: Any) -> None:
        """Do nothing: the run asks for ``in_a_row`` when it meets a bad step."""


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether every value of every tensor is finite; one read from the device for each kind of tensor."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        values = tensor.coalesce().values() if tensor.is_sparse else tensor
        if values.numel():
            groups.setdefault((values.device, values.dtype), []).append(values)
    # The largest absolute value, unlike a sum or a 2-norm, overflows for no finite input.
    norms = [torch.stack(list(torch._foreach_norm(g, float("inf")))).max() for g in groups.values()]
    return all(math.isfinite(n.item()) for n in norms)


def diagnose(
    objective: "Objective", batch: Batch, random: tuple[Tensor, list[Tensor]], step: int, what: str
) -> DivergenceReport:
    """Run a batch again with the same random numbers and name the first site at fault.

    Args:
        objective: the objective, with the gradients of the bad step.
        batch: the batch of that step.
        random: the state of torch's generators before that step.
        step: its number.
        what: "loss" or "gradient".
    """
    bad = [k for k, p in objective.trainable().items() if not _finite(p) or not _finite(p.grad)]
    with global_state_kept(), torch.enable_grad():
        set_torch_rng_state(random)
        torch.distributions.Distribution.set_default_validate_args(False)
        pyro.enable_validation(False)
        try:
            found = _search(objective, batch)
        except (RuntimeError, ValueError) as error:
            found = {"cause": f"running it again failed: {error}"}
    return DivergenceReport(step, what, parameters=bad, **found)


def _search(objective: "Objective", batch: Batch) -> dict[str, Any]:
    with objective.running(batch.args, batch.indices):
        guide = poutine.trace(objective.handled("guide")).get_trace(*batch.args)
        model = poutine.trace(poutine.replay(objective.handled("model"), trace=guide)).get_trace(*batch.args)
        sites = [(p, n) for p, t in (("guide", guide), ("model", model)) for n in t.nodes.values() if is_sample(n)]
        densities = [(part, node, node["fn"].log_prob(node["value"])) for part, node in sites]
    parameters = list(objective.trainable().values())
    for part, node, density in densities:
        cause, where = _value_fault(node, density)
        if cause:
            return _found(part, node, cause, where, batch)
    for part, node, density in densities:
        row = _gradient_fault(density, parameters)
        if row is not None:
            return _found(part, node, "the gradient of its log density is not finite", row, batch)
    return {}


def _value_fault(node: Any, density: Tensor) -> tuple[str, Tensor | None]:
    value = node["value"]
    law = [(f"parameter {name!r}", tensor) for name, tensor in law_parameters(node["fn"])]
    for name, tensor in [*law, ("value", value), ("log density", density)]:
        if isinstance(tensor, Tensor) and not _finite(tensor):
            ours = tensor.detach().flatten()
            shown = ours[~torch.isfinite(ours)][0].item()
            return f"its {name} is {shown}", tensor
    return "", None


def _gradient_fault(density: Tensor, parameters: list[Any]) -> Tensor | None:
    """Return a mask of the first element whose gradient is not finite, found by halving; None for none."""
    if not density.requires_grad or not _bad_gradient(density.sum(), parameters):
        return None
    flat, low, high = density.flatten(), 0, density.numel()
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _bad_gradient(flat[low:middle].sum(), parameters) else (middle, high)
    mask = torch.zeros_like(flat)
    mask[low] = float("nan")
    return mask.view(density.shape)


def _bad_gradient(total: Tensor, parameters: list[Any]) -> bool:
    gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    return not all(_finite(g) for g in gradients)


def _found(part: str, node: Any, cause: str, where: Tensor | None, batch: Batch) -> dict[str, Any]:
    return {"part": part, "site": node["name"], "cause": cause, "rows": _rows(node, where, batch)}


def _rows(node: Any, where: Tensor | None, batch: Batch) -> list[int]:
    """Return the rows of all data in which ``where`` is not finite, if one of its axes runs over rows."""
    if where is None:
        return []
    dims = {f.dim for f in node["cond_indep_stack"] if f.vectorized and f.size == batch.rows}
    event = len(getattr(node["fn"], "event_shape", ())) if where is node["value"] else 0
    axes = [d - event for d in dims] or [-where.dim()]
    axis = next((a for a in axes if where.dim() >= -a > 0 and where.shape[a] == batch.rows), None)
    if axis is None:
        return []
    bad = (~torch.isfinite(where.detach())).movedim(axis, 0).reshape(batch.rows, -1).any(1).nonzero().flatten()
    rows = bad[:_SHOWN] if batch.indices is None else batch.indices[bad.to(batch.indices.device)].sort().values[:_SHOWN]
    return [int(r) for r in rows]


def _finite(tensor: Tensor | None) -> bool:
    return tensor is None or not (tensor.is_floating_point() or tensor.is_complex()) or all_finite([tensor.detach()])
