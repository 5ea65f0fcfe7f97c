"""Cells to a cube, and a cube to what is fitted."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_zilognormal.singlecell.arguments import flag, items, nonnegative, text_or_none
from pyro_zilognormal.singlecell.cube.cube import RESERVED, Cube, cells_of, is_cube, merged, opened, writing
from pyro_zilognormal.singlecell.design.depth import AUTO, TOTALS, Depth, edges
from pyro_zilognormal.singlecell.design.design import Design, strata
from pyro_zilognormal.singlecell.design.formula import Formula, column
from pyro_zilognormal.singlecell.design.random_effects import random_terms, split_formula
from pyro_zilognormal.singlecell.errors import SingleCellError, require, shown, unknown
from pyro_zilognormal.singlecell.files.io import (
    Cells,
    data_of,
    find_values,
    log_size_factors,
    of_groups,
    read,
    stratify,
    warn_of_confounded_depth,
)
from pyro_zilognormal.singlecell.files.reading import read_statistics
from pyro_zilognormal.singlecell.files.scale import Cleaner, Expression
from pyro_zilognormal.sufficient.statistics import regrouped

# A formula is evaluated with groups repeated up to so many times.
_REPEATS = 9


def reduce(
    adata: Any,
    by: Sequence[str] | str | None = None,
    *,
    layer: str | None = None,
    use_raw: bool = False,
    scale: str | None = None,
    offset: str | None = None,
    depth: str | None = "auto",
    depth_within: str | None = None,
    detection_threshold: float = 0.0,
    like: Cube | None = None,
) -> Cube:
    """Reduce cells to a cube: the statistics of groups by columns of obs, from which any formula of these is fitted.

    A table from the cube is that from the cells. The matrix is read once, or twice for raw counts, a block at a time.

    Args:
        adata: an AnnData, in memory or on disk, or a list of several with the same genes.
        by: the columns of obs that name the groups, such as ``["donor", "cell_type", "condition"]``.
        layer, use_raw, scale, detection_threshold: see :class:`HurdleDE`.
        offset: the column of obs that holds the log size factors; see :class:`HurdleDE`.
        depth: see :class:`HurdleDE`; with "auto", groups are also those of 4 bins of depth where the depth of cells is
            known. A fit uses them if it is given a depth too. None keeps no bins.
        depth_within: the key within whose levels the bins are made: the one whose levels are fitted one by one, such as
            the cell type. By default they are made of all cells, for fits of all cells.
        like: a cube whose arguments, bins and unit of size factors are used, so that the new one can be appended to it.

    Returns:
        The cube.

    Raises:
        SingleCellError: data or arguments that cannot be used, or groups that are more than half as many as the cells.

    Example:
        >>> import anndata, numpy, pandas
        >>> from pyro_zilognormal.datasets import simulate_ziln
        >>> x = simulate_ziln(200, 4, seed=0, mu=1.0, zi_logits=0.0).values.numpy()
        >>> obs = pandas.DataFrame({"condition": ["ctrl", "stim"] * 100}, index=numpy.arange(200).astype(str))
        >>> reduce(anndata.AnnData(x, obs), "condition", scale="linear")
        Cube(200 cells in 2 groups x 4 genes, by condition)
    """
    adatas = adata if isinstance(adata, list | tuple) else [adata]
    if not adatas:
        raise SingleCellError("adata is an empty list; needed an AnnData, or several")
    if any(isinstance(one, Cube) or is_cube(one) for one in adatas):
        raise SingleCellError("adata is a cube already; needed cells: Cube.append puts cubes of other cells together")
    given: dict[str, Any] = {"layer": layer, "use_raw": flag("use_raw", use_raw), "scale": scale}
    given["offset"] = text_or_none("offset", offset, "the name of a column of obs")
    threshold = nonnegative("detection_threshold", detection_threshold, "in linear units")
    given |= {"detection_threshold": threshold, "depth_within": text_or_none("depth_within", depth_within, "a key")}
    if like is None:
        given["depth"] = text_or_none("depth", depth, "'auto' or the name of a column of obs")
        keys = _keys(by, given["depth_within"])
    else:
        like.check_given(**given)
        given = dict(like.settings)
        # Totals of counts are read from the matrix anew.
        given["depth"] = AUTO if given["known_depth"] == TOTALS and given["depth"] else given["depth"]
        keys = [*like.obs.columns]
        if by is not None and _keys(by, None) != keys:
            raise SingleCellError(f"by is {shown(by)}, but the cube has the keys {keys}; needed these, or none")
    sources = [_Source.of(one, keys, given, f"[{i}]" if len(adatas) > 1 else "") for i, one in enumerate(adatas)]
    settings = _settings(sources, given)
    cube = merged([source.reduce(settings) for source in sources], settings)
    if like is None and 2 * len(cube.cells) > cube.cells.sum():
        said = f"by: {len(cube.cells)} groups of {cube.cells.sum()} cells"
        raise SingleCellError(f"{said}; needed groups of two cells or more on average: name columns of fewer levels")
    return cube


def extend_cube(path: str | os.PathLike[str], adata: Any, *, merge: bool = False, **given: Any) -> Cube:
    """Append new cells to a stored cube, whose own cells are not needed, and return the cube of all.

    This is :meth:`Cube.load`, :func:`reduce`, :meth:`Cube.append` and :meth:`Cube.save`, while no other process writes.

    Args:
        path, adata, merge: as theirs.
        given: arguments of :func:`reduce`, to be checked against those that the cube was made with.
    """
    path = Path(path)
    with writing(path):
        stored = Cube.load(path)
        cube = stored.append(reduce(adata, like=stored, **given), merge=merge)
        cube._write(path)
    return cube


def _keys(by: Any, within: str | None) -> list[str]:
    keys = [by] if isinstance(by, str) else items("by", by, "names of columns of obs")
    if not keys or len(set(keys)) < len(keys):
        raise SingleCellError(f"by is {shown(by)}; needed one or more columns of obs, each once")
    for name in set(keys) & {*RESERVED}:
        raise SingleCellError(f"by: {name!r} is the name of a column that cubes add; rename yours")
    if within is not None and within not in keys:
        raise unknown("depth_within", within, "columns in by", keys)
    return keys


@dataclass(frozen=True, eq=False)
class _Source:
    """One AnnData, found and checked, before its matrix is reduced."""

    clean: Cleaner
    keys: Any  # the columns of obs
    offset: NDArray[np.float64] | None
    depth: Depth | None

    @classmethod
    def of(cls, adata: Any, keys: list[str], given: Mapping[str, Any], number: str) -> _Source:
        clean = find_values(adata, given, number)
        values = {name: column(adata.obs, name, "by") for name in keys}
        # Text becomes categories, sorted as formulas sort it.
        values = {name: v.astype("category") if v.dtype == object else v for name, v in values.items()}
        frame = require("pandas").DataFrame(values).reset_index(drop=True)
        offset = None if given["offset"] is None else log_size_factors(adata.obs, given["offset"])
        return cls(clean, frame, offset, Depth.find(adata.obs, given["depth"], clean))

    def levels(self, within: str | None) -> Any:
        """Return the level of each cell within which its bin of depth is made, as text."""
        return np.full(len(self.keys), "") if within is None else self.keys[within].astype(str).to_numpy()

    def reduce(self, settings: Mapping[str, Any]) -> Cube:
        """Reduce the cells with settings that several sources share."""
        cells, depth, offset = len(self.keys), self.depth, self.offset
        which = np.zeros(cells, np.int64)
        if depth and settings["scale"] == "counts":
            offset = np.log(depth.value / settings["unit"])
        if depth and settings["depth"]:
            level = self.levels(settings["depth_within"])
            for name, between in settings["edges"].items():
                which[level == name] = np.searchsorted(between, depth.log[level == name], side="right")
        row, example = strata([*(self.keys[name] for name in self.keys.columns), which], cells)
        numbers = read_statistics(self.clean, row, len(example), offset)
        if depth:
            value, log = (np.bincount(row, each).astype(np.float64) for each in (depth.value, depth.log))
            depth = Depth(depth.name, value, which[example], log, np.bincount(row))
        keys, genes = self.keys.iloc[example].reset_index(drop=True), self.clean.expression.genes
        return Cube(keys, genes, numbers, depth, dict(settings))


def _settings(sources: Sequence[_Source], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a cube: what is given, what the sources show, bins and unit of all their depths."""
    scales, names = ({s.clean.scale for s in sources}, {s.depth.name if s.depth else None for s in sources})
    if len(scales) > 1:
        raise SingleCellError(f"scale: the inputs look {', '.join(sorted(scales))}; needed one: pass scale= it")
    if len(names) > 1:
        raise SingleCellError(f"depth: the inputs have {sorted(map(str, names))}; needed one: pass depth= it, or None")
    scale, (known,) = scales.pop(), names
    settings = {n: given[n] for n in ("layer", "use_raw", "offset", "depth_within", "detection_threshold")}
    settings |= {"scale": scale, "scale_from": given.get("scale_from", sources[0].clean.scale_from)}
    settings |= {"known_depth": known, "depth": known if given["depth"] else None, "unit": given.get("unit")}
    settings["edges"] = between = dict(given.get("edges", {}))
    if known and scale == "counts" and settings["unit"] is None:
        settings["unit"] = float(np.median(np.concatenate([s.depth.value for s in sources if s.depth])))
    if settings["depth"]:
        level = np.concatenate([s.levels(given["depth_within"]) for s in sources])
        log = np.concatenate([s.depth.log for s in sources if s.depth])
        for name in sorted(set(level.tolist()) - between.keys()):
            between[name] = edges(log[level == name]).tolist()
    elif given["depth_within"]:
        raise SingleCellError("depth_within is given, but the depth of cells is not known; needed depth= a column too")
    return settings


