"""The command line: ``pyro-zilognormal de``, ``reduce``, ``embed`` and ``demo``."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from pyro_zilognormal import __version__
from pyro_zilognormal.datasets import pbmc68k_reduced
from pyro_zilognormal.singlecell.api import HurdleDE
from pyro_zilognormal.singlecell.arguments import check_fractions
from pyro_zilognormal.singlecell.cluster import cluster
from pyro_zilognormal.singlecell.cube import Cube, is_cube
from pyro_zilognormal.singlecell.errors import SingleCellError, printable, require
from pyro_zilognormal.singlecell.on_disk import open_cells
from pyro_zilognormal.singlecell.pictures import draw
from pyro_zilognormal.singlecell.report import Results, html, metrics, summary
from pyro_zilognormal.singlecell.results import CREDIBLE
from pyro_zilognormal.singlecell.scale import SCALES
from pyro_zilognormal.singlecell.whole_folder import found_at
from pyro_zilognormal.svi import Checkpoint, CheckpointError, DivergenceError, InUseError, Progress
from pyro_zilognormal.svi.lock import locked

_FAILED, _BAD_INPUT, _NOT_CONVERGED, _INTERRUPTED = 1, 2, 3, 130
_SECONDS_A_SAVE = 10.0
_GENES_DRAWN = 6
# Temporary folders have a name that nobody else uses.
_CHECKPOINT, _LOCK, _PARTIAL = "fit.ckpt", "run.lock", ".pyro-zilognormal-writing-"
_MODEL = ("donor", "layer", "use_raw", "scale", "offset", "depth", "detection_threshold", "device")
_OPTIONS = (*_MODEL, "by", "merge", "depth_within")


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
    options = _parser().parse_args(arguments)
    options.command = shlex.join(["pyro-zilognormal", *arguments])
    try:
        return _run(options)
    except (SingleCellError, CheckpointError, InUseError, ModuleNotFoundError) as error:
        return _fail(_BAD_INPUT, error)
    except (DivergenceError, OSError) as error:
        return _fail(_FAILED, error)
    except MemoryError as error:
        return _fail(_FAILED, f"not enough memory: {error}; use fewer genes or a machine with more")
    except KeyboardInterrupt:
        return _fail(_INTERRUPTED, "interrupted; run it again with --resume to go on")


def _fail(code: int, problem: object) -> int:
    print(f"pyro-zilognormal: {printable(_with_options(' '.join(str(problem).split())))}", file=sys.stderr)
    return code


def _with_options(text: str) -> str:
    """Return a message with options in place of the arguments of Python.

    Example:
        >>> _with_options("pass scale='log1p', use_raw=True or donor=None")
        'pass --scale log1p, --use-raw or no --donor'
    """

    def option(found: re.Match[str]) -> str:
        name, value = f"--{found['name'].replace('_', '-')}", found["value"] or ""
        return {"None": f"no {name}", "True": name, "": name}.get(value, f"{name} {value}")

    return re.sub(
        rf"(?<![^\s(])(?P<name>{'|'.join(_OPTIONS)})=(?:(?P<quote>'?)(?P<value>\w+)(?P=quote))?", option, text
    )


def _run(options: argparse.Namespace) -> int:
    _check_out(options.out)
    if options.verb == "embed":
        from pyro_zilognormal.singlecell import embed_cli  # it uses this module

        return embed_cli.run(options)
    if options.verb == "reduce":
        from pyro_zilognormal.singlecell import reduce_cli

        return reduce_cli.run(options)
    if getattr(options, "each", None) is not None:
        from pyro_zilognormal.singlecell import each_cli

        return each_cli.run(options)
    with ExitStack() as out, _threads(options), cluster(options.workers, options.cluster), _cells(options) as adata:
        results, numbers, written = compare(options, adata, out)
    for text in results.warnings:
        print(f"warning: {printable(text)}", file=sys.stderr)
    _say(options, summary(results, numbers))
    _say(options, f"\nwrote {', '.join(written)} to {options.out}; open {options.out / 'report.html'} first")
    fit = results.de.result
    if fit.converged:
        return 0
    print(f"warning: the fit has not converged in {fit.steps} steps; use more --steps", file=sys.stderr)
    return _NOT_CONVERGED if options.strict else 0


@contextmanager
def _cells(options: argparse.Namespace) -> Iterator[Any]:
    """Open the cells, or read a cube of them."""
    if options.verb == "demo":
        yield demo_cells()
        return
    with _record_warnings() as left_out:
        dask = options.workers is not None or options.cluster is not None
        cells = open_cells(found_at(options.source), follow_links=options.follow_links, dask=dask)
    for text in left_out:
        print(f"warning: {text}", file=sys.stderr)
    with cells:
        yield Cube.from_anndata(cells, options.source) if is_cube(cells) else cells


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
    with _record_warnings() as recorded:
        with _timed(seconds, "read"):
            check_fractions(options.delta, options.fdr, CREDIBLE, options.max_error)
            settings = {name: getattr(options, name) for name in _MODEL if hasattr(options, name)}
            de = HurdleDE(adata, options.formula, **settings)
            contrasts = de.cells.design.contrasts(options.contrast)
        size = de.settings
        known = "" if size["scale_from"] == "given" else f", as {size['scale_from']}"
        _say(
            options,
            printable(f"{options.source}: {size['n_cells']} cells x {size['n_genes']} genes, {options.formula}"),
            f"scale: {size['scale']}{known}",
        )
        checkpoint = Checkpoint(_prepare_out(options.out, out), seconds=_SECONDS_A_SAVE, resume=options.resume)
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
    specification = {
        name: getattr(options, name) for name in ("source", "delta", "fdr", "max_error", "resume", "command")
    }
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


def _check_out(path: Path) -> None:
    """Raise if a folder can neither be written to nor made, as far as that is known without doing so."""
    nearest = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists() or p.is_symlink())
    if not nearest.is_dir():
        raise SingleCellError(f"out: {str(nearest)!r} is a file; needed a folder to write to")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise SingleCellError(f"out: {str(path)!r} is not writable; needed a folder to write to: choose another")


def _prepare_out(path: Path, out: ExitStack) -> Path:
    """Make the folder, see that it can be written to, keep other runs off it, and return the path of its checkpoint."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        out.enter_context(locked(path / _LOCK, f"out: {str(path)!r}"))
        for left in path.glob(f"{_PARTIAL}*"):  # by a run that was killed while it wrote
            shutil.rmtree(left)
    except OSError as error:
        raise SingleCellError(
            f"out: {str(path)!r} cannot be written to ({error.strerror}); choose another folder"
        ) from error
    return path / _CHECKPOINT


