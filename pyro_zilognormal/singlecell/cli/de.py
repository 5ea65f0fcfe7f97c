"""The commands ``pyro-zilognormal de`` and ``demo``: cells to a table, pictures and a report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from pyro_zilognormal.datasets import pbmc68k_reduced
from pyro_zilognormal.singlecell.api import HurdleDE
from pyro_zilognormal.singlecell.arguments import check_fractions
from pyro_zilognormal.singlecell.cli import console
from pyro_zilognormal.singlecell.cli.cluster import cluster
from pyro_zilognormal.singlecell.cli.report import Results, draw, html, metrics, summary
from pyro_zilognormal.singlecell.cube.cube import Cube, is_cube
from pyro_zilognormal.singlecell.cube.whole_folder import found_at
from pyro_zilognormal.singlecell.errors import printable, require
from pyro_zilognormal.singlecell.files.on_disk import open_cells
from pyro_zilognormal.singlecell.results import CREDIBLE
from pyro_zilognormal.svi import Progress

_GENES_DRAWN = 6


def run(options: argparse.Namespace) -> int:
    """Compare conditions; return the exit code."""
    if options.verb == "demo":
        torch.set_num_threads(1)  # its tensors are too small to gain by more, and lose where cores are busy
    with ExitStack() as out, cluster(options.workers, options.cluster), open_source(options) as adata:
        results, numbers, written = compare(options, adata, out)
    console.warn(results.warnings)
    console.say(options, summary(results, numbers))
    console.say(options, f"\nwrote {', '.join(written)} to {options.out}; open {options.out / 'report.html'} first")
    if results.de.result.converged:
        return 0
    console.warn([f"the fit has not converged in {results.de.result.steps} steps; use more --steps"])
    return console.NOT_CONVERGED if options.strict else 0


@contextmanager
def open_source(options: argparse.Namespace) -> Iterator[Any]:
    """Open the cells, or read a cube of them."""
    if options.verb == "demo":
        yield demo_cells()
        return
    with console.record_warnings() as left_out:
        dask = options.workers is not None or options.cluster is not None
        cells = open_cells(found_at(options.source), follow_links=options.follow_links, dask=dask)
    with cells:
        yield Cube.from_anndata(cells, options.source) if is_cube(cells) else cells
    console.warn(left_out)


def compare(options: argparse.Namespace, adata: Any, out: ExitStack) -> tuple[Results, dict[str, Any], list[str]]:
    """Compare conditions and write everything; return results, numbers and the names of the files."""
    results = _compute(options, adata, out)
    pictures, genes, problems = draw(results)
    results.warnings.extend(problems)
    numbers = metrics(results)
    with console.whole_files(options.out) as folder:
        console.write_parts(folder, "de.csv", results.table, numbers, pictures)
        (folder / "report.html").write_text(html(results, numbers, pictures, genes), encoding="utf-8")
        names = sorted(file.name for file in folder.iterdir())
    return results, numbers, [*names, console.CHECKPOINT]


def _compute(options: argparse.Namespace, adata: Any, out: ExitStack) -> Results:
    """Read, fit and summarise; nothing is written before the specification is known to fit the cells."""
    times = [time.perf_counter()]
    with console.record_warnings() as recorded:
        check_fractions(options.delta, options.fdr, CREDIBLE, options.max_error)
        settings = {name: getattr(options, name) for name in console.MODEL if hasattr(options, name)}
        de = HurdleDE(adata, options.formula, **settings)
        contrasts = de.cells.design.contrasts(options.contrast)
        size = de.settings
        known = "" if size["scale_from"] == "given" else f", as {size['scale_from']}"
        read = f"{options.source}: {size['n_cells']} cells x {size['n_genes']} genes, {options.formula}"
        console.say(options, printable(read), f"scale: {size['scale']}{known}")
        checkpoint = console.open_out(options, out)
        times.append(time.perf_counter())
        progress = Progress(False if options.quiet else None)
        de.fit(seed=options.seed, steps=options.steps, callbacks=[progress], checkpoint=checkpoint)
        times.append(time.perf_counter())
        table = de.test(contrasts, delta=options.delta, fdr=options.fdr, max_error=options.max_error)
        ends = {end.name: end for contrast in contrasts for end in contrast.ends}
        check = de.predictive_check(*ends.values(), credible=CREDIBLE)
        genes = []
        for contrast in [] if isinstance(adata, Cube) else contrasts:  # a cube has no cells to draw
            some = table[(table["contrast"] == contrast.name) & (table["status"] != "all_zero")]["variable"]
            genes += de.gene_fits(some.head(max(2, _GENES_DRAWN // len(contrasts))).tolist(), contrast)
        times.append(time.perf_counter())
    seconds = dict(zip(("read", "fit", "summarise"), np.diff(times).tolist(), strict=True))
    return Results(vars(options), de, contrasts, table, check, genes, recorded, seconds)


def demo_cells() -> Any:
    """Return the monocytes and T cells of :func:`~pyro_zilognormal.datasets.pbmc68k_reduced` as an AnnData.

    Example:
        >>> demo_cells().obs["cell_type"].value_counts().to_dict()
        {'T cell': 192, 'monocyte': 129}
    """
    data, pandas = pbmc68k_reduced(), require("pandas")
    labels = pandas.Series([str(label) for label in data.cell_type], index=[str(code) for code in data.barcodes])
    kind = labels.where(~labels.str.startswith(("CD4+", "CD8+")), "T cell").replace("CD14+ Monocyte", "monocyte")
    chosen = kind.isin(["monocyte", "T cell"]).to_numpy()
    obs = pandas.DataFrame({"cell_type": kind})[chosen]
    var = pandas.DataFrame(index=[str(gene) for gene in data.genes])
    return require("anndata").AnnData(data.values.numpy()[chosen], obs, var)
