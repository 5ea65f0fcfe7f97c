"""The curves of all benchmarks as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Found = dict[str, Any]


def draw(record: dict[str, Found], path: Path) -> None:
    """Time by size and density, CSR against dense, and time and memory by the number of cells, as far as measured."""
    figure = Figure(figsize=(14, 8), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    if "csr" in record.get("curves", {}):
        lines(panels[0], record["curves"]["size"], "entries", "entries, 70 % zeros")
        lines(panels[1], record["curves"]["density"], "density", "share of positive values, 1024 x 2000")
        csr(panels[2], record["curves"]["csr"])
    if "curves" in record.get("scaling", {}):
        cells(panels[3], record["scaling"]["curves"], "seconds", 1e3, "milliseconds")
        cells(panels[4], record["scaling"]["curves"], "growth", 2**-20, "peak memory, MiB")
    if "rows" in record.get("bars", {}):
        bars(panels[5], record["bars"]["rows"])
    for axes in panels:
        axes.set_visible(axes.has_data())
        if axes.has_data():
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=90)


def lines(axes: Axes, points: list[Found], key: str, label: str) -> None:
    """A line for each system."""
    for name in points[-1]["milliseconds"]:
        axes.plot([p[key] for p in points], [p["milliseconds"][name] for p in points], marker=".", label=name)
    axes.set(xlabel=label, ylabel="milliseconds, forward and backward", xscale="log", yscale="log")


def csr(axes: Axes, points: list[Found]) -> None:
    """The ratio of CSR to dense, for each shape of the parameters."""
    for shape in dict.fromkeys(point["shape"] for point in points):
        some = [p for p in points if p["shape"] == shape]
        axes.plot([p["density"] for p in some], [p["ratio"] for p in some], marker=".", label=shape)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(xlabel="share of positive values", ylabel="time of CSR / time of dense", xscale="log", yscale="log")


def cells(axes: Axes, curves: dict[str, list[Found]], key: str, unit: float, label: str) -> None:
    """A line for each way to the likelihood of so many cells."""
    for name, points in curves.items():
        axes.plot([p["cells"] for p in points], [max(unit * p[key], 1e-2) for p in points], marker=".", label=name)
    axes.set(xlabel="cells, 100 genes, 10 % density", ylabel=label, xscale="log", yscale="log")


def bars(axes: Axes, rows: list[Found]) -> None:
    """Ratios of times to each peer's, with the bars they are to stay below."""
    shown = [r for r in rows if r["what"].endswith((", eager", ", torch.compile of the sum"))]
    for peer in dict.fromkeys(r["against"] for r in shown):
        some = [(i, r) for i, r in enumerate(shown) if r["against"] == peer]
        axes.barh([i for i, _ in some], [r["figure"] for _, r in some], label=peer)
    axes.plot([r["limit"] for r in shown], range(len(shown)), "k|", markersize=9, label="at most")
    axes.set_yticks(range(len(shown)), [r["what"].replace("scale and logits ", "") for r in shown], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(right=1.6 * max(r["figure"] for r in shown))
    axes.set(xlabel="our time / theirs")
