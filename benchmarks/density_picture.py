"""The curves of the log density's benchmark as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def draw(record: dict[str, Any], path: Path) -> None:
    """Time by size, time by density, and CSR against dense."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    by_size, by_density, csr = figure.subplots(1, 3)
    lines(by_size, record["size"], "entries", "entries, 70 % zeros")
    lines(by_density, record["density"], "density", "share of positive values, 1024 x 2000")
    for shape in dict.fromkeys(point["shape"] for point in record["csr"]):
        points = [p for p in record["csr"] if p["shape"] == shape]
        csr.plot([p["density"] for p in points], [p["ratio"] for p in points], marker=".", label=shape)
    csr.axhline(1, color="grey", linewidth=0.8)
    csr.set(xlabel="share of positive values", ylabel="time of CSR / time of dense", xscale="log", yscale="log")
    for axes in (by_size, by_density, csr):
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def lines(axes: Any, points: list[dict[str, Any]], key: str, label: str) -> None:
    """A line for each system."""
    for name in points[-1]["milliseconds"]:
        axes.plot([p[key] for p in points], [p["milliseconds"][name] for p in points], marker=".", label=name)
    axes.set(xlabel=label, ylabel="milliseconds, forward and backward", xscale="log", yscale="log")
