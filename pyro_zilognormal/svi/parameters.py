"""Parameters of a model and a guide, kept apart from all others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.params.param_store import normalize_param_name
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from pyro_zilognormal.svi.isolation import ParamSpace
from pyro_zilognormal.svi.modules import module_parameters


class OwnParameters(nn.Module):
    """The parameters that Pyro keeps in a store of this object's own, and those of the modules behind it.

    Args:
        owners: the modules behind model and guide, by "model" and "guide"; None where there is none.
    """

    def __init__(self, owners: dict[str, nn.Module | None]) -> None:
        super().__init__()
        self.owners = nn.ModuleDict({k: m for k, m in owners.items() if m is not None})
        self.space = ParamSpace()
        self._trainable: dict[str, nn.Parameter] = {}
        self._constraints: dict[str, Any] = {}
        self._stored = -1

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return every parameter that is trained, by name, in the order in which they came to be.

        Names are those of Pyro's store, and "model.name" or "guide.name" for parameters of modules that Pyro
        does not see.
        """
        with self.space.active() as store:
            if len(store) != self._stored:
                self._stored = len(store)
                self._collect(store)
        return self._trainable

    def constrained(self) -> dict[str, Tensor]:
        """Return a copy of every parameter as the model sees it, within its constraint."""
        with self.space.active() as store, torch.no_grad():
            known = {normalize_param_name(k): v.detach().clone() for k, v in store.items()}
            for name, parameter in self.trainable().items():
                if name not in known:
                    constraint = self._constraints.get(name, constraints.real)
                    known[name] = transform_to(constraint)(parameter.detach().clone())
        return {k: known[k] for k in self.trainable()}

    def constraints(self) -> dict[str, str]:
        """Return the constraint of each parameter, as text."""
        with self.space.active() as store:
            known = {normalize_param_name(k): c for k, c in store.get_state()["constraints"].items()}
        known |= self._constraints
        return {k: str(known.get(k, constraints.real)) for k in self.trainable()}

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of all parameters, unconstrained, and of the modules' buffers."""
        return {k: v.detach().clone() for k, v in self._values().items()}

    @torch.no_grad()
    def restore(self, values: dict[str, Tensor]) -> None:
        """Set parameters and buffers to what :meth:`snapshot` returned, on the device where they are."""
        ours = self._values()
        shapes, theirs = ({k: tuple(t.shape) for k, t in d.items()} for d in (ours, values))
        if shapes != theirs:
            raise ValueError(f"values have shapes {theirs}; needed {shapes}")
        for name, tensor in ours.items():
            tensor.copy_(values[name])

    @contextmanager
    def holding(self, values: dict[str, Tensor]) -> Iterator[None]:
        """Let parameters and buffers have the given values for the length of a block.

        Args:
            values: from :meth:`snapshot`, or some of these.
        """
        ours = {k: t for k, t in self._values().items() if k in values}
        kept = {k: t.data for k, t in ours.items()}
        places = [(m._buffers, k, b) for m in self.owners.modules() for k, b in m._buffers.items()]
        for name, tensor in ours.items():
            tensor.data = values[name].clone()  # what is done to it in the block must not reach the stored one
        try:
            with self.space.active():
                yield
        finally:
            for name, tensor in ours.items():
                tensor.data = kept[name]
            for held, name, buffer in places:  # a module may have put another tensor in the place of one
                held[name] = buffer

    @contextmanager
    def buffers_apart(self) -> Iterator[None]:
        """Leave the buffers as they are, whatever a block does to them."""
        with self.holding({f"buffer {k}": b for k, b in self.buffers_by_name().items()}):
            yield

    def buffers_by_name(self) -> dict[str, Tensor]:
        """Return the modules' buffers themselves, by name."""
        return dict(self.owners.named_buffers())

    def check_copy(self) -> None:
        """Raise a TypeError if a function holds a module by itself, which a copy of the function would share."""
        with self.space.active() as store:
            owned = {id(p) for p in self.owners.parameters()}
            shared = [normalize_param_name(k) for k, p in store.named_parameters() if "$$$" in k and id(p) not in owned]
        if shared:
            raise TypeError(
                f"parameters {shared} are of a module that a function gives to pyro.module, so that a copy would train "
                "the same; pass a method of the module as model or guide"
            )

    def _values(self) -> dict[str, Tensor]:
        buffers = {f"buffer {k}": b for k, b in self.buffers_by_name().items()}
        return {**self.trainable(), **buffers}

    def _collect(self, store: Any) -> None:
        found, seen = {}, set()
        for name, parameter in self._stored_parameters(store).items():
            if id(parameter) not in seen:  # under two names, an optimiser would move it twice a step
                seen.add(id(parameter))
                found[normalize_param_name(name)] = parameter
        for prefix, module in self.owners.items():
            for name, parameter, constraint in module_parameters(module):
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    found[f"{prefix}.{name}"] = parameter
                    self._constraints[f"{prefix}.{name}"] = constraint
        # Known parameters keep their place, so that an optimiser's state stays with its parameter.
        kept = {k: found.pop(k) for k in self._trainable if k in found}
        self._trainable = {**kept, **found}

    def _stored_parameters(self, store: Any) -> dict[str, nn.Parameter]:
        """Return the store's parameters, each made an nn.Parameter that this module or an owner holds."""
        owned = {id(p) for p in self.parameters()}
        for name, value in list(store.named_parameters()):
            if not isinstance(value, nn.Parameter):
                value = nn.Parameter(value.detach())
                store.set_state({"params": {name: value}, "constraints": {}})
            if id(value) not in owned:
                self.register_parameter("param/" + name.replace("/", "//").replace(".", "/"), value)
        return dict(store.named_parameters())
