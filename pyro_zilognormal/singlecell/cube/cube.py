"""A cube: cells reduced to the statistics of groups by columns of obs, kept, appended to, and fitted without a cell."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_zilognormal import __version__
from pyro_zilognormal.singlecell.cube.whole_folder import found_at, one_writer, replace_folder
from pyro_zilognormal.singlecell.design.depth import Depth
from pyro_zilognormal.singlecell.design.design import strata
from pyro_zilognormal.singlecell.design.formula import column
from pyro_zilognormal.singlecell.errors import SingleCellError, listed, require, shown, unknown
from pyro_zilognormal.singlecell.files.on_disk import open_cells
from pyro_zilognormal.sufficient import SufficientStatistics
from pyro_zilognormal.sufficient.statistics import regrouped
from pyro_zilognormal.svi.data import digest

FORMAT = 1
_KEY = "ziln_cube"
# Columns of obs and layers of the AnnData that a cube is stored as.
RESERVED = _CELLS, *_DEPTH = "n_cells", "depth_total", "depth_bin", "log_depth_total"
_LAYERS = ("n_pos", "mean", "m2", "offset_sum", "total", "log_cubes")


@dataclass(frozen=True, eq=False)
class Cube:
    """Statistics of groups of cells, one group for each combination of levels of some columns of obs.

    :func:`reduce` makes one of cells; :class:`HurdleDE` and :func:`differential_expression` take it in place of an
    AnnData, for any formula over its keys, with the same results. Where the depth of cells is known, groups are also
    those of bins of depth.

    Attributes:
        obs: a row for each group, with the keys as columns, categories or numbers.
        genes: names of the genes.
        numbers: the five of ``statistics``, then ``totals`` and ``log_cubes``, float64 of shape (7, groups, genes).
        depth: the depth of the cells of each group; None if it is not known.
        settings: scale, offset, depth and other arguments of :func:`reduce`, as plain values.
    """

    obs: Any
    genes: list[str]
    numbers: NDArray[np.float64]
    depth: Depth | None
    settings: dict[str, Any]

    @property
    def statistics(self) -> SufficientStatistics:
        """Statistics of groups x genes, linear values with size factors divided out."""
        return SufficientStatistics(*torch.from_numpy(self.numbers[:5]))

    @property
    def totals(self) -> NDArray[np.float64]:
        """Sums of these values, of shape (groups, genes)."""
        return self.numbers[5]

    @property
    def log_cubes(self) -> NDArray[np.float64]:
        """Sums of the cubes of their logarithms, where positive, of shape (groups, genes)."""
        return self.numbers[6]

    @property
    def cells(self) -> NDArray[np.int64]:
        """The number of cells in each group."""
        return cells_of(self.numbers)

    def __repr__(self) -> str:
        size = f"{self.cells.sum()} cells in {len(self.cells)} groups x {len(self.genes)} genes"
        return f"Cube({size}, by {', '.join(map(str, self.obs.columns))})"

    def select(self, **levels: Any) -> Cube:
        """Return the groups with the given levels of some keys, as in ``cube.select(cell_type="B")``.

        Raises:
            UnknownNameError: no such key or level.
        """
        chosen = np.ones(len(self.obs), dtype=bool)
        for name, given in levels.items():
            values = column(self.obs, name, "select").astype(object)
            own = (values == given).to_numpy() | (values.map(str) == str(given)).to_numpy()
            if not own.any():
                raise unknown(name, given, f"levels of {name!r} in the cube", values.unique())
            chosen &= own
        if not chosen.any():
            raise SingleCellError(f"select: no group has {levels}; needed levels that cells of the cube have")
        rows = np.flatnonzero(chosen)
        obs, depth = self.obs.iloc[rows].reset_index(drop=True), self.depth and self.depth.rows(rows)
        return replace(self, obs=obs, numbers=self.numbers[:, rows], depth=depth)

    def append(self, other: Cube, *, merge: bool = False) -> Cube:
        """Return the cube of these and other cells together; :func:`reduce` makes a cube of cells, ``like`` this one.

        Args:
            other: of other cells, with the same keys, genes and settings. Genes may stand in another order.
            merge: whether groups that both have are merged, for other cells of the same donors; otherwise they are
                refused, since the same cells counted twice look like more evidence.

        Raises:
            SingleCellError: cubes of other keys, genes or settings, or groups that both have.
        """
        self._check_alike(other)
        if not merge:
            own, others = (cube.obs.astype(str).agg(":".join, axis=1) for cube in (self, other))
            if both := list(dict.fromkeys(others[others.isin(own)])):
                raise SingleCellError(
                    f"{len(both)} groups of {':'.join(map(str, self.obs.columns))} are in the cube already: "
                    f"{listed(both, 3)}; needed cells that it does not have; pass merge=True if these are other cells "
                    "of the same groups"
                )
        settings = self.settings | {"edges": other.settings["edges"] | self.settings["edges"]}
        return merged([self, other], settings)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the cube to a zarr folder, which anndata can read too: its layers are the statistics.

        The folder is written beside the old one and takes its place once it is whole, so that a failed or killed save
        leaves the old cube. Another cube there is replaced, anything else is not.

        Raises:
            SingleCellError: something else is there.
            InUseError: another process writes to it.
        """
        with writing(Path(path)):
            self._write(Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Cube:
        """Read a cube that :meth:`save` wrote; a hash finds damage, and nothing in the file is run.

        Raises:
            SingleCellError: no cube, a damaged one, or one of a newer version.
        """
        if not found_at(path).exists():
            raise SingleCellError(f"{str(path)!r} does not exist; needed a cube, as pyro-zilognormal reduce writes it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a column that cannot be read is missing below
            return cls.from_anndata(open_cells(found_at(path)), str(path))

    def to_anndata(self) -> Any:
        """Return the cube as an AnnData with a row for each group, its statistics as layers."""
        obs = self.obs.assign(**{_CELLS: self.cells})
        if self.depth:
            known = self.depth.value, self.depth.bin, self.depth.log
            obs = obs.assign(**dict(zip(_DEPTH, known, strict=True)))
        obs.index = [str(i) for i in range(len(obs))]
        head = {"format": FORMAT, "by": [*self.obs.columns], "settings": self.settings, "version": __version__}
        head["digest"] = self._digest()
        layers, var = dict(zip(_LAYERS, self.numbers[1:], strict=True)), require("pandas").DataFrame(index=self.genes)
        return require("anndata").AnnData(obs=obs, var=var, layers=layers, uns={_KEY: json.dumps(head)})

    @classmethod
    def from_anndata(cls, adata: Any, where: str = "adata") -> Cube:
        """Return the cube that an AnnData of :meth:`to_anndata` holds; ``where`` is what errors call it."""
        if not is_cube(adata):
            raise SingleCellError(f"{where!r} holds no cube; needed one that reduce or Cube.save wrote")
        newer = 0
        try:
            head = json.loads(adata.uns[_KEY])
            newer = head["format"] if head["format"] > FORMAT else 0
            if not newer:
                return _checked(adata, head)
        except Exception as error:  # zarr, anndata, json and checks raise many kinds for damaged files
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise SingleCellError(f"{where!r} is a damaged cube ({said}); reduce the cells again") from error
        raise SingleCellError(f"{where!r} has cube format {newer}, newer than the {FORMAT} of this version; upgrade it")

    def check_given(self, **given: Any) -> None:
        """Raise for arguments that say something else than what the cells were reduced with."""
        for name, value in given.items():
            own = self.settings[name]
            if not (value is None or (np.isscalar(value) and value in (False, own))):  # 0 is False
                said = f"{name} is {shown(value)}, but the cells of the cube were reduced with {name}={own!r}"
                raise SingleCellError(f"{said}; needed no {name}, or a cube that is reduced again")

    # --- Parts

    def with_genes(self, genes: list[str]) -> Cube:
        """Return the cube with its genes in another order."""
        if genes == self.genes:
            return self
        if set(genes) != set(self.genes):
            odd = sorted(set(genes) ^ set(self.genes))
            said = f"genes differ: {len(odd)} are in one of two inputs only, {listed(odd, 3)}"
            raise SingleCellError(
                f"{said}; needed the same genes in all: fill those that are missing, or leave them out"
            )
        place = {gene: i for i, gene in enumerate(self.genes)}
        return replace(self, genes=genes, numbers=self.numbers[:, :, [place[gene] for gene in genes]])

    def _check_alike(self, other: Cube) -> None:
        """Raise for a cube that was reduced in another way."""
        keys = [", ".join(map(str, cube.obs.columns)) for cube in (self, other)]
        if keys[0] != keys[1]:
            raise SingleCellError(f"by: the cube has the keys {keys[0]}, the other one {keys[1]}; needed the same")
        for name in self.settings.keys() - {"scale_from"}:
            own, others = self.settings[name], other.settings[name]
            if name == "edges":  # a new level has its own
                others = {level: edges for level, edges in others.items() if level in own}
                own = {level: edges for level, edges in own.items() if level in others}
            if own != others:
                raise SingleCellError(
                    f"{name} differs: {shown(own)} in the cube, {shown(others)} in the other one; needed cells that "
                    "are reduced as the cube was: reduce(adata, like=cube), or --append"
                )

    def _digest(self) -> str:
        """Return a hash of everything but the version."""
        keys = [[str(name), *_plain(self.obs[name])] for name in self.obs.columns]
        depth = [self.depth.value, self.depth.bin, self.depth.log] if self.depth else []
        arrays = [self.cells, self.statistics.value, self.totals, self.log_cubes]
        return digest([json.dumps(self.settings, sort_keys=True), self.genes, keys, depth, arrays])

    def _write(self, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats, from zarr and anndata
            replace_folder(path, self.to_anndata().write_zarr)


def cells_of(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the number of cells in each group of statistics of shape (5 or more, groups, genes)."""
    return numbers[:2, :, 0].sum(0).astype(np.int64)


def is_cube(adata: Any) -> bool:
    """Whether an AnnData holds a cube."""
    uns = getattr(adata, "uns", None)
    return isinstance(uns, Mapping) and isinstance(uns.get(_KEY), str)


def opened(adata: Any) -> Any:
    """Return the cube that an AnnData holds; other objects as they are."""
    return Cube.from_anndata(adata) if is_cube(adata) else adata


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Keep other processes off a path, and refuse one that holds something else than a cube."""
    with one_writer(path):
        if path.exists() and not (path / "uns" / _KEY).is_dir():
            raise SingleCellError(f"{str(path)!r} exists and is no cube, and is left as it is; choose another path")
        yield


def _plain(values: Any) -> list[Any]:
    """Return a key as levels and codes, or as numbers."""
    if hasattr(values, "cat"):
        return [[str(level) for level in values.cat.categories], np.asarray(values.cat.codes, np.int64)]
    return [values.to_numpy().astype(np.float64)]


def _checked(adata: Any, head: Mapping[str, Any]) -> Cube:
    """Return the cube of an AnnData; any error says that it is damaged."""
    settings, by, genes = head["settings"], head["by"], [str(gene) for gene in adata.var_names]
    cells = np.asarray(adata.obs[_CELLS]).astype(np.int64)
    layers = [np.asarray(adata.layers[name][:]).astype(np.float64) for name in _LAYERS]
    numbers = np.stack([cells[:, None] - layers[0], *layers])
    depth = None
    if settings["known_depth"] is not None:
        total, which, log = (adata.obs[name].to_numpy() for name in _DEPTH)
        depth = Depth(settings["known_depth"], total, which.astype(np.int64), log, cells)
    obs = require("pandas").DataFrame({name: column(adata.obs, name, "by") for name in by}).reset_index(drop=True)
    cube = Cube(obs, genes, numbers, depth, dict(settings))
    if cube._digest() != head["digest"]:
        raise ValueError("its hash does not match its content")
    return cube


# --- Cubes together


def merged(parts: Sequence[Cube], settings: dict[str, Any]) -> Cube:
    """Return the cube of disjoint sets of cells; groups that several have become one."""
    genes = parts[0].genes
    parts = [part.with_genes(genes) for part in parts]
    obs = require("pandas").DataFrame({n: _stack([p.obs[n] for p in parts]) for n in parts[0].obs.columns})
    depths = [part.depth for part in parts if part.depth]
    value, log, bins = (
        np.concatenate([getattr(d, name) for d in depths] or [np.zeros(len(obs))]) for name in ("value", "log", "bin")
    )
    row, example = strata([*(obs[name] for name in obs.columns), bins], len(obs))
    numbers = regrouped(np.concatenate([part.numbers for part in parts], 1), row, len(example))
    cube = Cube(obs.iloc[example].reset_index(drop=True), genes, numbers, None, settings)
    value, log = (np.bincount(row, each).astype(np.float64) for each in (value, log))
    depth = Depth(depths[0].name, value, bins[example], log, cube.cells) if depths else None
    return replace(cube, depth=depth)


def _stack(columns: Sequence[Any]) -> Any:
    """Return a key of several cubes as one column.

    Categories stay sorted where all parts have them so; else new ones follow those that are there.
    """
    pandas = require("pandas")
    if not all(hasattr(c, "cat") for c in columns):
        if any(hasattr(c, "cat") for c in columns):
            raise SingleCellError(f"by: {columns[0].name!r} holds numbers in one input, categories in another")
        return pandas.concat(columns, ignore_index=True)
    by_name = all(c.cat.categories.is_monotonic_increasing for c in columns)
    return pandas.Series(pandas.api.types.union_categoricals(columns, sort_categories=by_name, ignore_order=True))
