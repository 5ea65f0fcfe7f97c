"""The speed and memory of the log density, against the packages that have one.

    OMP_NUM_THREADS=2 python benchmarks/density.py                 # prints the table
    OMP_NUM_THREADS=2 python benchmarks/density.py --write         # and keeps it, as RESULTS.md, JSON and a picture
    python benchmarks/density.py --device cuda                     # share of the memory bandwidth

Peers are scvi-tools (Python 3.12), Pyro and NumPyro; one that is not installed is named. Every figure is the median
ratio of pairs timed in turn. Exit code 1 if a bar is missed or a peer is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from density_cases import PACKAGES, available
from density_measures import (
    Row,
    Timer,
    against_peers,
    bandwidth,
    by_density,
    by_size,
    construction,
    csr_against_dense,
    forward_alone,
    memory,
    sampling,
    validation,
)
from results import section, table
from timing import machine

HERE = Path(__file__).parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=15, help="pairs to take the median of")
    parser.add_argument("--patience", type=float, default=0, help="seconds to wait for a quiet machine, a comparison")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for the share of the bandwidth")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-curves", action="store_true", help="leave the curves by size and density out")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md, density.json and density.png")
    return parser.parse_args()


def measure(options: argparse.Namespace, peers: list[str]) -> tuple[list[Row], dict[str, object]]:
    """The rows of the table, and the curves."""
    timer = Timer(options.pairs, options.patience)
    rows = against_peers(peers, timer, not options.no_compile)
    rows += forward_alone(timer) + validation(timer) + sampling(timer, peers)
    rows += [construction(), *memory(peers)]
    if options.no_curves:
        return rows, {}
    curves = {"size": by_size(peers, timer), "density": by_density(peers, timer), "csr": csr_against_dense(timer)}
    return rows, curves


def shown(rows: list[Row]) -> str:
    """The table in markdown."""
    head = ("forward and backward, if not said otherwise", "against", "figure", "at most", "met", "medians")
    limits = ("" if r.limit is None else r.limit for r in rows)
    cells = [(r.what, r.against, f"{r.figure:.3g}", m, r.verdict, r.detail) for r, m in zip(rows, limits, strict=True)]
    return table(head, cells)


def main() -> int:
    """Measure, print and perhaps write; 1 if a bar or a peer is missed."""
    options = arguments()
    torch.set_num_threads(options.threads)
    versions, missing = available()
    about = machine() | {"threads": options.threads, "torch": torch.__version__, "load": os.getloadavg()[0]} | versions
    if options.device != "cpu":
        about |= {"device": torch.cuda.get_device_name()}
        rows, curves = bandwidth(Timer(options.pairs, options.patience), options.device), {}
    else:
        rows, curves = measure(options, list(versions))
    named = [f"**Not installed, so not compared: {name}** ({PACKAGES[name]}): {why}" for name, why in missing.items()]
    text = "\n".join([", ".join(f"{k} {v}" for k, v in about.items()), "", *named, shown(rows)])
    print(text)
    if options.write:
        record = {"about": about, "missing": missing, "rows": [r._asdict() for r in rows], **curves}
        (HERE / "density.json").write_text(json.dumps(record, indent=1) + "\n")
        section(HERE / "RESULTS.md", "Log density", text)
        if curves:
            from density_picture import draw

            draw(record, HERE / "density.png")
    return int(bool(missing) or any(r.verdict == "**NO**" for r in rows))


if __name__ == "__main__":
    sys.exit(main())
