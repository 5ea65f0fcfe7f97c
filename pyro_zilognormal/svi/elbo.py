"""The loss of a model and a guide as one module with parameters of its own, and the isolation of global state."""

import copy
import functools
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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

_turn = threading.RLock()


@contextmanager
def isolated(seed: int | None = None) -> Iterator[None]:
    """Run a block with a copy of Pyro's parameter store, and put the process's global state back afterwards.

    That is Pyro's store and settings, torch's default dtype, and the random number generators of torch, numpy and
    Python, which a seed seeds inside the block. Threads run such blocks one after another.
    """
    with (
        _turn,
        torch.random.fork_rng(range(torch.cuda.device_count())),
        pyro.settings.context(**pyro.settings.get()),
        pyro.get_param_store().scope(pyro.get_param_store().get_state()),
        warnings.catch_warnings(),
    ):
        # A loss that is not finite is reported with its cause, so Pyro's own warning says less.
        warnings.filterwarnings("ignore", message="Encountered (NaN|.?inf)")
        state, dtype = pyro.util.get_rng_state(), torch.get_default_dtype()
        try:
            if seed is not None:
                pyro.set_rng_seed(seed)
            yield
        finally:
            pyro.util.set_rng_state(state)
            torch.set_default_dtype(dtype)


def rng_state() -> dict[str, Any]:
    """Return the states of torch's generators: a microsecond, where those of numpy and Python take a hundred."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any]) -> None:
    """Set generators to a state from :func:`rng_state`, with or without that of ``pyro.util.get_rng_state``."""
    pyro.util.set_rng_state({**pyro.util.get_rng_state(), **state})
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


@dataclass(frozen=True)
class Batch:
    """The positional arguments of one call of model and guide.

    Args:
        args: the arguments.
        rows: number of rows b in the batch.
        indices: which rows of the data these are, of shape (b,), or None where that is unknown.
    """

    args: tuple[Any, ...]
    rows: int = 1
    indices: Tensor | None = None


class SVIModule(nn.Module):
    """The loss of a model and a guide on a batch: Pyro's ``ELBOModule``, with two additions.

    Parameters of ``pyro.param`` live in this object, not in Pyro's global store, and the plate over rows is scaled from
    a batch to all rows. Call :meth:`setup` with a first batch before you build an optimiser.

    Args:
        model, guide, loss: as for :func:`fit`.
        plate: the name of the plate over rows, where batches are minibatches.
        rows: N, the number of rows in all.
        kwargs: keyword arguments of model and guide.

    Raises:
        TypeError: for a Jit loss, which makes constants of the first batch's rows and scale.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=x)
        >>> module, batch = SVIModule(model, guide=lambda x: None), Batch((torch.tensor(3.0),))
        >>> module.setup(batch)
        >>> list(module.trainable()), module(batch).requires_grad
        (['m'], True)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        loss: ELBO | Callable[..., Tensor] | None = None,
        plate: str | None = None,
        rows: int = 1,
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(loss, ELBO) and (name := type(loss).__name__).startswith("Jit"):
            raise TypeError(f"loss is a {name}, which makes constants of a batch's rows and scale; use {name[3:]}()")
        self.loss: Any = Trace_ELBO() if loss is None else copy.copy(loss)  # a copy forgets the plates of other models
        self._runs_backward = isinstance(loss, ELBO) and not hasattr(loss, "differentiable_loss")
        self.plate, self.rows, self.kwargs = plate, rows, kwargs or {}
        self.kl_weight = 1.0  # the factor of the latent sites' log densities in the training loss
        self.batch: Batch | None = None
        self.held_out = False
        self.running_buffers: list[str] = []  # those that a forward pass changes: running means for one
        self._frame: Any = None  # of the plate over rows, where an AutoGuide is to make it
        self._preset: dict[str, Any] = {}  # the values in Pyro's store that parameters start from
        self._store: dict[str, Any] = {"params": {}, "constraints": {}}
        self._trainable: dict[str, nn.Parameter] = {}
        owners = {"model": _owner(model), "guide": _owner(guide)}
        self.owners = nn.ModuleDict({part: owner for part, owner in owners.items() if owner is not None})
        # Model and guide with their plate scaled for the batch, inside ``running``.
        self.model, self.guide = _BatchHandler(self)(model), _BatchHandler(self)(guide)

    @torch.no_grad()
    def setup(self, batch: Batch) -> None:
        """Run model and guide once, so that every parameter exists; buffers stay as they are.

        Raises:
            ValueError: if there is nothing to train, or the model lacks the plate.
        """
        buffers, (params, constraints) = self.snapshot(), pyro.get_param_store().get_state().values()
        # A module starts from what it holds, also an AutoGuide, which makes its parameters when it is first called.
        made = tuple(f"{owner._pyro_name}." for owner in self.owners.values() if getattr(owner, "_pyro_name", ""))
        self._preset = {k: (p.detach().clone(), constraints[k]) for k, p in params.items() if not k.startswith(made)}
        with self.running(batch) as self._store:
            # The model goes first by itself: an AutoGuide needs its plate, and errors in it read best so.
            trace = poutine.trace(self.model).get_trace(*batch.args, **self.kwargs)
            frames = {f.name: f for node in trace.nodes.values() for f in node.get("cond_indep_stack", ())}
            if self.plate is not None and self.plate not in frames:
                raise ValueError(f"plate is {self.plate!r}; the model's are {sorted(frames)}: name that over rows")
            self._frame = frames.get(self.plate)
            self.guide(*batch.args, **self.kwargs)
            counts = isinstance(self.loss, TraceEnum_ELBO | TraceTMC_ELBO)
            if (counts or getattr(self.loss, "vectorize_particles", False)) and self.loss.max_plate_nesting == math.inf:
                # In the first step, which may be one after a resume, it would draw random numbers.
                self.loss._guess_max_plate_nesting(self.model, self.guide, batch.args, self.kwargs)
        self._preset = {}
        self._collect()
        now = self.state()
        self.running_buffers = [k for k, b in buffers.items() if not torch.equal(b, now[k])]
        self.restore({k: buffers[k] for k in self.running_buffers})

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, an estimate of the loss of all rows, as a differentiable scalar."""
        if self._runs_backward:
            raise TypeError(f"loss is a {type(self.loss).__name__}, which runs backward itself; call loss_and_grads")
        loss: Tensor = self._call("differentiable_loss", batch)
        return loss

    def loss_and_grads(self, batch: Batch) -> float:
        """Return the loss of a batch, and add its gradient to that of the parameters."""
        if self._runs_backward:
            return float(self._call("loss_and_grads", batch))
        loss = self(batch)
        loss.backward()
        return float(loss.item())

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> float:
        """Return the loss of held-out rows, in eval mode, with a KL weight of 1; parameters of rows are refused."""
        with self.evaluating(held_out=True):
            return float(self._call("loss", batch))

    def traces(
        self, batch: Batch, given: dict[str, Any] | None = None, model: bool = True, replicate: bool = False
    ) -> list[poutine.Trace]:
        """Return the trace of the guide, with some sites given, and of the model, with its data or replicated."""
        fixed = poutine.Trace()
        fixed.nodes.update(given or {})
        with self.running(batch):
            found = [poutine.trace(poutine.replay(self.guide, fixed)).get_trace(*batch.args, **self.kwargs)]
            if model:
                replayed = poutine.replay(self.model, found[0])
                replayed = poutine.uncondition(replayed) if replicate else replayed
                found.append(poutine.trace(replayed).get_trace(*batch.args, **self.kwargs))
            return found

    @contextmanager
    def evaluating(self, held_out: bool, kwargs: dict[str, Any] | None = None) -> Iterator[None]:
        """Run a block in eval mode, with other keyword arguments; of held-out rows, parameters of rows are refused."""
        training, own = [part for part in self.modules() if part.training], self.kwargs
        self.held_out, self.kwargs = held_out, own if kwargs is None else kwargs
        self.eval()
        try:
            yield
        finally:
            self.held_out, self.kwargs = False, own
            for part in training:
                part.training = True

    @contextmanager
    def running(self, batch: Batch | None = None) -> Iterator[dict[str, Any]]:
        """Let model and guide have this object's parameters, and the scale of a batch; None stands for all rows.

        Yields the state of the parameter store, which has at the end what the block has set.
        """
        guide: Any = unwrap(self.guide)
        offered = isinstance(guide, AutoGuide) and guide.create_plates is None
        outer, self.batch = self.batch, batch
        if offered:  # the guide would else make the plate with the size of its first batch
            guide.create_plates = self._create_plates
        try:
            with pyro.get_param_store().scope({k: dict(v) for k, v in self._store.items()}) as store:
                yield store
        finally:
            self.batch = outer
            if offered:
                guide.create_plates = None

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters, unconstrained, by Pyro's names, or "model.name" and "guide.name" where it has none."""
        return self._trainable

    @torch.no_grad()
    def constrained(self) -> dict[str, Tensor]:
        """Return a copy of every parameter as the model sees it, within its constraint."""
        named = self._named()
        return {k: named[k].detach().clone() for k in self._trainable}

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

    def _call(self, method: str, batch: Batch) -> Any:
        """Call a method of the loss, or a loss that is a function; refuse parameters made since :meth:`setup`."""
        loss = getattr(self.loss, method) if isinstance(self.loss, ELBO) else self.loss
        with self.running(batch) as store:
            value = loss(self.model, self.guide, *batch.args, **self.kwargs)
        trained = set(map(id, self._trainable.values()))
        late = [normalize_param_name(name) for name, p in store["params"].items() if id(p) not in trained]
        if late:
            raise ValueError(f"parameters {late} appeared after the first run of model and guide, which must make all")
        return value

    def _create_plates(self, *_: Any, **__: Any) -> list[Any]:
        if self._frame is None or self._frame.full_size != self.rows:
            return []
        size = self.rows if self.batch is None else self.batch.rows
        return [pyro.plate(self._frame.name, self.rows, dim=self._frame.dim, subsample_size=size)]

    def _collect(self) -> None:
        """List the parameters of the store and of the modules; each is a registered nn.Parameter afterwards."""
        params, owned = self._store["params"], {id(p) for p in self.owners.parameters()}
        for name, value in params.items():
            params[name] = p = value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach())
            if id(p) not in owned:
                self.register_parameter("param/" + name.replace("/", "//").replace(".", "/"), p)
        found: dict[int, tuple[str, nn.Parameter]] = {}  # under two names, an optimiser would move it twice a step
        for name, value in self._named().items():
            p = value.unconstrained() if hasattr(value, "unconstrained") else value
            if p.requires_grad:
                found.setdefault(id(p), (name, p))
        if not found:
            raise ValueError("model and guide have no parameters; needed a pyro.param or nn.Parameter in them")
        self._trainable = dict(found.values())

    def _named(self) -> dict[str, Any]:
        """Return all parameters of the store and of the modules, within their constraints."""
        with self.running():
            named = {normalize_param_name(name): value for name, value in pyro.get_param_store().items()}
        for part, owner in self.owners.items():
            named |= PyroModule.named_pyro_params(owner, part)
        return named


