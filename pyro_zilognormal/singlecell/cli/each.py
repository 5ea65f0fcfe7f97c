"""``pyro-zilognormal de --each COLUMN``: the same comparison in each level of a column, in parallel processes."""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from typing import Any

import torch

from pyro_zilognormal.singlecell.cli import console
from pyro_zilognormal.singlecell.cli.cluster import cluster
from pyro_zilognormal.singlecell.cli.de import compare, open_source
from pyro_zilognormal.singlecell.cube.cube import Cube
from pyro_zilognormal.singlecell.cube.reduce import reduce
from pyro_zilognormal.singlecell.design.design import Design
from pyro_zilognormal.singlecell.design.formula import column
from pyro_zilognormal.singlecell.design.random_effects import random_terms, split_formula
from pyro_zilognormal.singlecell.errors import printable, require

_CUBE, _SUMMARY = "cube.zarr", "summary.csv"
_SHOWN = ("contrast", "n_test", "n_ref", "up", "down", "unfit")
_LONGEST = 80


def run(options: argparse.Namespace) -> int:
    """Compare conditions in each level; return the exit code."""
    with ExitStack() as out:
        with (
            cluster(options.workers, options.cluster),
            open_source(options) as adata,
            console.record_warnings() as recorded,
        ):
            values = column(adata.obs, options.each, "each")
            levels = list(map(str, values.cat.categories if hasattr(values, "cat") else sorted(values.unique())))
            cube = adata if isinstance(adata, Cube) else _reduced(adata, options)
        console.warn(recorded)
        console.open_out(options, out)
        if cube is not adata:
            cube.save(options.out / _CUBE)
        console.say(options, printable(f"{options.source}: {cube}; {len(levels)} levels of {options.each}"))
        rows = []
        for found in _all(options, cube, levels):
            rows += found
            console.say(options, *(_line(row) for row in found))
        rows.sort(key=lambda row: levels.index(row["level"]))
        new = options.out / f"{_SUMMARY}.new"
        require("pandas").DataFrame(rows).to_csv(new, index=False)
        os.replace(new, options.out / _SUMMARY)
    failed = [row for row in rows if row["problem"]]
    console.warn(f"{row['level']}: {row['problem']}" for row in failed)
    console.say(options, f"\nwrote {_SUMMARY} and a folder for each level to {options.out}")
    if len(failed) == len(rows):
        return console.BAD_INPUT
    return console.NOT_CONVERGED if options.strict and not all(row.get("converged", True) for row in rows) else 0


def _reduced(adata: Any, options: argparse.Namespace) -> Cube:
    """Return the cube of the columns that the comparison needs."""
    fixed, bars = split_formula(options.formula)
    terms, _ = random_terms(adata.obs, design := Design(fixed, adata.obs), options.donor, bars)
    names = [options.each, *design.variables, *(name for term in terms for name in term.columns)]
    given = {name: getattr(options, name) for name in console.MODEL if name not in ("donor", "device")}
    return reduce(adata, list(dict.fromkeys(names)), depth_within=options.each if options.depth else None, **given)


def _all(options: argparse.Namespace, cube: Cube, levels: list[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of the summary of each level as it is done."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(options.jobs or cores, len(levels))
    tasks = [
        (argparse.Namespace(**vars(options) | {"out": options.out / folder, "quiet": True}), level)
        for level, folder in zip(levels, folders(levels), strict=True)
    ]
    if jobs == 1:
        yield from (_one(own, cube.select(**{own.each: level}), level) for own, level in tasks)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (max(1, cores // jobs),)) as pool:
        try:
            futures = {pool.submit(_one, own, cube.select(**{own.each: level}), level): level for own, level in tasks}
            for future in as_completed(futures):
                try:
                    yield future.result()
                except BrokenProcessPool:
                    problem = "its process was ended; is memory short? Use --jobs 1"
                    yield [{"level": futures[future], "problem": problem}]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one(options: argparse.Namespace, cube: Cube, level: str) -> list[dict[str, Any]]:
    """Compare conditions in one level, and return its rows of the summary."""
    row: dict[str, Any] = {"level": level}
    try:
        with ExitStack() as out:
            numbers = compare(options, cube, out)[1]
    except (*console.REFUSED, *console.BROKEN, MemoryError) as error:
        return [row | {"problem": console.one_line(error) or type(error).__name__}]
    done = {"converged": numbers["convergence"]["converged"], "report": f"{options.out.name}/report.html"}
    return [row | {name: calls[name] for name in _SHOWN} | done | {"problem": ""} for calls in numbers["contrasts"]]


def _line(row: dict[str, Any]) -> str:
    if row["problem"]:
        return printable(f"{row['level']}: not compared")
    cells = f"{row['n_test']} against {row['n_ref']} cells"
    return printable(f"{row['level']}: {row['contrast']}, {cells}: {row['up']} genes up, {row['down']} down")


def folders(levels: Iterable[str]) -> list[str]:
    """Return the names of folders for levels, which may hold any text.

    Example:
        >>> folders(["CD4 T", "../CD4 T", "cube.zarr"])
        ['CD4_T', 'CD4_T-2', 'cube.zarr-2']
    """
    found: list[str] = []
    taken = {_CUBE, _SUMMARY, console.LOCK}
    for level in levels:
        name = re.sub(r"[^\w.+-]+", "_", level).strip("._")[:_LONGEST] or "level"
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        found.append(next(own for own in names if own.lower() not in taken))  # some file systems take A for a
        taken.add(found[-1].lower())
    return found
