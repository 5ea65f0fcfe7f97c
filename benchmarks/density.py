"""The speed and memory of the log density, against the packages that have one.

    OMP_NUM_THREADS=2 python benchmarks/density.py                 # prints the table of bars
    python benchmarks/density.py --device cuda                     # on a GPU: share of the memory bandwidth

Peers are scvi-tools (its class, from its released wheel if need be), Pyro and NumPyro; one that is missing is named.
Every figure is the median ratio of pairs timed in turn. Exit code 1 if a bar is missed or a peer is missing.
`run_all.py` runs this with all other benchmarks.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

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
    masked,
    memory,
    sampling,
    validation,
)
from results import table
from timing import machine


def bars(pairs: int = 31, patience: float = 4) -> dict[str, Any]:
    """Every comparison, and what could not be compared."""
    found, missing = available()
    peers, timer = list(found), Timer(pairs, patience)
    rows = against_peers(peers, timer) + masked(peers, timer) + forward_alone(timer)
    rows += [*validation(timer), *sampling(peers, timer), construction(), *memory(peers)]
    return {"peers": found, "missing": missing, "rows": [r._asdict() for r in rows]}


def curves(pairs: int = 7, patience: float = 2) -> dict[str, Any]:
    """Time by size, by density, and of CSR data."""
    found, missing = available()
    peers, timer = list(found), Timer(pairs, patience)
    measured = {"size": by_size(peers, timer), "density": by_density(peers, timer), "csr": csr_against_dense(timer)}
    return {"peers": found, "missing": missing} | measured


def accelerator(device: str = "cuda", pairs: int = 15, **size: int) -> dict[str, Any]:
    """The share of the memory bandwidth, eager and compiled."""
    name = torch.cuda.get_device_name() if device != "cpu" else "cpu"
    rows = bandwidth(Timer(pairs, 0), device, **size)
    return {
        "peers": {"device": name, "CUDA": str(torch.version.cuda)},
        "missing": {},
        "rows": [r._asdict() for r in rows],
    }


def show_rows(found: dict[str, Any]) -> str:
    """The table in markdown."""
    head = ("forward and backward, if not said otherwise", "against", "figure", "at most", "met", "medians")
    rows = [Row(**row) for row in found["rows"]]
    limits = ("" if r.limit is None else r.limit for r in rows)
    cells = [(r.what, r.against, f"{r.figure:.3g}", m, r.verdict, r.detail) for r, m in zip(rows, limits, strict=True)]
    named = [
        f"**Missing, so not compared: {name}** ({PACKAGES[name]}): {why}\n" for name, why in found["missing"].items()
    ]
    return "\n".join([*named, table(head, cells)])


def main() -> int:
    """Measure and print; 1 if a bar or a peer is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=31, help="pairs to take the median of")
    parser.add_argument("--patience", type=float, default=4, help="seconds to wait for a quiet machine, a comparison")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for the share of the bandwidth")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.device == "cpu":
        found = bars(options.pairs, options.patience)
    else:
        found = accelerator(options.device, options.pairs)
    about = machine() | {"threads": options.threads, "torch": torch.__version__} | found["peers"]
    print(", ".join(f"{k} {v}" for k, v in about.items()), show_rows(found), sep="\n\n")
    return int(bool(found["missing"]) or any(Row(**r).verdict == "**NO**" for r in found["rows"]))


if __name__ == "__main__":
    sys.exit(main())
