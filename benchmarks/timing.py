"""Running times compared in turn, pair by pair, so that a change of the machine's speed meets both alike.

Where the system says how busy it is (Linux), a pair during which other processes used the processors is set aside and
taken again, as long as patience lasts: with more threads than free cores one measures the scheduler.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

BUSY = 0.08  # of one core: what others may use during a pair that counts
STAT = Path("/proc/stat")
WARM_UP = 3


class Ratio(NamedTuple):
    """Medians of seconds, the median of the ratios of pairs, and how many pairs others disturbed."""

    first: float
    second: float
    ratio: float
    pairs: int
    disturbed: int


def compare(first: Callable[[], object], second: Callable[[], object], pairs: int = 15, patience: float = 0) -> Ratio:
    """Time two functions in turn.

    Args:
        first: a function of nothing.
        second: another.
        pairs: how many pairs to take the medians of.
        patience: seconds to wait in all for others to leave the machine alone.
    """
    for _ in range(WARM_UP):
        first(), second()
    quiet: list[tuple[float, float]] = []
    disturbed: list[tuple[float, tuple[float, float]]] = []
    end = time.monotonic() + patience
    while len(quiet) < pairs and (len(quiet) + len(disturbed) < pairs or time.monotonic() < end):
        pair, others = _pair(first, second, swap=len(quiet) % 2 == 1)
        if others <= BUSY:
            quiet.append(pair)
        else:
            disturbed.append((others, pair))
            _wait_for_quiet(end)
    missing = [pair for _, pair in sorted(disturbed)[: pairs - len(quiet)]]
    return _summary(quiet + missing, len(missing))


def seconds(function: Callable[[], object], repeat: int) -> float:
    """The median time of one call in five batches of so many."""
    batches = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(repeat):
            function()
        batches.append((time.perf_counter() - start) / repeat)
    return statistics.median(batches)


def machine() -> dict[str, object]:
    """What the figures depend on."""
    model = [line.split(":")[1].strip() for line in _read(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return {
        "processor": model[0] if model else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def _pair(first: Callable[[], object], second: Callable[[], object], swap: bool) -> tuple[tuple[float, float], float]:
    busy, own, start = _busy(), _own(), time.perf_counter()
    times = [_time(f) for f in ((second, first) if swap else (first, second))]
    wall = time.perf_counter() - start
    others = (_busy() - busy - (_own() - own)) / wall
    return ((times[1], times[0]) if swap else (times[0], times[1])), others


def _time(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _wait_for_quiet(end: float) -> None:
    while time.monotonic() < end:
        busy, own = _busy(), _own()
        time.sleep(0.25)
        if _busy() - busy - (_own() - own) <= 0.25 * BUSY:
            return


def _busy() -> float:
    """Processor seconds that all processes have used, in all."""
    lines = _read(STAT)
    if not lines:
        return _own()
    user, nice, system, _, _, irq, softirq = map(int, lines[0].split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    used = os.times()
    return used.user + used.system


def _read(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _summary(pairs: list[tuple[float, float]], disturbed: int) -> Ratio:
    first, second = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Ratio(first, second, statistics.median(a / b for a, b in pairs), len(pairs), disturbed)
