"""The command ``pyro-zilognormal embed``: an embedding, checks of each gene, and a report in one HTML file."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from pyro_zilognormal import __version__
from pyro_zilognormal.singlecell.cli import console
from pyro_zilognormal.singlecell.cli.report import page, painted
from pyro_zilognormal.singlecell.design.formula import column
from pyro_zilognormal.singlecell.embed import Embedding, prepare
from pyro_zilognormal.singlecell.errors import printable, require
from pyro_zilognormal.singlecell.files.on_disk import open_cells
from pyro_zilognormal.singlecell.plots import literal
from pyro_zilognormal.svi import Progress, plot_loss

_KEY = "X_ziln"
_SETTINGS = ("batch", "layer", "use_raw", "scale", "depth", "latent", "linear", "seed", "device")
_REPLICATED = 50
_DRAWN_CELLS, _DRAWN_LEVELS = 20_000, 20


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    with ExitStack() as out:
        with (
            console.record_warnings() as recorded,
            open_cells(options.source, follow_links=options.follow_links) as adata,
        ):
            named = {"batch": options.batch, "label": options.label}
            labels = {what: column(adata.obs, name, what) for what, name in named.items() if name is not None}
            prepared = prepare(adata, **{name: getattr(options, name) for name in _SETTINGS})
            console.say(options, printable(f"{options.source}: {adata.n_obs} cells x {adata.n_vars} genes"))
            progress = Progress(False if options.quiet else None)
            found = prepared.fit(options.steps, [progress, console.open_out(options, out)])
            found.write(adata, _KEY)
            table = gene_table(found, options.seed)
            of_cells = {"obsm": {_KEY: adata.obsm[_KEY]}, "uns": {_KEY: adata.uns[_KEY]}}
            embedded = require("anndata").AnnData(obs=adata.obs, **of_cells)
        pictures = _pictures(found, embedded, labels, recorded)
        _write(options, found, embedded, table, pictures, recorded)
    fit = found.fitted.result
    console.warn(recorded)
    where = printable(f"wrote the embedding and its checks to {options.out}; open {options.out / 'report.html'} first")
    console.say(options, f"{fit}\n{where}")
    return console.NOT_CONVERGED if options.strict and fit.stop_reason == "steps" else 0


def gene_table(found: Embedding, seed: int = 0) -> Any:
    """Return how each gene of the held-out cells is reproduced.

    Returns:
        A DataFrame with ``variable``; ``zero_share`` and ``mean``, linear, in the held-out cells; the same with
        ``_fit`` in cells replicated from them; and with ``_tail`` the posterior predictive tail probabilities.
    """
    check = found.fitted.predictive_check(found.cells.subset(found.held_out), draws=_REPLICATED, seed=seed)
    table = require("pandas").DataFrame({"variable": found.genes})
    for name, statistic in (("zero_share", "zero fraction"), ("mean", "mean")):
        table[name] = check.observed[statistic].numpy(force=True)
        table[f"{name}_fit"] = check.replicated[statistic].mean(0).numpy(force=True)
        table[f"{name}_tail"] = check.tail[statistic].numpy(force=True)
    return table


def plane(values: Any) -> tuple[Any, str]:
    """Return an embedding in two dimensions, and their name: scanpy's UMAP, or principal components without scanpy."""
    try:
        scanpy = importlib.import_module("scanpy")
    except ImportError:
        centred = values - values.mean(0)
        return centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T, "principal component"
    cells = require("anndata").AnnData(obsm={_KEY: values})
    scanpy.pp.neighbors(cells, use_rep=_KEY)
    scanpy.tl.umap(cells)
    return cells.obsm["X_umap"], "UMAP"


def _pictures(
    found: Embedding, embedded: Any, labels: dict[str, Any], problems: list[str]
) -> dict[str, tuple[str, bytes]]:
    """Return titles and pictures by file: the losses, and the embedding by batch and label."""
    loss = painted("the loss", (7, 4), 1, lambda axes: plot_loss(found.fitted.result, axes[0]), problems)
    some = np.sort(np.random.default_rng(0).permutation(embedded.n_obs)[:_DRAWN_CELLS])
    project = functools.cache(lambda: plane(embedded.obsm[_KEY][some]))  # inside a picture, as it may fail too

    def scatter(axes: Sequence[Any], values: Any) -> None:
        points, said = project()
        text = np.asarray(values.astype(str))[some]
        levels, number = np.unique(text, return_counts=True)
        drawn = levels[np.argsort(-number, kind="stable")][:_DRAWN_LEVELS]
        dots = [axes[0].scatter(*points[text == level].T, s=3, linewidths=0) for level in drawn]
        axes[0].set(xlabel=f"{said} 1", ylabel=f"{said} 2", title=literal(str(values.name)))
        # Handles are given, as matplotlib would leave out those whose label starts with an underscore.
        place: dict[str, Any] = {"bbox_to_anchor": (1, 1), "loc": "upper left"}
        axes[0].legend(dots, map(literal, drawn), frameon=False, fontsize="small", markerscale=3, **place)

    pictures = {"loss": ("loss", loss)}
    for argument, values in labels.items():
        png = painted(str(values.name), (7, 5), 1, functools.partial(scatter, values=values), problems)
        pictures[f"embedding_by_{argument}"] = (f"embedding by {values.name}", png)
    return {file: (title, png) for file, (title, png) in pictures.items() if png}


def _write(
    options: argparse.Namespace,
    found: Embedding,
    embedded: Any,
    table: Any,
    pictures: dict[str, tuple[str, bytes]],
    warnings: list[str],
) -> None:
    """Write all files."""
    fit = found.fitted.result
    held_out = min((loss for _, loss in fit.held_out), default=None)  # none if the fit was too short to evaluate it
    numbers = {
        "versions": {"pyro-zilognormal": __version__},
        "settings": {name: getattr(options, name) for name in ("source", "label", "steps", *_SETTINGS)},
        "fit": {"stop_reason": fit.stop_reason, "steps": fit.steps, "best_step": fit.best_step},
        "seconds": round(fit.seconds, 3),
        "held_out_elbo_per_value": None if held_out is None else round(-held_out / fit.rows / len(found.genes), 6),
        "zero_share_mean_error": round(float((table["zero_share"] - table["zero_share_fit"]).abs().mean()), 6),
        "warnings": warnings,
    }
    with console.whole_files(options.out) as folder:
        embedded.write_h5ad(folder / "embedding.h5ad")
        console.write_parts(folder, "genes.csv", table, numbers, {name: png for name, (_, png) in pictures.items()})
        shown = {"source": options.source, "command": options.command, "fit": fit, "version": __version__}
        shown |= {"pictures": list(pictures.values()), "warnings": warnings, "numbers": json.dumps(numbers, indent=2)}
        (folder / "report.html").write_text(page("embed.html.jinja", **shown), encoding="utf-8")
