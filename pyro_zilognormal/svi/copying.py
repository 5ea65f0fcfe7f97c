"""Deep copies of what holds AutoGuides, which lose their model when they are copied, in the original too."""

import copy
import weakref
from typing import Any

from pyro.infer.autoguide import AutoGuide
from torch import nn


def deep_copies(values: dict[str, Any], modules: nn.Module, memo: dict[int, Any]) -> dict[str, Any]:
    """Return deep copies of values, and leave the AutoGuides among the modules as they were.

    Args:
        values: to copy.
        modules: which these hold.
        memo: of ``copy.deepcopy``.
    """
    guides = [part for part in modules.modules() if isinstance(part, AutoGuide)]
    links = [(vars(part)["_model"], vars(part)["master"]) for part in guides]
    try:
        twins = copy.deepcopy(values, memo)
    finally:
        for part, (model, master) in zip(guides, links, strict=True):
            vars(part).update(_model=model, master=master)
    for part, (model, master) in zip(guides, links, strict=True):
        whole = None if master is None else weakref.ref(memo[id(master())])
        vars(memo[id(part)]).update(_model=copy.deepcopy(model, memo), master=whole)
    return twins