class _BatchHandler(Messenger):
    """Scale the plate over rows from a batch to all rows, give it the batch's indices, and weight latent sites.

    ``pyro.plate(name, N, subsample_size=len(x))`` is scaled by Pyro itself, and gets the indices of the batch, so
    that parameters held for every row line up with the data. ``pyro.plate(name, len(x))`` knows only the batch, and
    its sites are scaled by N / len(x) here.
    """

    def __init__(self, module: SVIModule) -> None:
        super().__init__()
        self.module = module

    def _pyro_sample(self, msg: Any) -> None:
        module, batch = self.module, self.module.batch
        if batch is None:
            return
        if site_is_subsample(msg):
            ours = msg["name"] == module.plate and msg["fn"].size == module.rows and msg["value"] is None
            if ours and batch.indices is not None and batch.rows != module.rows:
                msg["value"], msg["done"] = batch.indices, True
            return
        frame = self._over_rows(msg)
        if frame is not None and frame.full_size != module.rows:
            if frame.full_size != batch.rows:
                raise ValueError(
                    f"plate {frame.name!r} has size {frame.full_size}; needed {module.rows}, the number of rows in "
                    f"all, or {batch.rows}, that of this batch"
                )
            msg["scale"] = msg["scale"] * (module.rows / batch.rows)
        if not msg["is_observed"] and not module.held_out:
            msg["scale"] = msg["scale"] * module.kl_weight

    def _pyro_param(self, msg: Any) -> None:
        """Start a parameter that is no module's from Pyro's store; refuse one of rows that would meet other rows."""
        module, batch, name, store = self.module, self.module.batch, msg["name"], pyro.get_param_store()
        of_module = any(isinstance(value, nn.Parameter) for value in msg["args"])
        if name in module._preset and name not in store and not of_module:
            value, constraint = module._preset[name]
            store.set_state({"params": {name: value}, "constraints": {name: constraint}})
        frame = self._over_rows(msg)
        if frame is None or msg["kwargs"].get("event_dim") is None:
            return
        of_all = frame.full_size == module.rows
        unnumbered = batch is not None and (batch.indices is None or not (of_all or batch.rows == module.rows))
        if unnumbered or (module.held_out and of_all):
            raise ValueError(
                f"parameter {name!r} holds a value for every row; needed rows of the fit, none held out, numbered by "
                f"Minibatches and a plate pyro.plate({module.plate!r}, {module.rows}, subsample_size=len(x))"
            )

    def _over_rows(self, msg: Any) -> Any:
        """Return the plate over rows around a message; without its name, where rows are held out, one of as many."""
        module, frames = self.module, [f for f in msg["cond_indep_stack"] if f.vectorized]
        if module.plate is None:
            frames = [f for f in frames if module.held_out and f.full_size == module.rows]
        return next((f for f in frames if module.plate in (None, f.name)), None)


def _owner(fn: Any) -> nn.Module | None:
    """Return the module that a model or guide is or is a method of, through partials and handlers; None for neither."""
    inner: Any = unwrap(fn)
    while isinstance(inner, functools.partial):
        inner = unwrap(inner.func)
    return next((m for m in (inner, getattr(inner, "__self__", None)) if isinstance(m, nn.Module)), None)
