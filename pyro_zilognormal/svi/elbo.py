"""The loss of a model and a guide as one module, with parameters of its own, and the isolation of global state."""

import copy
import functools
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceTMC_ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from pyro.params.param_store import normalize_param_name
from pyro.poutine.messenger import Messenger, unwrap
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

if TYPE_CHECKING:
    from pyro_zilognormal.svi.data import Batch

_turn = threading.RLock()


@contextmanager
def isolated(seed: int | None = None) -> Iterator[None]:
    """Run a block with a copy of Pyro's parameter store, and put the process's global state back afterwards.

    That is Pyro's store and settings, torch's default dtype, and the random number generators of torch, numpy and
    Python, which a seed seeds inside the block. Threads run such blocks one after another.
    """
    with _turn:
        state, dtype = pyro.util.get_rng_state(), torch.get_default_dtype()
        with (
            torch.random.fork_rng(range(torch.cuda.device_count())),
            pyro.settings.context(**pyro.settings.get()),
            pyro.get_param_store().scope(pyro.get_param_store().get_state()),
            warnings.catch_warnings(),
        ):
            # A loss that is not finite is reported with its cause, so Pyro's own warning says less.
            warnings.filterwarnings("ignore", message="Encountered (NaN|.?inf)")
            try:
                if seed is not None:
                    pyro.set_rng_seed(seed)
                yield
            finally:
                pyro.util.set_rng_state(state)
                torch.set_default_dtype(dtype)


def rng_state() -> dict[str, Any]:
    """Return the states of all generators, in types that ``torch.load(weights_only=True)`` reads."""
    state = pyro.util.get_rng_state()
    name, words, *rest = state["numpy"]
    return {**state, **torch_rng_state(), "numpy": (str(name), words.tolist(), *rest)}


