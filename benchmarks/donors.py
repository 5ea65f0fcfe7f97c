"""Judge differential expression on cells with donors: false discoveries, power, intervals, calls in null data.

    pip install -c constraints.txt -e ".[singlecell]" && pip install pydeseq2==0.5.4 scanpy==1.11.5 statsmodels
    OMP_NUM_THREADS=1 python benchmarks/donors.py FOLDER --jobs 2

On Debian, ``apt-get install r-bioc-edger r-cran-lme4`` adds two peers in R, which are left out where it is missing.

FOLDER has ``kang_control_donors.h5ad`` (raw counts; obs ``donor``, ``cell_type``) and ``kang_stimulated.h5ad``
(``condition``, too), of Kang et al. 2018, GEO GSE96583. Each result is kept in the file OUT as soon as it is there, and
not computed again: a run that was stopped goes on, and ``--again ours`` measures one method anew. The page DONORS.md is
written at the end, and by ``--sets 0`` alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import donors_page
import donors_r
from donors_data import REAL, SIMULATED, TYPES, Cells
from donors_measures import measure
from donors_methods import METHODS

HERE = Path(__file__).parent
PACKAGES = ("pyro-zilognormal", "torch", "pydeseq2", "scanpy", "numpy", "scipy")
Piece = tuple[str, str, int]


def pieces(sets: int, only: str | None) -> Iterator[Piece]:
    """Yield design, cell type and index of each data set; a run that is stopped has some of each design."""
    for index in range(2 * sets):
        for design in SIMULATED:
            if index < sets and only in (None, design):
                yield design, "", index
        for design, (most, _) in REAL.items():
            if index < (min(most, 2 * sets) if most else sets) and only in (None, design):
                yield from ((design, cell_type, index) for cell_type in TYPES)


def name(piece: Piece, method: str) -> str:
    """Return the name under which a result is kept."""
    return "/".join([piece[0], *filter(None, [piece[1]]), str(piece[2]), method])


def run_piece(folder: Path, piece: Piece, methods: list[str]) -> dict[str, dict[str, Any]]:
    """Make the data of a piece, and return what each method finds there, with its seconds of CPU time."""
    design, cell_type, index = piece
    cells = SIMULATED[design](folder, index) if design in SIMULATED else REAL[design][1](folder, cell_type, index)
    return {name(piece, method): timed(method, cells) for method in methods}


def applicable(design: str, index: int) -> list[str]:
    """Return the methods to run: without donors there is no pseudobulk, and a slow one takes few simulated sets."""
    if design == "few":
        return ["ours", "Wilcoxon"]
    left_out = set(donors_r.PACKAGES) - set(donors_r.available())
    if design not in SIMULATED or index >= donors_r.SETS_OF_SLOW:
        left_out |= set(donors_r.SLOW)
    return [m for m in METHODS if m not in left_out]


def timed(method: str, cells: Cells) -> dict[str, Any]:
    """Return the measures of a method, and its seconds of CPU time, those of R included."""
    start = processor_seconds()
    table = METHODS[method](cells)
    return {"seconds": processor_seconds() - start} | measure(cells, table)


def processor_seconds() -> float:
    """Return the CPU time so far of this process and of those that it waited for."""
    return sum(os.times()[:4])


def about() -> dict[str, Any]:
    """Return versions and machine."""
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    versions |= {f"R's {donors_r.PACKAGES[name]}": donors_r.version(name) for name in donors_r.available()}
    return versions | {"Python": platform.python_version(), "cores": os.cpu_count()}


def save(record: dict[str, Any], out: Path) -> None:
    """Write the record, all of it or nothing."""
    part = out.with_suffix(".part")
    part.write_text(json.dumps(record, indent=0, sort_keys=True) + "\n")
    part.replace(out)


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of the data")
    parser.add_argument(
        "--sets", type=int, default=20, help="simulated sets a design; twice as many real splits, up to 35"
    )
    parser.add_argument("--only", choices=[*SIMULATED, *REAL], help="one design")
    parser.add_argument("--again", choices=METHODS, help="forget the results of this method first")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=HERE / "donors.json", help="the file that keeps the results")
    given = parser.parse_args()
    record = json.loads(given.out.read_text()) if given.out.exists() else {"results": {}}
    results = record["results"]
    if given.again:
        forgotten = {name(piece, given.again) for piece in pieces(given.sets, given.only)}
        record["results"] = results = {k: v for k, v in results.items() if k not in forgotten}
    record["about"] = record.get("about", {}) | about()  # methods in R may have been measured where R was found
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        tasks = []
        for piece in pieces(given.sets, given.only):
            if missing := [m for m in applicable(piece[0], piece[2]) if name(piece, m) not in results]:
                tasks.append(pool.submit(run_piece, given.folder, piece, missing))
        for count, task in enumerate(as_completed(tasks), 1):
            results |= task.result()
            save(record, given.out)
            print(f"{count} of {len(tasks)}: {', '.join(task.result())}", flush=True)
    donors_page.PAGE.write_text(donors_page.page(record))


if __name__ == "__main__":
    main()
