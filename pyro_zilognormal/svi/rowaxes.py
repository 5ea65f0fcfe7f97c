"""Which axis of what a model observes runs over the rows of its data, where sizes alone do not tell."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_zilognormal.svi.sites import is_sample, rows_frame

if TYPE_CHECKING:
    from pyro_zilognormal.svi.program import Program


@dataclass(frozen=True)
class RowAxes:
    """Where rows are.

    Args:
        plate: the name of the plate over rows, or None if it has none.
        dim: its dim, where the name was found and not given.
        axes: by observed site, the axis of its value over rows, counted from the end; {} where that is not known.
        others: the names of the model's other plates, where the name was found.
    """

    plate: str | None = None
    dim: int | None = None
    axes: dict[str, int] = field(default_factory=dict)
    others: frozenset[str] = frozenset()

    def frame(self, node: Any, rows: int) -> Any:
        """Return the frame of the plate over rows around a site, or None."""
        if self.dim is None:
            return None if self.axes else rows_frame(node, self.plate, rows)
        alike = (f for f in node["cond_indep_stack"] if f.vectorized and f.size == rows and f.name not in self.others)
        return next((f for f in alike if f.name == self.plate or f.dim == self.dim), None)

    def marked(self, node: Any, bad: Tensor, rows: int) -> Tensor | None:
        """Return which rows hold a marked element, of shape (rows,), or None where that cannot be told.

        Args:
            node: of a trace.
            bad: the marks, of the shape of its density.
            rows: how many rows there are.
        """
        frame, value = self.frame(node, rows), node["value"]
        axis = None if frame is None else frame.dim
        if axis is None and node["name"] in self.axes:
            axis = self.axes[node["name"]] + node["fn"].event_dim
            if axis >= 0:  # rows within one event: only what the value itself holds tells them apart
                axis, bad = axis - node["fn"].event_dim, ~torch.isfinite(value.detach())
        elif axis is None and self.plate is None and not self.axes:
            if node["is_observed"] and bad.dim() == 0 and isinstance(value, Tensor):
                bad = ~torch.isfinite(value.detach())
            axis = -bad.dim()
        if not axis or bad.dim() < -axis or bad.shape[axis] != rows:
            return None
        return bad.movedim(axis, 0).reshape(rows, -1).any(1)


def row_axes(program: "Program", args: tuple[Any, ...], rows: int) -> RowAxes:
    """Return where the rows of data are that came all at once, or under a plate that is named.

    Where no plate is named, an axis may be as long as there are rows by chance. So the model is run again with the rows
    of its arguments moved on by one: of what it observes, the axis along which the values have moved runs over rows.

    Args:
        program: of the model.
        args: its arguments.
        rows: how many rows they have.
    """
    if program.plate is not None:
        return RowAxes(program.plate)
    moved = tuple(a.roll(1, 0) if isinstance(a, Tensor) and a.shape[:1] == (rows,) else a for a in args)
    try:
        before, after = program.looked_at(args), program.looked_at(moved)
    except (RuntimeError, ValueError):  # of a model that serves its rows in their order alone
        return RowAxes()
    found = {}
    for name, node in before.nodes.items():
        if is_sample(node) and node["is_observed"] and name in after.nodes:
            axis = _moved_along(node["value"], after.nodes[name]["value"], rows)
            if axis is not None:
                found[name] = axis
    return _with_plate(before, found)


def _moved_along(value: Tensor, other: Tensor, rows: int) -> int | None:
    """Return the first axis along which ``other`` is ``value`` moved on by one, from the end; None for none."""
    if value.shape == other.shape:
        for axis in range(-value.dim(), 0):
            if value.shape[axis] == rows and torch.allclose(value.roll(1, axis), other, 0.0, 0.0, equal_nan=True):
                return axis
    return None


def _with_plate(trace: Any, axes: dict[str, int]) -> RowAxes:
    for name, axis in axes.items():
        node = trace.nodes[name]
        for frame in node["cond_indep_stack"]:
            if frame.vectorized and frame.dim == axis + node["fn"].event_dim:
                names = {f.name for n in trace.nodes.values() if is_sample(n) for f in n["cond_indep_stack"]}
                return RowAxes(frame.name, frame.dim, axes, frozenset(names - {frame.name}))
    return RowAxes(axes=axes)