def torch_rng_state() -> dict[str, Any]:
    """Return the states of torch's generators alone: a microsecond, where numpy's takes a hundred."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any]) -> None:
    """Set the generators to a state from :func:`rng_state` or :func:`torch_rng_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state:
        pyro.util.set_rng_state(state)


class SVIModule(nn.Module):
    """The loss of a model and a guide on a batch: Pyro's ``ELBOModule``, with two additions.

    Parameters of ``pyro.param`` live in this object, not in Pyro's global store, and the plate over rows is scaled from
    a batch to all rows. Call :meth:`setup` with a first batch before you build an optimiser.

    Args:
        model, guide, loss: as for :func:`fit`.
        plate: the name of the plate over rows, where batches are minibatches.
        rows: N, the number of rows in all.

    Raises:
        TypeError: for a Jit loss, which makes constants of the first batch's rows and scale.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_zilognormal.svi import Batch
        >>> def model(x):
        ...     m = pyro.sample("m", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("rows", len(x)):
        ...         pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        >>> module = SVIModule(model, pyro.infer.autoguide.AutoDelta(model), rows=3)
        >>> batch = Batch((torch.zeros(3),), rows=3)
        >>> module.setup(batch)
        >>> list(module.trainable()), module(batch).requires_grad
        (['AutoDelta.m'], True)
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
        self.loss: Any = Trace_ELBO() if loss is None else copy.copy(loss)  # a copy forgets the plates of other models
        if isinstance(loss, ELBO) and (name := type(loss).__name__).startswith("Jit"):
            raise TypeError(f"loss is a {name}, which makes constants of a batch's rows and scale; use {name[3:]}()")
        self._runs_backward = isinstance(loss, ELBO) and not hasattr(loss, "differentiable_loss")
        self.plate, self.rows, self.held_out = plate, rows, False
        self.kl_weight = 1.0  # the factor of the latent sites' log densities in the training loss
        self.batch: Batch | None = None
        self.running_buffers: list[str] = []  # those that a forward pass changes: running means for one
        self._frame: Any = None  # of the plate over rows, where an AutoGuide is to make it
        self._store: dict[str, Any] = {"params": {}, "constraints": {}}
        self._trainable: dict[str, nn.Parameter] = {}
        self._constraints: dict[str, Any] = {}
        owners = {"model": _owner(model), "guide": _owner(guide)}
        self.owners = nn.ModuleDict({part: owner for part, owner in owners.items() if owner is not None})
        # Model and guide with their plate scaled for the batch, inside ``running``.
        self.model, self.guide = _BatchHandler(self)(model), _BatchHandler(self)(guide)

    @torch.no_grad()
    def setup(self, batch: "Batch") -> None:
        """Run model and guide once, so that every parameter exists; buffers stay as they are.

        Raises:
            ValueError: if there is nothing to train, or the model lacks the plate.
        """
        buffers = self.snapshot()  # there are no parameters yet
        with _Start(self.owners), self.running(batch):
            # The model goes first by itself: an AutoGuide needs its plate, and errors in it read best so.
            self._find_plate(poutine.trace(self.model).get_trace(*batch.args, **batch.kwargs))
            self.guide(*batch.args, **batch.kwargs)
            counts = isinstance(self.loss, TraceEnum_ELBO | TraceTMC_ELBO)
            counts = counts or getattr(self.loss, "vectorize_particles", False)
            if counts and self.loss.max_plate_nesting == math.inf:
                # In the first step, which may be one after a resume, it would draw random numbers.
                self.loss._guess_max_plate_nesting(self.model, self.guide, batch.args, batch.kwargs)
        self._collect()
        now = self.state()
        self.running_buffers = [k for k, b in buffers.items() if not torch.equal(b, now[k])]
        self.restore({k: buffers[k] for k in self.running_buffers})

    def forward(self, batch: "Batch") -> Tensor:
        """Return the loss of a batch, an estimate of the loss of all rows, as a differentiable scalar."""
        if self._runs_backward:
            raise TypeError(f"loss is a {type(self.loss).__name__}, which runs backward itself; call loss_and_grads")
        loss: Tensor = self._call("differentiable_loss", batch)
        return loss

    def loss_and_grads(self, batch: "Batch") -> float:
        """Return the loss of a batch, and add its gradient to that of the parameters."""
        if self._runs_backward:
            return float(self._call("loss_and_grads", batch))
        loss = self(batch)
        loss.backward()
        return float(loss.item())

    @torch.no_grad()
    def evaluate(self, batch: "Batch") -> float:
        """Return the loss of held-out rows, in eval mode, with a KL weight of 1; parameters of rows are refused."""
        with self.evaluating(held_out=True):
            return float(self._call("loss", batch))

    def traces(
        self, batch: "Batch", given: poutine.Trace | None = None, model: bool = True, replicate: bool = False
    ) -> list[poutine.Trace]:
        """Return the trace of the guide, replayed against ``given``, and of the model, with its data or replicated."""
        with self.running(batch):
            guide = poutine.replay(self.guide, given) if given else self.guide
            found = [poutine.trace(guide).get_trace(*batch.args, **batch.kwargs)]
            if model:
                replayed = poutine.replay(self.model, found[0])
                replayed = poutine.uncondition(replayed) if replicate else replayed
                found.append(poutine.trace(replayed).get_trace(*batch.args, **batch.kwargs))
            return found

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
    def running(self, batch: "Batch | None" = None) -> Iterator[None]:
        """Let model and guide have this object's parameters, and the scale of a batch; None stands for all rows."""
        guide: Any = unwrap(self.guide)
        offered = isinstance(guide, AutoGuide) and guide.create_plates is None
        outer, self.batch = self.batch, batch
        if offered:  # the guide would else make the plate with the size of its first batch
            guide.create_plates = self._create_plates
        try:
            with pyro.get_param_store().scope(self._store):
                yield
        finally:
            self.batch = outer
            if offered:
                guide.create_plates = None

    @contextmanager
    def holding(self, values: dict[str, Tensor]) -> Iterator[None]:
        """Let model and guide have the given values of parameters and buffers, from :meth:`snapshot`, for a block."""
        state, store = self.state(), self._store
        kept = {k: state[k].data for k in values}
        for name, value in values.items():  # memory of its own: what is drawn in the block may be a view of it
            state[name].data = value.clone()
        self._store = {k: dict(v) for k, v in store.items()}  # what the block sets by name stays inside
        try:
            with self.running():
                yield
        finally:
            self._store = store
            for name, value in kept.items():
                state[name].data = value

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters, unconstrained, by Pyro's names, or "model.name" and "guide.name" where it has none."""
        return self._trainable

    @torch.no_grad()
    def constrained(self) -> dict[str, Tensor]:
        """Return a copy of every parameter as the model sees it, within its constraint."""
        return {k: transform_to(self._constraints[k])(p.detach().clone()) for k, p in self._trainable.items()}

    def state(self) -> dict[str, Tensor]:
        """Return all parameters, unconstrained, and the modules' buffers."""
        return {**self._trainable, **{f"buffer {k}": b for k, b in self.owners.named_buffers()}}

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of :meth:`state`."""
        return {k: v.detach().clone() for k, v in self.state().items()}

    @torch.no_grad()
    def restore(self, values: dict[str, Tensor]) -> None:
        """Set parameters and buffers to values from :meth:`snapshot`."""
        state = self.state()
        for name, value in values.items():
            state[name].copy_(value)

    def check_no_new_parameters(self) -> None:
        """Raise a ValueError if model or guide has made a parameter since :meth:`setup`."""
        trained = set(map(id, self._trainable.values()))
        late = [normalize_param_name(name) for name, p in self._store["params"].items() if id(p) not in trained]
        if late:
            raise ValueError(f"parameters {late} appeared after the first run of model and guide, which must make all")

    def _call(self, method: str, batch: "Batch") -> Any:
        """Call a method of the loss, or a loss that is a function."""
        loss = getattr(self.loss, method) if isinstance(self.loss, ELBO) else self.loss
        with self.running(batch):
            return loss(self.model, self.guide, *batch.args, **batch.kwargs)

    def _find_plate(self, trace: poutine.Trace) -> None:
        """Find the plate over rows in a trace of the model, for AutoGuides; raise a ValueError if it is missing."""
        frames = {f.name: f for node in trace.nodes.values() for f in node.get("cond_indep_stack", ())}
        if self.plate is not None and self.plate not in frames:
            raise ValueError(f"plate is {self.plate!r}; the model's plates are {sorted(frames)}: name that over rows")
        if self.plate is not None and frames[self.plate].full_size == self.rows:
            self._frame = frames[self.plate]

    def _create_plates(self, *_: Any, **__: Any) -> list[Any]:
        size = self.rows if self.batch is None else self.batch.rows
        frames = [] if self._frame is None else [self._frame]
        return [pyro.plate(f.name, self.rows, dim=f.dim, subsample_size=size) for f in frames]

    def _collect(self) -> None:
        """List the parameters of the store and of the modules; each is a registered nn.Parameter afterwards."""
        params, owned = self._store["params"], {id(p) for p in self.owners.parameters()}
        found: dict[int, tuple[str, nn.Parameter, Any]] = {}  # under two names, an optimiser would move it twice a step
        for name, value in params.items():
            params[name] = p = value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach())
            if id(p) not in owned:
                self.register_parameter("param/" + name.replace("/", "//").replace(".", "/"), p)
            found.setdefault(id(p), (normalize_param_name(name), p, self._store["constraints"][name]))
        for part, owner in self.owners.items():
            for name, p, constraint in _parameters(owner):
                if p.requires_grad:
                    found.setdefault(id(p), (f"{part}.{name}", p, constraint))
        if not found:
            raise ValueError("model and guide have no parameters; needed a pyro.param or nn.Parameter in them")
        self._trainable = {name: p for name, p, _ in found.values()}
        self._constraints = {name: constraint for name, _, constraint in found.values()}


class _Start(Messenger):
    """Start parameters of ``pyro.param`` from those in Pyro's store, but parameters of modules from what these hold."""

    def __init__(self, owners: nn.ModuleDict) -> None:
        super().__init__()
        self.store = pyro.get_param_store().get_state()
        names = [owner._pyro_name for owner in owners.values() if isinstance(owner, PyroModule)]
        self.made_by_modules = tuple(f"{name}." for name in names if name)  # those of an AutoGuide, at its first call

    def _pyro_param(self, msg: Any) -> None:
        name, store = msg["name"], pyro.get_param_store()
        of_module = name.startswith(self.made_by_modules) or any(isinstance(v, nn.Parameter) for v in msg["args"])
        if name in self.store["params"] and name not in store and not of_module:
            value, constraint = self.store["params"][name].detach().clone(), self.store["constraints"][name]
            store.set_state({"params": {name: value}, "constraints": {name: constraint}})


class _BatchHandler(Messenger):
    """Scale the plate over rows from a batch to all rows, give it the batch's indices, and weight latent sites.

    ``pyro.plate(name, N, subsample_size=len(x))`` is scaled by Pyro itself, and gets the indices of the batch, so
    that parameters held for every row line up with the data. ``pyro.plate(name, len(x))`` knows only the batch, and
    its sites are scaled by N / len(x) here.
    """

    def __init__(self, module: SVIModule) -> None:
        super().__init__()
        self.module = module

    def _process_message(self, msg: Any) -> None:
        module, batch = self.module, self.module.batch
        if site_is_subsample(msg):
            ours = msg["name"] == module.plate and msg["fn"].size == module.rows and msg["value"] is None
            if ours and batch is not None and batch.indices is not None and batch.rows != module.rows:
                msg["value"], msg["done"] = batch.indices, True
            return
        frame = next((f for f in msg["cond_indep_stack"] if f.vectorized and self._over_rows(f)), None)
        if msg["type"] == "sample" and batch is not None:
            if frame is not None and frame.full_size != module.rows:
                msg["scale"] = msg["scale"] * self._scale(frame, batch.rows)
            if not msg["is_observed"] and not module.held_out:
                msg["scale"] = msg["scale"] * module.kl_weight
        elif msg["type"] == "param" and frame is not None and msg["kwargs"].get("event_dim") is not None:
            self._check_row_parameter(msg["name"], frame.full_size == module.rows)

    def _over_rows(self, frame: Any) -> bool:
        if self.module.plate is None:
            return self.module.held_out and frame.full_size == self.module.rows
        return frame.name == self.module.plate

    def _scale(self, frame: Any, rows: int) -> float:
        if frame.full_size != rows:
            raise ValueError(
                f"plate {frame.name!r} has size {frame.full_size}; needed {self.module.rows}, the number of rows in "
                f"all, or {rows}, that of this batch"
            )
        return self.module.rows / rows

    def _check_row_parameter(self, name: str, sized: bool) -> None:
        """Raise a ValueError for a parameter of rows, ``sized`` if of all, that would meet other rows than its own."""
        module, batch = self.module, self.module.batch
        unnumbered = batch is not None and (batch.indices is None or not (sized or batch.rows == module.rows))
        if unnumbered or (module.held_out and sized):
            raise ValueError(
                f"parameter {name!r} holds a value for every row; needed rows of the fit, none held out, numbered by "
                f"Minibatches and a plate pyro.plate({module.plate!r}, {module.rows}, subsample_size=len(x))"
            )


def _owner(fn: Any) -> nn.Module | None:
    """Return the module that a model or guide is or is a method of, through partials and handlers; None for neither."""
    inner: Any = unwrap(fn)
    while isinstance(inner, functools.partial):
        inner = unwrap(inner.func)
    inner = inner if isinstance(inner, nn.Module) else getattr(inner, "__self__", None)
    return inner if isinstance(inner, nn.Module) else None


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, Any]]:
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
