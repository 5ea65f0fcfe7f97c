"""The command line: ``pyro-zilognormal de``, ``reduce``, ``embed`` and ``demo``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from pyro_zilognormal import __version__
from pyro_zilognormal.datasets import pbmc68k_reduced
from pyro_zilognormal.singlecell.api import HurdleDE
from pyro_zilognormal.singlecell.arguments import check_fractions
from pyro_zilognormal.singlecell.cli import console
from pyro_zilognormal.singlecell.cli import embed as embed_cli
from pyro_zilognormal.singlecell.cli import reduce as reduce_cli
from pyro_zilognormal.singlecell.cli.cluster import cluster
from pyro_zilognormal.singlecell.cli.options import DE, DEMO, Parser, add_common, add_de
from pyro_zilognormal.singlecell.cli.pictures import draw
from pyro_zilognormal.singlecell.cli.report import Results, html, metrics, summary
from pyro_zilognormal.singlecell.cube.cube import Cube, is_cube
from pyro_zilognormal.singlecell.cube.whole_folder import found_at
from pyro_zilognormal.singlecell.errors import SingleCellError, printable, require
from pyro_zilognormal.singlecell.files.on_disk import open_cells
from pyro_zilognormal.singlecell.results import CREDIBLE
from pyro_zilognormal.svi import Checkpoint, CheckpointError, DivergenceError, InUseError, Progress

_GENES_DRAWN = 6
# Options that the report repeats, beside the settings of the fit.
_SPECIFICATION = ("source", "delta", "fdr", "max_error", "resume", "command")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: those of the command line; None for the process's own.

    Returns:
        The exit code, 0; 1 if the run failed, such as for lack of disk space; 2 for input that cannot be used, with one
        line on standard error that says why; 3 with ``--strict`` if the fit has not converged; 130 on Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack the letters of some names
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = make_parser().parse_args(arguments)
    options.command = shlex.join(["pyro-zilognormal", *arguments])
    try:
        return _run(options)
    except (SingleCellError, CheckpointError, InUseError, ModuleNotFoundError) as error:
        return _fail(console.BAD_INPUT, error)
    except (DivergenceError, OSError) as error:
        return _fail(console.FAILED, error)
    except MemoryError as error:
        return _fail(console.FAILED, f"not enough memory: {error}; use fewer genes or a machine with more")
    except KeyboardInterrupt:
        return _fail(console.INTERRUPTED, "interrupted; run it again with --resume to go on")


def _fail(code: int, problem: object) -> int:
    print(f"pyro-zilognormal: {printable(console.with_options(' '.join(str(problem).split())))}", file=sys.stderr)
    return code


def _run(options: argparse.Namespace) -> int:
    console.check_out(options.out)
    if options.verb == "embed":
        return embed_cli.run(options)
    if options.verb == "reduce":
        return reduce_cli.run(options)
    if getattr(options, "each", None) is not None:
        from pyro_zilognormal.singlecell.cli import each as each_cli  # it uses this module

        return each_cli.run(options)
    if options.verb == "demo":
        torch.set_num_threads(1)  # its tensors are too small to gain by more, and lose where cores are busy
    with (
        ExitStack() as out,
        cluster(options.workers, options.cluster),
        open_source(options) as adata,
    ):
        results, numbers, written = compare(options, adata, out)
    console.warn(results.warnings)
    console.say(options, summary(results, numbers))
    console.say(options, f"\nwrote {', '.join(written)} to {options.out}; open {options.out / 'report.html'} first")
    fit = results.de.result
    if fit.converged:
        return 0
    console.warn([f"the fit has not converged in {fit.steps} steps; use more --steps"])
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
    return results, numbers, _write(results, numbers, pictures, genes, options.out)


def _compute(options: argparse.Namespace, adata: Any, out: ExitStack) -> Results:
    """Read, fit and summarise; nothing is written before the specification is known to fit the cells."""
    seconds: dict[str, float] = {}
    with console.record_warnings() as recorded:
        with _timed(seconds, "read"):
            check_fractions(options.delta, options.fdr, CREDIBLE, options.max_error)
            settings = {name: getattr(options, name) for name in console.MODEL if hasattr(options, name)}
            de = HurdleDE(adata, options.formula, **settings)
            contrasts = de.cells.design.contrasts(options.contrast)
        size = de.settings
        known = "" if size["scale_from"] == "given" else f", as {size['scale_from']}"
        console.say(
            options,
            printable(f"{options.source}: {size['n_cells']} cells x {size['n_genes']} genes, {options.formula}"),
            f"scale: {size['scale']}{known}",
        )
        checkpoint = Checkpoint(
            console.prepare_out(options.out, out), seconds=console.SECONDS_A_SAVE, resume=options.resume
        )
        with _timed(seconds, "fit"):
            progress = Progress(False if options.quiet else None)
            de.fit(seed=options.seed, steps=options.steps, callbacks=[progress], checkpoint=checkpoint)
        with _timed(seconds, "summarise"):
            table = de.test(contrasts, delta=options.delta, fdr=options.fdr, max_error=options.max_error)
            ends = {end.name: end for contrast in contrasts for end in contrast.ends}
            check = de.predictive_check(*ends.values(), credible=CREDIBLE)
            genes = []
            for contrast in [] if isinstance(adata, Cube) else contrasts:  # a cube has no cells to draw
                some = table[(table["contrast"] == contrast.name) & (table["status"] != "all_zero")]["variable"]
                genes += de.gene_fits(some.head(max(2, _GENES_DRAWN // len(contrasts))).tolist(), contrast)
    specification = {name: getattr(options, name) for name in _SPECIFICATION}
    return Results(specification, de, contrasts, table, check, genes, recorded, seconds)


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


def _write(
    results: Results, numbers: dict[str, Any], pictures: dict[str, bytes], genes: dict[str, bytes], out: Path
) -> list[str]:
    """Write all files, and return their names."""
    with console.whole_files(out) as folder:
        results.table.to_csv(folder / "de.csv", index=False)
        for name, png in pictures.items():
            (folder / f"{name}.png").write_bytes(png)
        (folder / "metrics.json").write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "report.html").write_text(html(results, numbers, pictures, genes), encoding="utf-8")
        names = sorted(file.name for file in folder.iterdir())
    return [*names, console.CHECKPOINT]


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - start


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="pyro-zilognormal", description="Bayesian differential expression of single cells.")
    parser.add_argument("--version", action="version", version=f"pyro-zilognormal {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    add_de(verbs.add_parser("de", help="compare conditions in an h5ad or zarr file", description=DE))
    embed_cli.add_arguments(
        verbs.add_parser("embed", help="embed cells, corrected for batches", description=embed_cli.DESCRIPTION)
    )
    reduce_cli.add_arguments(
        verbs.add_parser(
            "reduce", help="reduce cells to a cube, which de takes too", description=reduce_cli.DESCRIPTION
        )
    )
    demo = verbs.add_parser("demo", help="compare monocytes with T cells in embedded data", description=DEMO)
    add_common(demo)
    demo.set_defaults(
        source="pbmc68k_reduced", scale="linear", formula="~ cell_type", contrast=[("cell_type", "monocyte", "T cell")]
    )
    demo.set_defaults(workers=None, cluster=None)  # it has no options for them
    return parser


if __name__ == "__main__":
    sys.exit(main())
