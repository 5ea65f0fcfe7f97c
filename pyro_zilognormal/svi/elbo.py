"""The loss of a model and a guide as one module, with parameters, and a process state, of its own."""

import copy
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, ReweightedWakeSleep, Trace_ELBO, TraceEnum_ELBO, TraceTMC_ELBO
from pyro.infer.autoguide import AutoContinuous, AutoGuide
from pyro.nn import PyroModule
from pyro.params.param_store import normalize_param_name
from pyro.poutine.messenger import unwrap
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from pyro_zilognormal.svi.data import Batch
from pyro_zilognormal.svi.plates import HELD_OUT, BatchHandler


class SVIModule(nn.Module):
    """The loss of a model and a guide on a batch, as an nn.Module with its own parameter store.

    It is what ``pyro.infer.ELBO`` makes of a model and a guide, an ``ELBOModule``, with two additions: parameters of
    ``pyro.param`` and ``pyro.module`` live in this object and not in Pyro's global store, and the plate over rows is
    scaled from a batch to all N rows. Parameters of modules stay in the modules and are trained in place, as in torch.

    Call :meth:`setup` with the first batch before you build an optimiser: many parameters are made when model and
    guide first run.

    Args:
        model: a Pyro model: a function, a module, or a method of one.
        guide: its guide, with the same arguments.
        loss: a loss of ``pyro.infer``, or a function of ``(model, guide, *args, **kwargs)`` that returns a
            differentiable scalar; ``Trace_ELBO()`` if None.
        plate: the name of the plate over rows, where batches are minibatches.
        rows: N, the number of rows in all.

    Raises:
        TypeError: for a model, guide or loss of the wrong kind.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     m = pyro.sample("m", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("rows", len(x)):
        ...         pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        >>> module = SVIModule(model, pyro.infer.autoguide.AutoDelta(model), rows=3)
        >>> batch = Batch((torch.zeros(3),), rows=3)
        >>> module.setup(batch)
        >>> list(module.trainable())
        ['AutoDelta.m']
        >>> module(batch).requires_grad
        True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        loss: ELBO | Callable[..., Tensor] | None = None,
        plate: str | None = None,
        rows: int = 1,
    ) -> None:
        super().__init__()
        self.loss = _checked_loss(loss)
        self._differentiates_itself = isinstance(self.loss, ELBO) and not hasattr(self.loss, "differentiable_loss")
        self.plate, self.rows = plate, rows
        self.batch: Batch | None = None
        self.held_out = False
        self.running_buffers: list[str] = []
        self.kl_weight = 1.0  # the factor of the latent sites' log densities in the training loss
        self._frame: Any = None  # of the plate over rows, where an AutoGuide is to make it
        self._store: dict[str, Any] = {"params": {}, "constraints": {}}
        self._trainable: dict[str, nn.Parameter] = {}
        self._module_constraints: dict[str, Any] = {}
        self._names: set[str] = set()
        # As given, and kept out of nn.Module's register: ``owners`` holds the modules.
        self._given = {"model": model, "guide": guide}
        owners = {part: _owner(part, fn) for part, fn in self._given.items()}
        self.owners = nn.ModuleDict({part: owner for part, owner in owners.items() if owner is not None})
        self._handled = {part: BatchHandler(self)(fn) for part, fn in self._given.items()}

    @property
    def model(self) -> Callable[..., Any]:
        """The model with its plate scaled for the batch, inside :meth:`running`."""
        return self._for_batch("model")

    @property
    def guide(self) -> Callable[..., Any]:
        """The guide with its plate scaled for the batch, inside :meth:`running`."""
        return self._for_batch("guide")

    def setup(self, batch: Batch) -> None:
        """Run model and guide once, so that every parameter exists; buffers stay as they are.

        Raises:
            ValueError: if there is nothing to train, the model lacks the plate, or the guide does not fit it.
        """
        buffers = {k: b.detach().clone() for k, b in self.owners.named_buffers()}
        with self.running(batch), torch.no_grad():
            # The model goes first by itself: an AutoGuide needs its plate, and errors in it read best so.
            prior = poutine.trace(self.model).get_trace(*batch.args, **batch.kwargs)
            self._find_plate(prior)
        with self.running(batch), torch.no_grad():
            guide = poutine.trace(self.guide).get_trace(*batch.args, **batch.kwargs)
            self._check_guide(prior, guide)
            self._count_plates(batch)
        self._collect()
        if not self._trainable:
            raise ValueError(
                "model and guide have no parameters; needed a pyro.param, PyroParam or nn.Parameter in them"
            )
        now = dict(self.owners.named_buffers())
        self.running_buffers = [k for k, b in buffers.items() if not torch.equal(b, now[k])]
        with torch.no_grad():
            for name in self.running_buffers:
                now[name].copy_(buffers[name])

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, an estimate of the loss of all rows, as a differentiable scalar.

        Raises:
            TypeError: for a loss that differentiates itself, such as ``TraceGraph_ELBO``: use :meth:`loss_and_grads`.
        """
        if self._differentiates_itself:
            raise TypeError(f"loss is a {type(self.loss).__name__}, which runs backward itself; call loss_and_grads")
        return self._call("differentiable_loss", batch)

    def loss_and_grads(self, batch: Batch) -> float:
        """Return the loss of a batch, and add its gradient to that of the parameters."""
        if self._differentiates_itself:
            return float(self._call("loss_and_grads", batch))
        loss = self(batch)
        loss.backward()
        return float(loss.item())

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> float:
        """Return the loss of held-out rows, in eval mode, with a KL weight of 1.

        Raises:
            ValueError: if the guide has a parameter for every row of the training data.
        """
        with self.evaluating(held_out=True):
            self._check_joint_guide(lambda frame: frame.full_size == self.rows, HELD_OUT)
            return float(self._call("loss", batch))

    @contextmanager
    def evaluating(self, held_out: bool) -> Iterator[None]:
        """Run a block in eval mode; where rows are held out, parameters of rows are refused."""
        training = [part for part in self.modules() if part.training]
        self.eval()
        self.held_out = held_out
        try:
            yield
        finally:
            self.held_out = False
            for part in training:
                part.training = True

    @contextmanager
    def running(self, batch: Batch | None = None) -> Iterator[None]:
        """Let model and guide have this object's parameters; None stands for a batch of all rows.

        Inside, ``self.model`` and ``self.guide`` are the model and guide with their plate scaled for the batch.
        """
        guide: Any = unwrap(self._given["guide"])
        offered = self._frame is not None and isinstance(guide, AutoGuide) and guide.create_plates is None
        outer, self.batch = self.batch, batch
        if offered:
            guide.create_plates = self._create_plate
        try:
            with pyro.get_param_store().scope(self._store):
                yield
        finally:
            self.batch = outer
            if offered:
                guide.create_plates = None

    def callable(self, part: str) -> Callable[..., Any]:
        """Return "model" or "guide" as it was given."""
        return self._given[part]

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters by name, unconstrained, in the order in which they came to be.

        Names are those of Pyro's store, and "model.name" or "guide.name" for parameters of modules that Pyro does
        not see.
        """
        return self._trainable

    @torch.no_grad()
    def constrained(self) -> dict[str, Tensor]:
        """Return a copy of every parameter as the model sees it, within its constraint."""
        known = {normalize_param_name(k): c for k, c in self._store["constraints"].items()} | self._module_constraints
        return {k: transform_to(known[k])(p.detach().clone()) for k, p in self._trainable.items()}

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of all parameters, unconstrained, and of the modules' buffers."""
        return {k: v.detach().clone() for k, v in self._values().items()}

    @torch.no_grad()
    def restore(self, values: dict[str, Tensor]) -> None:
        """Set parameters and buffers to values from :meth:`snapshot`."""
        for name, tensor in self._values().items():
            if name in values:
                tensor.copy_(values[name])

    @contextmanager
    def holding(self, values: dict[str, Tensor]) -> Iterator[None]:
        """Let model and guide have the given values of parameters and buffers, from :meth:`snapshot`, for a block."""
        ours, store = {k: t for k, t in self._values().items() if k in values}, self._store
        kept = {k: t.data for k, t in ours.items()}
        for name, tensor in ours.items():  # memory of its own: what is drawn in the block may be a view of it
            tensor.data = values[name].clone()
        self._store = {k: dict(v) for k, v in store.items()}  # what the block sets by name stays inside
        try:
            with self.running(self.batch):
                yield
        finally:
            self._store = store
            for name, tensor in ours.items():
                tensor.data = kept[name]

    def check_no_new_parameters(self) -> None:
        """Raise a ValueError if model or guide has made a parameter since :meth:`setup`."""
        if len(self._store["params"]) > len(self._names):
            late = sorted(set(map(normalize_param_name, self._store["params"])) - self._names)
            raise ValueError(
                f"parameters {late} first appeared after the first run of model and guide, so that the optimiser lacks "
                "them; make every parameter in the first run"
            )

    def _for_batch(self, part: str) -> Callable[..., Any]:
        handled = self.plate is not None or self.held_out or self.kl_weight != 1.0
        return self._handled[part] if handled else self._given[part]

    def _call(self, method: str, batch: Batch) -> Any:
        """Call a method of the loss, or a loss that is a function."""
        with self.running(batch):
            return getattr(self.loss, method, self.loss)(self.model, self.guide, *batch.args, **batch.kwargs)

    def _find_plate(self, trace: Any) -> None:
        """Find the plate over rows in a trace of the model, for AutoGuides; raise a ValueError if it is missing."""
        if self.plate is None:
            return
        frames = {f.name: f for node in trace.nodes.values() for f in node.get("cond_indep_stack", ())}
        if self.plate not in frames:
            raise ValueError(
                f"plate is {self.plate!r}, but the model's plates are {sorted(frames)}; name the one over the rows of "
                "the data, or pass plate=None if the model scales minibatches itself"
            )
        self._frame = frames[self.plate] if frames[self.plate].full_size == self.rows else None

    def _count_plates(self, batch: Batch) -> None:
        """Let a loss that needs it see now how deep plates nest: in the first step it would draw random numbers."""
        needed = isinstance(self.loss, TraceEnum_ELBO | TraceTMC_ELBO) or getattr(
            self.loss, "vectorize_particles", False
        )
        if needed and self.loss.max_plate_nesting == math.inf:
            self.loss._guess_max_plate_nesting(self.model, self.guide, batch.args, batch.kwargs)

    def _create_plate(self, *args: Any, **kwargs: Any) -> Any:
        # An AutoGuide would else make the plate with the size of its first batch.
        size = self.rows if self.batch is None else self.batch.rows
        return pyro.plate(self.plate, self.rows, dim=self._frame.dim, subsample_size=size)

    def _check_guide(self, model: Any, guide: Any) -> None:
        """Raise a ValueError where the guide would be wrong on minibatches without a word."""
        batch = self.batch
        if self.plate is None or batch is None or (batch.rows == self.rows and batch.indices is not None):
            return
        self._check_joint_guide(lambda frame: frame.name == self.plate, _JOINT)
        for name, node in model.nodes.items():
            twin = guide.nodes.get(name)
            pair = [n for n in (node, twin) if n is not None and n["type"] == "sample" and not site_is_subsample(n)]
            inside = [any(f.name == self.plate for f in n["cond_indep_stack"]) for n in pair]
            if inside == [True, False]:
                raise ValueError(
                    f"site {name!r} is inside plate {self.plate!r} in the model but not in the guide, where it would "
                    f"count for one minibatch and not for all rows; put it inside a plate {self.plate!r} there too"
                )

    def _check_joint_guide(self, over_rows: Callable[[Any], bool], message: str) -> None:
        """Raise a ValueError if an AutoGuide has one joint vector with a value for every row."""
        guide: Any = unwrap(self._given["guide"])
        for part in guide.modules() if isinstance(guide, AutoGuide) else ():
            if isinstance(part, AutoContinuous) and part.prototype_trace is not None:
                nodes = part.prototype_trace.iter_stochastic_nodes()
                local = [name for name, node in nodes if any(map(over_rows, node["cond_indep_stack"]))]
                if local:
                    raise ValueError(message.format(type(part).__name__, local))

    def _values(self) -> dict[str, Tensor]:
        return {**self._trainable, **{f"buffer {k}": b for k, b in self.owners.named_buffers()}}

    def _collect(self) -> None:
        """List the parameters of the store and of the modules; each is a registered nn.Parameter afterwards."""
        params = self._store["params"]
        owned = {id(p) for p in self.owners.parameters()}
        for name, value in params.items():
            if not isinstance(value, nn.Parameter):
                params[name] = nn.Parameter(value.detach())
            if id(params[name]) not in owned:
                self.register_parameter("param/" + name.replace("/", "//").replace(".", "/"), params[name])
        found: dict[int, tuple[str, nn.Parameter]] = {}  # under two names, an optimiser would move it twice a step
        for name, parameter in params.items():
            found.setdefault(id(parameter), (normalize_param_name(name), parameter))
        for part, owner in self.owners.items():
            for name, parameter, constraint in _module_parameters(owner):
                if parameter.requires_grad and id(parameter) not in found:
                    found[id(parameter)] = (f"{part}.{name}", parameter)
                    self._module_constraints[f"{part}.{name}"] = constraint
        self._trainable = dict(found.values())
        self._names = set(map(normalize_param_name, params))


