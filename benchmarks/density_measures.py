"""What is measured of the log density: each function gives rows of a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from density_cases import NUMPYRO, PYRO, SCVI, STEPS, Data, Step, ours, scvi_tools, torch_step
from timing import Ratio, compare, seconds
from torch.profiler import ProfilerActivity, profile

ROWS, COLUMNS, ZEROS = 1024, 2000, 0.7


class Row(NamedTuple):
    """A figure, and what it may be at most."""

    what: str
    against: str
    figure: float
    limit: float | None
    detail: str

    @property
    def verdict(self) -> str:
        return "" if self.limit is None else "yes" if self.figure <= self.limit else "**NO**"


class Timer(NamedTuple):
    """How to compare: how many pairs, and how many seconds to wait for a quiet machine, for each comparison."""

    pairs: int
    patience: float

    def __call__(self, first: Step, second: Step) -> Ratio:
        return compare(first, second, self.pairs, self.patience)


COMPILED = "torch.compile of the sum"
LIMITS: dict[tuple[str, str], dict[str, float]] = {
    ("all full size", "eager"): {SCVI: 0.40, PYRO: 0.40, NUMPYRO: 0.80},
    ("scale and logits per gene", "eager"): {SCVI: 0.25, PYRO: 0.25, NUMPYRO: 0.80},
    ("all full size", COMPILED): {SCVI: 0.40, PYRO: 0.20, NUMPYRO: 0.35},
    ("scale and logits per gene", COMPILED): {SCVI: 0.40, PYRO: 0.15, NUMPYRO: 0.35},
}
SHAPES = tuple(dict.fromkeys(shape for shape, _ in LIMITS))


def of_shape(shape: str, device: str = "cpu") -> Data:
    return Data.drawn(ROWS, COLUMNS, ZEROS, per_gene=shape != "all full size", device=device)


def ratio_row(what: str, against: str, found: Ratio, limit: float | None) -> Row:
    detail = f"{1e3 * found.first:.2f} ms / {1e3 * found.second:.2f} ms"
    if found.disturbed:
        detail += f"; {found.disturbed} of {found.pairs} pairs disturbed"
    return Row(what, against, found.ratio, limit, detail)


def against_peers(peers: list[str], timer: Timer) -> list[Row]:
    """Forward and backward of the sum, ours over each peer's."""
    rows = []
    for (shape, way), limits in LIMITS.items():
        data = of_shape(shape)
        step = torch_step(ours, data, compiled=way == COMPILED)
        rows += [ratio_row(f"{shape}, {way}", p, timer(step, STEPS[p](data)), limits[p]) for p in peers]
    return rows


def masked(peers: list[str], timer: Timer) -> list[Row]:
    """Forward and backward of a masked sum, whose gradient differs between entries."""
    if SCVI not in peers:
        return []
    rows = []
    for shape in SHAPES:
        data = of_shape(shape)
        mask = torch.rand(data.x.shape, generator=torch.Generator().manual_seed(1)) < 0.9
        found = timer(torch_step(ours, data, mask=mask), torch_step(scvi_tools(), data, mask=mask))
        rows.append(ratio_row(f"{shape}, masked", SCVI, found, None))
    return rows


def forward_alone(timer: Timer) -> list[Row]:
    """log_prob without gradients, against torch's LogNormal on positive data, for which torch.log is fast."""
    rows = []
    for shape in SHAPES:
        data = of_shape(shape)
        positive, (mu, scale, _) = torch.where(data.x > 0, data.x, 1), data.parameters
        theirs = torch.distributions.LogNormal(mu, scale, validate_args=False)
        own = no_grad(lambda d=data: ours(*d.parameters).log_prob(d.x))
        found = timer(own, no_grad(lambda t=theirs, p=positive: t.log_prob(p)))
        rows.append(ratio_row(f"{shape}, forward alone", "torch LogNormal, positive data", found, 1.0))
    return rows


def no_grad(function: Callable[[], object]) -> Step:
    def step() -> None:
        with torch.no_grad():
            function()

    return step


def validation(timer: Timer) -> list[Row]:
    def validated(*parameters: torch.Tensor) -> torch.distributions.Distribution:
        return ours(*parameters, validate=True)

    rows = []
    for shape in SHAPES:
        data = of_shape(shape)
        found = timer(torch_step(validated, data), torch_step(ours, data))
        rows.append(ratio_row(f"{shape}, validation on", "ours, validation off", found, 1.15))
    return rows


def sampling(peers: list[str], timer: Timer) -> list[Row]:
    if SCVI not in peers:
        return []
    theirs, rows = scvi_tools(), []
    for shape in SHAPES:
        parameters = [p.detach() for p in of_shape(shape).parameters]
        found = timer(lambda p=parameters: ours(*p).sample(), lambda p=parameters: theirs(*p).sample())
        rows.append(ratio_row(f"{shape}, sample", SCVI, found, 0.8))
    return rows


