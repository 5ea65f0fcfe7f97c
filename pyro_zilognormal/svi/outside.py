"""Sites with a value for every row that are outside the plate over rows, so that minibatches would get them wrong."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_zilognormal.svi.isolation import global_state_kept
from pyro_zilognormal.svi.modules import evaluating
from pyro_zilognormal.svi.plates import DataPlate
from pyro_zilognormal.svi.sites import inside, is_sample

if TYPE_CHECKING:
    from pyro_zilognormal.svi.program import Program

_Nodes = dict[str, tuple[str, Any]]


def nodes_of(guide: Any, model: Any) -> _Nodes:
    """Return the sample sites of a pair of traces with the part they are in; of those in both, the model's."""
    parts = (("guide", guide), ("model", model))
    return {name: (part, node) for part, trace in parts for name, node in trace.nodes.items() if is_sample(node)}


def rows_outside(program: "Program", nodes: _Nodes, args: tuple[Any, ...], indices: Tensor | None) -> list[str]:
    """Return the sites outside the plate over rows whose values grow and shrink with the batch.

    An axis as long as the batch may be so by chance: model and guide are run again with another number of rows.

    Args:
        program: of the traces.
        nodes: from :func:`nodes_of`.
        args: of the traces.
        indices: which rows these are, or None.
    """
    plate = program.data_plate
    rows = next((len(a) for a in args if isinstance(a, Tensor) and a.dim() > 0), 1)
    if plate is not None and rows == plate.rows:
        return []
    suspects = [k for k, (_, node) in nodes.items() if rows in node["value"].shape and not _scaled(node, plate)]
    if not suspects:
        return []
    others = torch.arange(rows - 1 if rows > 1 else 2) % rows
    picked = tuple(a[others] if isinstance(a, Tensor) and a.shape[:1] == (rows,) else a for a in args)
    try:
        again = _run(program, picked, None if indices is None else indices[others])
    except (RuntimeError, ValueError):  # of a model that serves one size of batch alone
        return []
    return [k for k in suspects if k in again and again[k][1]["value"].shape != nodes[k][1]["value"].shape]


def check_outside(program: "Program", nodes: _Nodes, args: tuple[Any, ...], indices: Tensor | None) -> None:
    """Raise a ValueError for a site with a density that would count for the rows of a minibatch alone."""
    if program.plate is None:
        return
    random = {k: v for k, v in nodes.items() if not v[1]["infer"].get("_deterministic")}
    for name in rows_outside(program, random, args, indices):
        raise ValueError(
            f"site {name!r} of the {random[name][0]} has a value for every row, but is outside plate "
            f"{program.plate!r}, so that a minibatch would count for its own rows alone; put it inside that plate"
        )


def _scaled(node: Any, plate: DataPlate | None) -> bool:
    """Whether the plate over rows, or another like it, or a handler, scales a site."""
    if plate is None:
        return False
    alike = any(f.full_size == plate.rows and f.size == plate.batch_rows for f in node["cond_indep_stack"])
    return inside(node, plate) or alike or bool(torch.as_tensor(node["scale"]).ne(1.0).any())


@torch.no_grad()
def _run(program: "Program", args: tuple[Any, ...], indices: Tensor | None) -> _Nodes:
    with global_state_kept(), evaluating(program), program.buffers_apart(), program.running(args, indices):
        return nodes_of(*program.traces(*args))
