"""Draw the table of docs/exactness.md: python -m tests.exactness_picture --out docs/exactness.png."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import matplotlib

from tests.exactness import TOLERANCE

PAGE = Path(__file__).parents[1] / "docs" / "exactness.md"
COLUMNS = ("value, float64", "derivatives, float64", "value, float32", "derivatives, float32")
STYLES = (("tab:blue", "o"), ("tab:blue", "|"), ("tab:orange", "o"), ("tab:orange", "|"))


def rows(text: str) -> dict[str, list[float]]:
    """The four errors of each quantity."""
    found = re.findall(r"^\| ([^|]+?) \|((?: \d[\d.e+-]* \|){4})", text, re.MULTILINE)
    return {name: [float(x) for x in errors.split("|")[:4]] for name, errors in found}


def draw(table: dict[str, list[float]], path: Path) -> None:
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(8, 0.2 * len(table) + 1), layout="constrained")
    at = range(len(table))
    for errors, label, (colour, marker) in zip(zip(*table.values(), strict=True), COLUMNS, STYLES, strict=True):
        ax.scatter(errors, at, color=colour, marker=marker, s=60 if marker == "|" else 14, label=label)
    ax.axvline(TOLERANCE, color="0.4", linestyle="--", linewidth=0.8, label="what the tests allow")
    ax.set(
        yticks=at,
        yticklabels=table,
        xlim=(0, TOLERANCE * 1.05),
        xlabel="largest error, in units of eps times conditioning",
    )
    ax.margins(y=0.01)
    ax.invert_yaxis()
    ax.legend(loc="lower right", fontsize="small", framealpha=1)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--out", type=Path, required=True)
    draw(rows(PAGE.read_text()), parser.parse_args().out)