# --- A cube to what is fitted


def read_cube(cube: Cube, formula: str, donor: str | None, depth: str | None) -> Cells:
    """Return what is fitted, as :func:`~pyro_zilognormal.singlecell.files.io.read` does of cells."""
    fixed, bars = split_formula(formula)
    design = Design(fixed, cube.obs, cube.cells)
    _check_formula(design, cube)
    terms, left_out = random_terms(cube.obs, design, donor, bars)
    known, used = _depths(cube, depth)
    row, example = stratify(design, terms, donor, used)
    numbers = regrouped(cube.numbers, row, len(example))
    data = data_of(of_groups(numbers), design, terms, example)
    matrix = Expression(None, cube.genes, cube.obs.index, "the cube", None)
    clean = Cleaner(matrix, cube.settings["scale"], cube.settings["detection_threshold"])
    count, factor = cells_of(numbers), np.ones(len(cube.obs))
    found = Cells(clean, design, terms, left_out, used, factor, data, row, example, count, *numbers[5:])
    if not design.has_depth:
        warn_of_confounded_depth(found, known)
    return found


def _depths(cube: Cube, depth: str | None) -> tuple[Depth | None, Depth | None]:
    """Return the depth of the groups, its bins numbered anew from 0, and that which an argument asks for."""
    known, within = cube.depth, cube.settings["depth_within"]
    if known:
        levels = [] if within is None else [cube.obs[within]]
        known = replace(known, bin=strata([*levels, known.bin], len(cube.obs))[0])
    if depth is None or (depth == AUTO and known is None):
        return known, None
    if known is None or depth not in (AUTO, known.name):
        own = "has no depth" if known is None else f"has the depth {known.name!r}"
        raise SingleCellError(f"depth is {depth!r}, but the cube {own}; needed that, or 'auto', or none")
    if cube.settings["depth"] is None:
        raise SingleCellError(f"depth is {depth!r}, but the cube has no bins; needed reduce(..., depth='auto')")
    return known, known