def _write(
    results: Results, numbers: dict[str, Any], pictures: dict[str, bytes], genes: dict[str, bytes], out: Path
) -> list[str]:
    """Write all files to a folder of their own first, so that each is whole, and return their names."""
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=out))
    try:
        results.table.to_csv(partial / "de.csv", index=False)
        for name, png in pictures.items():
            (partial / f"{name}.png").write_bytes(png)
        (partial / "metrics.json").write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (partial / "report.html").write_text(html(results, numbers, pictures, genes), encoding="utf-8")
        names = sorted(file.name for file in partial.iterdir())
        for name in names:
            os.replace(partial / name, out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [*names, _CHECKPOINT]


def _say(options: argparse.Namespace, *lines: str) -> None:
    if not options.quiet:
        print("\n".join(lines), flush=True)


@contextmanager
def _threads(options: argparse.Namespace) -> Iterator[None]:
    """Use one thread for the demo: its tensors are too small to gain by more, and lose where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if options.verb == "demo" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - start


@contextmanager
def _record_warnings() -> Iterator[list[str]]:
    """Record warnings for users, each once; those for programmers are left out."""
    recorded: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield recorded
    recorded.extend(dict.fromkeys(_with_options(" ".join(str(w.message).split())) for w in caught))


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose options have one name each."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(_join_contrasts(sys.argv[1:] if args is None else args), namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(_BAD_INPUT, f"{self.prog}: {printable(message)}; see {self.prog} --help\n")


# What stands between the parts of a contrast once they are one argument: no argument of a process can hold it.
_JOINT = "\0"
_MINUS = "-"


def _join_contrasts(arguments: Sequence[str]) -> list[str]:
    r"""Make one argument of each contrast, so that levels may start with a dash.

    Example:
        >>> _join_contrasts(["--contrast", "cells", "-TNF", "+TNF", "file.h5ad"])
        ['--contrast=cells\x00-TNF\x00+TNF', 'file.h5ad']
    """
    found, left = [], list(arguments)
    while left:
        found.append(left.pop(0))
        if found[-1] == "--contrast":
            length = 3 if "=" not in "".join(left[:1]) else 5 if left[2:3] == [_MINUS] else 2
            parts = list(itertools.takewhile(lambda part: not part.startswith("--"), left[:length]))
            found[-1] = f"--contrast={_JOINT.join(parts)}"
            del left[: len(parts)]
    return found


def _contrast(text: str) -> Any:
    """Return the contrast of an argument, as :meth:`HurdleDE.test` takes it."""
    parts = tuple(text.split(_JOINT))
    if len(parts) == 5 and parts[2] == _MINUS:
        return parts[:2], parts[3:]
    if len(parts) == 3 or (len(parts) == 2 and all("=" in part for part in parts)):
        return parts
    raise argparse.ArgumentTypeError(
        f"got {' '.join(parts)!r}; needed a column and two levels, such as condition stim ctrl, or two conditions, "
        "such as condition=stim,dose=high condition=ctrl,dose=high"
    )


def _parser() -> argparse.ArgumentParser:
    from pyro_zilognormal.singlecell import embed_cli, reduce_cli

    parser = _Parser(prog="pyro-zilognormal", description="Bayesian differential expression of single cells.")
    parser.add_argument("--version", action="version", version=f"pyro-zilognormal {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    _add_de(verbs.add_parser("de", help="compare conditions in an h5ad or zarr file", description=_DE))
    embed_cli.add_arguments(
        verbs.add_parser("embed", help="embed cells, corrected for batches", description=embed_cli.DESCRIPTION)
    )
    reduce_cli.add_arguments(
        verbs.add_parser(
            "reduce", help="reduce cells to a cube, which de takes too", description=reduce_cli.DESCRIPTION
        )
    )
    demo = verbs.add_parser("demo", help="compare monocytes with T cells in embedded data", description=_DEMO)
    _add_common(demo)
    demo.set_defaults(
        source="pbmc68k_reduced", scale="linear", formula="~ cell_type", contrast=[("cell_type", "monocyte", "T cell")]
    )
    demo.set_defaults(workers=None, cluster=None)  # it has no options for them
    return parser


_DE = "Test each gene for a difference in mean expression between conditions; write a table, plots and a report."
_DEPTH = "column of obs with total counts or detection rates, or auto (total_counts, n_counts or nCount_RNA)"
_SCALE = "stored scale: x, log(1 + x) to base e, 2 or 10, or counts; needed unless the file or its values tell"
_DEMO = "Compare monocytes with T cells in 700 blood cells that come with the package; nothing is downloaded."


def _add_de(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="INPUT", help="an AnnData file, h5ad or zarr, or a cube, as reduce writes it")
    add(
        "--formula",
        required=True,
        help='model formula of columns of obs, such as "~ condition + `orig.ident` + (1 | lane)"',
    )
    add(
        "--contrast",
        required=True,
        type=_contrast,
        action="append",
        metavar="COLUMN TEST REFERENCE",
        help="the column and the two levels to compare; or two conditions, condition=stim,dose=high "
        "condition=ctrl,dose=high; or four, with a lone - after the second, for the difference of two comparisons; can "
        "be repeated",
    )
    add(
        "--donor",
        metavar="COLUMN",
        help="column of obs that names the donors, for random effects of donors and samples",
    )
    add("--follow-links", action="store_true", help="read a file whose links reach other files")
    add("--layer", help="use this layer instead of X")
    add("--use-raw", action="store_true", help="use raw instead of X")
    add("--scale", choices=SCALES, help=_SCALE)
    add("--offset", metavar="COLUMN", help="column of obs with log size factors, for values that are not normalised")
    add("--depth", metavar="COLUMN", help=_DEPTH)
    add("--detection-threshold", type=float, default=0.0, metavar="X", help="take values of at most X as zeros (0)")
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument("--workers", type=_whole(1), metavar="N", help="read and reduce the cells in N processes")
    engine.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="read and reduce the cells on the Dask cluster whose scheduler is at ADDRESS, such as "
        "tcp://10.0.0.1:8786; its workers need INPUT at the same path",
    )
    add("--each", metavar="COLUMN", help="compare in each level of this column, such as cell_type, in parallel")
    add("--jobs", type=_whole(1), metavar="N", help="with --each, the number of processes; by default, of cores")
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="output folder; created if missing")
    add("--delta", type=float, default=0.25, help="smallest change of interest, in log2 units (0.25)")
    add("--fdr", type=float, default=0.05, help="expected false discovery rate of the calls (0.05)")
    add("--max-error", type=float, default=0.2, help="largest probability that a called gene does not change (0.2)")
    add("--seed", type=_whole(0), default=0, help="random seed (0)")
    add("--steps", type=_whole(10), default=None, help="number of steps of the fit; increase if it has not converged")
    add("--device", default="cpu", help="torch device, such as cpu or cuda (cpu)")
    add("--resume", action="store_true", help="resume from the checkpoint in DIR, if there is one")
    add("--strict", action="store_true", help="exit with code 3 if the fit has not converged")
    add("--quiet", action="store_true", help="print only warnings and errors")


def _whole(least: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return number


if __name__ == "__main__":
    sys.exit(main())
