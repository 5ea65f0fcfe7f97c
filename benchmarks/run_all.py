"""Run all benchmarks of speed, print what they find, and keep it: results.json, results.png and RESULTS.md.

    pip install -c constraints.txt -e ".[singlecell,benchmarks]" && python benchmarks/run_all.py

Each part runs in a process of its own and takes one to three minutes on two cores, `nuts` a quarter of an hour, so
`--only bars curves` runs some and leaves what is known of the others. The short tables in README.md and docs/speed.md
are written from the same numbers. Exit code 1 if a bar is missed, a part fails, or a peer is missing, which is named.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import RESULTS, failures, write_all

HERE = Path(__file__).parent
PACKAGES = ("torch", "numpy", "scipy")


def bars() -> dict[str, Any]:
    import density

    return density.bars()


def curves() -> dict[str, Any]:
    import density

    return density.curves()


def gpu() -> dict[str, Any]:
    import density

    return density.accelerator()


def steps() -> dict[str, Any]:
    import svi_overhead

    return {"peers": versions("pyro-ppl"), "cases": svi_overhead.overheads()}


def fits() -> dict[str, Any]:
    import hurdle

    return {"peers": versions("pyro-ppl"), "scaling": hurdle.scaling()}


def nuts() -> dict[str, Any]:
    import hurdle

    return {"peers": versions("pyro-ppl", "numpyro", "jax"), "accuracy": hurdle.accuracy()}


def reduction() -> dict[str, Any]:
    import reduction
    import torch

    torch.set_num_threads(1)
    return {"peers": versions("pandas"), "disk": reduction.from_disk(1_000_000), "memory": reduction.compare()}


def scaling() -> dict[str, Any]:
    import scaling

    return {"peers": {}, "curves": scaling.curves()}


def de() -> dict[str, Any]:
    import de_peers

    return {"peers": versions("duet-de", "statsmodels"), "pairs": de_peers.seconds()}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "bars": bars,
    "curves": curves,
    "steps": steps,
    "fits": fits,
    "nuts": nuts,
    "reduction": reduction,
    "scaling": scaling,
    "de": de,
    "gpu": gpu,
}


def versions(*packages: str) -> dict[str, str]:
    """The version of each, by name."""
    return {p: importlib.metadata.version(p) for p in packages}


def measured_here(part: str) -> dict[str, Any]:
    """What a part finds, with the machine and versions that it depends on."""
    import torch
    from timing import machine

    about = machine() | {"threads": torch.get_num_threads()} | versions(*PACKAGES)
    return {"about": about} | PARTS[part]()


def measured(part: str, threads: int) -> dict[str, Any]:
    """The same in a process of its own; or why it failed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, __file__, "--inside", part, str(out)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(out.read_text())
            return found
    reason = (done.stderr.strip().splitlines() or ["no word why"])[-1]
    return {"failed": reason}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to run; gpu only if it is asked for")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Run, keep and print; 1 if anything is amiss."""
    options = arguments()
    if options.inside:
        part, out = options.inside
        Path(out).write_text(json.dumps(measured_here(part)))
        return 0
    chosen = options.only or [part for part in PARTS if part != "gpu"]
    found = {}
    for part in chosen:
        print(f"{part} ...", flush=True)
        found[part] = measured(part, options.threads)
    record = (json.loads(RESULTS.read_text()) if RESULTS.exists() else {}) | found
    print(write_all({part: record[part] for part in PARTS if part in record}))
    amiss = failures(found)
    print("\n".join(amiss))
    return int(bool(amiss))


if __name__ == "__main__":
    sys.exit(main())