def _check_formula(design: Design, cube: Cube) -> None:
    """Raise for a formula whose columns depend on how many cells groups have."""
    often = np.repeat(np.arange(len(cube.obs)), np.ceil(_REPEATS * cube.cells / cube.cells.max()).astype(int))
    again = Formula(design.formula, cube.obs.iloc[often]).matrix
    if again.shape[1] != design.matrix.shape[1] or not np.allclose(again, design.matrix[often], rtol=1e-9, atol=1e-12):
        raise SingleCellError(
            f"formula: {design.formula!r} takes means or quantiles over cells, as center, scale, poly and bs do, and a "
            "cube has groups; needed functions of single values, such as np.log(age), or an AnnData of the cells"
        )


def read_any(
    adata: Any, formula: str, donor: str | None, depth: str | None, given: Mapping[str, Any]
) -> tuple[Cells, Mapping[str, Any]]:
    """Return what is fitted, of cells or a cube of them, and the arguments that it was read with."""
    adata = opened(adata)
    if isinstance(adata, Cube):
        adata.check_given(**given)
        return read_cube(adata, formula, donor, depth), adata.settings
    clean, offset = find_values(adata, given), given["offset"]
    said: dict[str, Any] = {"scale": clean.scale, "scale_from": clean.scale_from}
    said["offset"] = offset if isinstance(offset, str | None) else "array"
    return read(adata.obs, formula, donor, offset, depth, clean), {**given, **said}
