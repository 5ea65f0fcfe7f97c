"""Where a loss that is not a finite number comes from, and what to do about it."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_zilognormal.svi.batch import Batch
from pyro_zilognormal.svi.checks import check_whole
from pyro_zilognormal.svi.isolation import global_state_kept
from pyro_zilognormal.svi.rng import set_torch_rng_state
from pyro_zilognormal.svi.rowaxes import RowAxes, row_axes
from pyro_zilognormal.svi.sites import is_sample, law_parameters

if TYPE_CHECKING:
    from pyro_zilognormal.svi.objective import Objective
    from pyro_zilognormal.svi.result import FitResult

_SHOWN = 5
_GRADIENT = "the gradient of its log density is not finite"


@dataclass(frozen=True)
class DivergenceReport:
    """What was found at a step whose loss or gradient is not finite.

    Args:
        step: the step, from 1.
        what: what was not finite: "loss", "gradient" or "update" (the parameters after the last step).
        site: the first sample site at fault, or None where none could be named.
        part: "model" or "guide", where the site is.
        cause: what of the site is not finite.
        rows: the first offending rows, at most 5, from 0.
        parameters: the parameters that are not finite or have a gradient that is not.
        rows_of: what these rows are counted in: all data, or one batch of a stream.
    """

    step: int
    what: str
    site: str | None = None
    part: str | None = None
    cause: str = ""
    rows: list[int] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    rows_of: str = "all data"

    def __str__(self) -> str:
        lines = [f"the {self.what} of step {self.step} is not finite"]
        if self.site is not None:
            lines.append(f"site {self.site!r} of the {self.part}: {self.cause}")
        else:
            lines.append(f"no site could be named{': ' + self.cause if self.cause else ''}")
        if self.rows:
            of = "" if self.rows_of == "all data" else f" of {self.rows_of}"
            lines.append(f"first offending rows{of}: {self.rows}")
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
        in_a_row: stop with a :class:`DivergenceError` once so many steps in a row are bad; at least 1.

    Example:
        >>> SkipBadSteps(in_a_row=3).in_a_row
        3
    """

    def __init__(self, in_a_row: int = 10) -> None:
        check_whole("in_a_row", in_a_row, 1)
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
    return DivergenceReport(step, what, parameters=bad, rows_of=batch.place, **found)


def _search(objective: "Objective", batch: Batch) -> dict[str, Any]:
    with objective.running(batch.args, batch.indices):
        guide, model = objective.traces(*batch.args)
        sites = [(p, n) for p, t in (("guide", guide), ("model", model)) for n in t.nodes.values() if is_sample(n)]
        # What a mask leaves out of the loss is at fault only where it spoils a gradient.
        densities = [(p, n, scale_and_mask(n["fn"].log_prob(n["value"]), mask=n["mask"])) for p, n in sites]
    parameters, where = list(objective.trainable().values()), row_axes(objective, batch.args, batch.rows)
    for part, node, density in densities:
        bad = ~torch.isfinite(density.detach())
        if bad.any():
            rows = _rows(node, bad, where, batch)
            return {"part": part, "site": node["name"], "cause": _cause(node, density, bad), "rows": rows}
    for part, node, density in densities:
        marks = _gradient_fault(node, density, parameters)
        if marks is not None:
            rows = _rows(node, marks, where, batch)
            return {"part": part, "site": node["name"], "cause": _GRADIENT, "rows": rows}
    return {}


def _cause(node: Any, density: Tensor, bad: Tensor) -> str:
    """Say what is not finite where the density is not: a parameter, the value, or nothing but the density."""
    law = [(f"parameter {name!r}", value, events) for name, value, events in law_parameters(node["fn"])]
    for name, value, events in [*law, ("value", node["value"], node["fn"].event_dim), ("log density", density, 0)]:
        shown = _first_bad(value, bad, events)
        if shown is not None:
            return f"its {name} is {shown}"
    return "its log density is not finite"


def _first_bad(value: Any, bad: Tensor, events: int) -> float | None:
    """Return the first number of ``value`` that is not finite in an element marked ``bad``; None for none."""
    if not isinstance(value, Tensor) or _finite(value):
        return None
    try:
        whole = value.detach().expand(bad.shape + value.shape[value.dim() - events :])
    except RuntimeError:  # a parameter with axes of its own
        return None
    numbers = whole[bad].flatten()
    wrong = numbers[~torch.isfinite(numbers)]
    return wrong[0].item() if len(wrong) else None


def _gradient_fault(node: Any, density: Tensor, parameters: list[Any]) -> Tensor | None:
    """Mark the elements whose gradient is not finite, none where they cannot be told; None if all are."""
    if not density.requires_grad or not _bad_gradient(density.sum(), parameters):
        return None
    tensors = [*law_parameters(node["fn"]), ("value", node["value"], node["fn"].event_dim)]
    for _, tensor, events in tensors:
        if (
            isinstance(tensor, Tensor)
            and tensor.requires_grad
            and tensor.shape[: tensor.dim() - events] == density.shape
        ):
            (gradient,) = torch.autograd.grad(density.sum(), [tensor], retain_graph=True, allow_unused=True)
            if not _finite(gradient):
                return ~torch.isfinite(gradient).reshape(*density.shape, -1).all(-1)
    return _bad_rows_of_jacobian(density, parameters)


def _bad_rows_of_jacobian(density: Tensor, parameters: list[Any]) -> Tensor:
    """Mark the elements whose derivatives with respect to the parameters, all added up, are not finite.

    A part of a sum does not tell them apart, since 0 times the NaN of an element left out is NaN. The gradient is
    linear in the weights of the elements, and its own derivative with respect to these is the sum of each row.
    """
    weights = torch.ones_like(density, requires_grad=True)
    try:
        gradients = torch.autograd.grad(density, parameters, weights, create_graph=True, allow_unused=True)
        total = torch.stack([g.sum() for g in gradients if g is not None]).sum()
        (rows,) = torch.autograd.grad(total, [weights])
    except RuntimeError:  # of an operation that can be derived only once
        return torch.zeros_like(density, dtype=torch.bool)
    return ~torch.isfinite(rows)


def _bad_gradient(total: Tensor, parameters: list[Any]) -> bool:
    gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    return not all(_finite(g) for g in gradients)


def _rows(node: Any, bad: Tensor, where: RowAxes, batch: Batch) -> list[int]:
    """Return the rows of all data in which ``bad`` holds, if one of its axes, or of the value's, runs over rows."""
    marked = where.marked(node, bad, batch.rows)
    if marked is None:
        return []
    found = marked.nonzero().flatten()
    rows = found if batch.indices is None else batch.indices[found.to(batch.indices.device)].sort().values
    return [int(r) for r in rows[:_SHOWN]]


def _finite(tensor: Tensor | None) -> bool:
    return tensor is None or not (tensor.is_floating_point() or tensor.is_complex()) or all_finite([tensor.detach()])