def construction() -> Row:
    parameters = of_shape("all full size").parameters
    taken = 1e6 * seconds(lambda: ours(*parameters), repeat=1000)
    return Row("construction, full size, validation off", "microseconds", taken, 50, "")


def memory(peers: list[str]) -> list[Row]:
    """Peak of what torch has allocated during forward and backward, gradients included."""
    rows = []
    for shape in SHAPES:
        data = of_shape(shape)
        own = peak_memory(torch_step(ours, data), data)
        for peer in (p for p in peers if p in (SCVI, PYRO)):
            other = peak_memory(STEPS[peer](data), data)
            detail = f"{own / 2**20:.1f} MiB / {other / 2**20:.1f} MiB"
            rows.append(Row(f"{shape}, peak extra memory", peer, own / other, 0.5 if peer == SCVI else None, detail))
    return rows


def peak_memory(step: Step, data: Data) -> int:
    step()
    for parameter in data.parameters:
        parameter.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    level = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return peak


def by_size(peers: list[str], timer: Timer) -> list[dict[str, object]]:
    """Milliseconds of forward and backward by the number of rows, for us and each peer."""
    found = []
    for rows in (1, 16, 128, 1024, 4096):
        data = Data.drawn(rows, COLUMNS, ZEROS, per_gene=True)
        found.append({"entries": rows * COLUMNS, "milliseconds": _all(peers, timer, data)})
    return found


def by_density(peers: list[str], timer: Timer) -> list[dict[str, object]]:
    """The same by the share of positive values, with CSR data too."""
    found = []
    for density in (0.01, 0.03, 0.1, 0.3, 0.6, 1.0):
        data = Data.drawn(ROWS, COLUMNS, 1 - density, per_gene=True)
        times = _all(peers, timer, data)
        times["ours, CSR"] = 1e3 * timer(csr_step(data), torch_step(ours, data)).first
        found.append({"density": density, "milliseconds": times})
    return found


def _all(peers: list[str], timer: Timer, data: Data) -> dict[str, float]:
    own = torch_step(ours, data)
    ratios = {peer: timer(own, STEPS[peer](data)) for peer in peers}
    times = {peer: 1e3 * ratio.second for peer, ratio in ratios.items()}
    firsts = [r.first for r in ratios.values()] or [timer(own, own).first]
    return {"ours": 1e3 * min(firsts), **times}


def csr_step(data: Data) -> Step:
    """Forward and backward of the sum over the same data in CSR."""
    from scipy.sparse import csr_matrix

    x = csr_matrix(data.x.numpy())

    def step() -> None:
        for parameter in data.parameters:
            parameter.grad = None
        ours(*data.parameters).log_prob_sum(x).backward()

    return step


def csr_against_dense(timer: Timer) -> list[dict[str, object]]:
    """CSR over dense by density, for each shape of the parameters."""
    found = []
    for shape in ("all per gene", *SHAPES[::-1]):
        for density in (0.01, 0.03, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8):
            data = Data.drawn(ROWS, COLUMNS, 1 - density, per_gene=shape != "all full size")
            if shape == "all per gene":
                data.parameters[0] = data.parameters[0][0].detach().clone().requires_grad_()
            ratio = timer(csr_step(data), torch_step(ours, data))
            found.append({"shape": shape, "density": density, "ratio": ratio.ratio})
    return found


def bandwidth(timer: Timer, device: str, rows: int = 16 * ROWS) -> list[Row]:
    """On an accelerator: the least time that the traffic of forward and backward takes, over the time taken."""
    large = torch.empty(2**28 if device != "cpu" else 2**24, device=device)

    def copy() -> None:
        large.clone()
        if large.is_cuda:
            torch.cuda.synchronize()

    per_second = 2 * large.numel() * large.element_size() / timer(copy, copy).first
    found = []
    for shape, way in LIMITS:
        data = Data.drawn(rows, COLUMNS, ZEROS, per_gene=shape != "all full size", device=device)
        full = [t for t in (data.x, *data.parameters) if t.dim() == 2]
        passes = 2 * len(full) + 1 + len(full) - 1  # all read twice; log_prob and the full-size gradients written
        least = passes * data.x.numel() * data.x.element_size() / per_second
        step = torch_step(ours, data, compiled=way == COMPILED)
        taken = timer(step, step).first
        detail = f"{1e3 * taken:.3f} ms, copies at {per_second / 1e9:.0f} GB/s"
        found.append(Row(f"{shape}, {way}", "share of the bandwidth limit", least / taken, None, detail))
    return found