def _checked_loss(loss: Any) -> Any:
    """Return a copy of the loss, which forgets the plates of other models."""
    loss = Trace_ELBO() if loss is None else loss
    shown = loss.__name__ if isinstance(loss, type) else type(loss).__name__
    if isinstance(loss, ELBO) and shown.startswith("Jit"):
        raise TypeError(
            f"loss is a {shown}, which makes constants of the first batch's rows and scale; use {shown[3:]}()"
        )
    if isinstance(loss, type | ReweightedWakeSleep) or not (isinstance(loss, ELBO) or callable(loss)):
        raise TypeError(
            f"loss is {shown}; needed one number from a loss of pyro.infer, such as Trace_ELBO(), or from a function "
            "of model, guide and data"
        )
    return copy.copy(loss)


def _owner(part: str, fn: Any) -> nn.Module | None:
    """Return the module that a model or guide is or is a method of, through partials and handlers; None for neither."""
    if isinstance(fn, type) or not callable(fn):
        shown = fn.__name__ if isinstance(fn, type) else type(fn).__name__
        raise TypeError(f"{part} is {shown}; needed a function, a module, or a method of one")
    inner: Any = unwrap(fn)
    while isinstance(inner, functools.partial):
        inner = unwrap(inner.func)
    inner = inner if isinstance(inner, nn.Module) else getattr(inner, "__self__", None)
    return inner if isinstance(inner, nn.Module) else None


def _module_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, Any]]:
    """Yield name, unconstrained value and constraint of each parameter; PyroParams by their own name."""
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        declared = part._pyro_params if isinstance(part, PyroModule) else {}
        for name, parameter in part.named_parameters(recurse=False):
            short = name.removesuffix("_unconstrained")
            if short != name and short in declared:
                yield prefix + short, parameter, declared[short][0]
            else:
                yield prefix + name, parameter, constraints.real


_JOINT = (
    "{0} holds values for every row, of {1}, in one joint vector, which all minibatches would share; use AutoNormal, "
    "a guide that computes local values from the data, or all data at once"
)
