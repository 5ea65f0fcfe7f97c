"""The command line: ``pyro-zilognormal de`` and ``pyro-zilognormal demo``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch

from pyro_zilognormal._version import __version__
from pyro_zilognormal.singlecell import demo
from pyro_zilognormal.singlecell.console import summary
from pyro_zilognormal.singlecell.errors import SingleCellError
from pyro_zilognormal.singlecell.figures import gene_png, loss_png, predictive_png, volcano_png
from pyro_zilognormal.singlecell.file import open_cells
from pyro_zilognormal.singlecell.job import Answer, Job, answer, ask
from pyro_zilognormal.singlecell.metrics import metrics
from pyro_zilognormal.singlecell.outputs import OutputFolder, check_folder
from pyro_zilognormal.singlecell.report import report
from pyro_zilognormal.singlecell.scale import SCALES
from pyro_zilognormal.svi import CheckpointError, DivergenceError

_FAILED, _BAD_INPUT, _NOT_CONVERGED, _INTERRUPTED = 1, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: those of the command line; None for the process's.

    Returns:
        The exit code, which is 0; 1 if the work failed, such as for lack of disk space; 2 for input that cannot be
        used, told in one line on standard error; 3 if the fit has not converged and ``--strict`` was given; 130 on
        Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    options.command = shlex.join(["pyro-zilognormal", *arguments])
    try:
        return _run(options)
    except (SingleCellError, CheckpointError, ModuleNotFoundError) as error:
        return _say(_BAD_INPUT, error)
    except (DivergenceError, OSError) as error:
        return _say(_FAILED, error)
    except KeyboardInterrupt:
        return _say(_INTERRUPTED, "interrupted; run it again with --resume to go on")


def _say(code: int, problem: object) -> int:
    print(f"pyro-zilognormal: {' '.join(str(problem).split())}", file=sys.stderr)
    return code


def _run(options: argparse.Namespace) -> int:
    check_folder(options.out)
    with _threads(options), _cells(options) as cells:
        question = ask(_job(options), cells)
        size = question.de.settings
        _tell(options, f"{options.source}: {size['n_cells']} cells x {size['n_genes']} genes, {options.formula}")
        folder = OutputFolder(options.out)
        found = answer(question, folder)
    numbers = metrics(found)
    written = _write(found, numbers, folder)
    for said in found.warnings:
        print(f"warning: {said}", file=sys.stderr)
    _tell(options, summary(found, numbers))
    _tell(options, f"\nwrote {', '.join(written)} to {options.out}; open {options.out / 'report.html'} first")
    return _converged(found, options)


def _converged(found: Answer, options: argparse.Namespace) -> int:
    if found.result.converged:
        return 0
    print(
        f"warning: the fit has not converged in {found.result.steps} steps; do not rely on it, give more --steps",
        file=sys.stderr,
    )
    return _NOT_CONVERGED if options.strict else 0


def _write(found: Answer, numbers: dict[str, Any], folder: OutputFolder) -> list[str]:
    """Write all files, and return their names."""
    pictures = {"loss": loss_png(found), "volcano": volcano_png(found), "predictive": predictive_png(found)}
    genes = {f"{fit.gene}, {fit.contrast}": gene_png(fit) for fit in found.genes}
    with folder.writing() as partial:
        found.table.to_csv(partial / "de.csv", index=False)
        for name, png in pictures.items():
            (partial / f"{name}.png").write_bytes(png)
        (partial / "metrics.json").write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (partial / "report.html").write_text(report(found, numbers, pictures, genes), encoding="utf-8")
        names = sorted(file.name for file in partial.iterdir())
    folder.forget_previous()
    return [*names, folder.checkpoint.name]


def _tell(options: argparse.Namespace, text: str) -> None:
    if not options.quiet:
        print(text, flush=True)


def _job(options: argparse.Namespace) -> Job:
    settings = ("donor", "layer", "use_raw", "scale", "offset", "detection_threshold", "device")
    return Job(
        source=options.source,
        formula=options.formula,
        contrasts=[tuple(contrast) for contrast in options.contrast],
        out=options.out,
        model={name: getattr(options, name) for name in settings if hasattr(options, name)},
        progress=False if options.quiet else None,
        command=options.command,
        **{name: getattr(options, name) for name in ("delta", "fdr", "seed", "steps", "resume")},
    )


@contextmanager
def _threads(options: argparse.Namespace) -> Iterator[None]:
    """Use one thread for the demo, whose tensors are too small to gain by more, and lose where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if options.verb == "demo" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cells(options: argparse.Namespace) -> AbstractContextManager[Any]:
    return nullcontext(demo.demo_cells()) if options.verb == "demo" else open_cells(options.source)


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(_BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pyro-zilognormal", description="Bayesian differential expression of single cells.")
    parser.add_argument("--version", action="version", version=f"pyro-zilognormal {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    _add_de(verbs.add_parser("de", help="compare conditions in an h5ad file", description=_DE))
    shown = verbs.add_parser(
        "demo", help="compare monocytes with T cells, in data that come with it", description=_DEMO
    )
    _add_common(shown)
    shown.set_defaults(source="pbmc68k_reduced", formula=demo.FORMULA, contrast=[demo.CONTRAST])
    return parser


_DE = "Compare the mean expression of each gene between conditions: a table, pictures and a report in a folder."
_DEMO = "Compare monocytes with T cells among 700 blood cells that come with the package; nothing is downloaded."


def _add_de(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="INPUT", help="an h5ad or zarr file, as anndata writes them")
    add("--formula", required=True, help='what explains the cells, columns of obs: "~ condition + batch"')
    add(
        "--contrast",
        required=True,
        nargs=3,
        action="append",
        metavar=("COLUMN", "TEST", "REFERENCE"),
        help="the column and its two levels to compare; may be given several times",
    )
    add("--donor", help="the column of obs that names who a cell is from, for random effects")
    add("--layer", help="the matrix to take, instead of X")
    add("--use-raw", action="store_true", help="take raw, instead of X")
    add("--scale", choices=SCALES, default="linear", help="what is stored: values, log(1 + x) or log2(1 + x)")
    add("--offset", help="the column of obs that holds the log size factor of each cell, where values are counts")
    add("--detection-threshold", type=float, default=0.0, metavar="X", help="linear values of at most X are zeros")
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="the folder for the results, made if need be")
    add("--delta", type=float, default=0.25, help="changes up to so many log2 units are of no interest (0.25)")
    add("--fdr", type=float, default=0.05, help="call genes up to this expected false discovery rate (0.05)")
    add("--seed", type=_whole(0), default=0, help="of everything random (0)")
    add("--steps", type=_whole(10), default=None, help="of the fit; more, if it has not converged")
    add("--device", default="cpu", help="where torch computes: cpu, cuda")
    add("--resume", action="store_true", help="go on from the checkpoint in DIR, if there is one")
    add("--strict", action="store_true", help="exit with 3 if the fit has not converged")
    add("--quiet", action="store_true", help="print nothing but warnings and errors")


def _whole(least: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return number
