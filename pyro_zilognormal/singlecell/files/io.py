"""Cells come in: find the matrix that is meant, read it with its design."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_zilognormal.models import HurdleData
from pyro_zilognormal.singlecell.design.depth import Depth, warn_of_depths
from pyro_zilognormal.singlecell.design.design import Design, strata
from pyro_zilognormal.singlecell.design.formula import column, grouping
from pyro_zilognormal.singlecell.design.random_effects import RandomTerm, random_terms, split_formula
from pyro_zilognormal.singlecell.errors import (
    ArgumentTypeError,
    ScaleWarning,
    SingleCellError,
    check_readable,
    listed,
    unknown,
)
from pyro_zilognormal.singlecell.files.reading import (
    count_positives,
    keep_cells,
    read_genes,
    read_statistics,
    times,
)
from pyro_zilognormal.singlecell.files.scale import Cleaner, Expression, choose_scale, declared_scale
from pyro_zilognormal.singlecell.files.stored_matrix import SparseOnDisk, check_open, checked
from pyro_zilognormal.sufficient import row_chunks

# The share of positive values says something of depth if it is that of many genes.
_FEWEST_GENES = 100
# Positive values, beyond one a row, that say something of the shape of their logarithms; and equal logarithms.
_FEWEST_LOGS, _SAME = 3, 1e-12
# An sd of log x beyond that of any amounts: two thirds of the values lie within a factor of 20,000.
_WIDEST = 5.0


def find_expression(adata: Any, layer: str | None = None, use_raw: bool = False) -> Expression:
    """Return X, a layer or raw.X of an AnnData."""
    if not (hasattr(getattr(adata, "obs", None), "columns") and "X" in dir(adata)):  # which reads nothing
        raise ArgumentTypeError(f"adata is a {type(adata).__name__}; needed an AnnData, as open_cells(path) returns it")
    if getattr(adata, "is_view", False):  # anndata slices the matrix of the whole without a check
        whole, _, where = _choose(adata._adata_ref, layer, use_raw)
        whole = checked(whole, where)
        if isinstance(whole, SparseOnDisk):
            for _ in row_chunks(whole.T if whole.format == "csc" else whole):
                pass
    matrix, names, where = _choose(adata, layer, use_raw)
    check_open(matrix, where)
    cells, genes = adata.obs_names, [str(name) for name in names]
    shape, needed = tuple(matrix.shape), f"{len(cells)} cells, those of obs, x {len(genes)} genes, those of its var"
    if len(shape) != 2 or 0 in shape:
        raise SingleCellError(f"{where} is empty, of shape {shape}; needed cells x genes, each at least 1")
    if shape != (len(cells), len(genes)):
        raise SingleCellError(f"{where} has shape {shape}; needed {needed}: repair the file")
    for name in names[names.duplicated()][:1]:
        raise SingleCellError(
            f"{where}: gene name {str(name)!r} stands {genes.count(str(name))} times in var_names; needed unique "
            "names: call adata.var_names_make_unique()"
        )
    declared = declared_scale(adata.uns) if where == "adata.X" else None
    return Expression(checked(matrix, where), genes, cells, where, declared)


def find_values(adata: Any, given: Mapping[str, Any], number: str = "") -> Cleaner:
    """Return the values that layer, use_raw, scale, ... mean, and how to bring them to the linear scale.

    ``number`` is that of the AnnData among several, for errors.
    """
    found, with_offset = find_expression(adata, given["layer"], given["use_raw"]), given["offset"] is not None
    expression = replace(found, where=found.where.replace("adata", f"adata{number}", 1))
    scale, scale_from = choose_scale(given["scale"], expression, with_offset)
    if scale == "counts" and with_offset:
        raise SingleCellError("offset is given with scale='counts', which takes size factors from depth; needed one")
    return Cleaner(expression, scale, given["detection_threshold"], with_offset, scale_from=scale_from)


def _choose(adata: Any, layer: str | None, use_raw: bool) -> tuple[Any, Any, str]:
    if layer is not None and use_raw:
        raise SingleCellError(f"layer is {layer!r} and use_raw is True; needed one of them, as raw has no layers")
    if use_raw:
        if adata.raw is None:
            check_readable("use_raw", "raw", adata.obs)
            raise SingleCellError("use_raw is True, but adata.raw is None; pass use_raw=False, or name a layer")
        return adata.raw.X, adata.raw.var_names, "adata.raw.X"
    if layer is None:
        if (matrix := adata.X) is not None:
            return matrix, adata.var_names, "adata.X"
        check_readable("adata", "X", adata.obs)
        raise SingleCellError(f"adata has no X; name a layer: {', '.join(adata.layers) or 'it has none'}")
    if layer not in adata.layers:
        check_readable("layer", f"layers[{layer!r}]", adata.obs)
        raise unknown("layer", layer, "layers of adata", adata.layers)
    return adata.layers[layer], adata.var_names, f"adata.layers[{layer!r}]"


@dataclass(frozen=True, eq=False)
class Arm:
    """Observations of some cells, such as those of one side of a contrast, gene by gene."""

    cells: int
    positive: NDArray[np.int64]  # numbers of positive values
    total: NDArray[np.float64]  # sums of the linear values, with size factors divided out

    @property
    def detection(self) -> NDArray[np.float64]:
        """The share of cells with a positive value; NaN without cells."""
        return self.positive / (self.cells or np.nan)

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean of the linear values, zeros included; NaN without cells."""
        return self.total / (self.cells or np.nan)


@dataclass(frozen=True, eq=False)
class Cells:
    """An experiment, read and checked.

    Its rows are strata, of cells alike in all variables, random effects and bin of depth, or single cells. In that of
    a cube, cells are groups, and there is no matrix.
    """

    clean: Cleaner  # the matrix, and how its values are brought to the linear scale
    design: Design
    terms: list[RandomTerm]  # of the random effects, coarse to fine: the factors of the data
    left_out: list[str]  # random effects that others stand for, in words
    depth: Depth | None  # what explains zeros, in bins
    factor: NDArray[np.float64]  # the size factor of each cell
    data: HurdleData  # what is fitted, row by row
    row: NDArray[np.int64]  # the row of each cell
    example: NDArray[np.int64]  # one cell of each row
    count: NDArray[np.int64]  # the number of cells in each row
    # Sums of linear values with size factors divided out, of shape (rows, genes); None where rows are cells.
    totals: NDArray[np.float64] | None
    # Sums of the cubes of the logarithms of these, where positive.
    cubes: NDArray[np.float64] | None

    @property
    def log_skewness(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The skewness of log x about the means of the rows, where x > 0, and its standard error, gene by gene.

        NaN for fewer than 3 positive values more than rows have, for equal ones, and where rows are cells.
        """
        if self.cubes is None:
            return (np.full(self.data.genes, np.nan),) * 2
        _, count, mean, squares, _ = self.data.value.numpy(force=True).transpose(2, 0, 1)
        freedom = np.maximum(count - 1, 0).sum(0)
        third, second = (self.cubes - 3 * mean * squares - count * mean**3).sum(0), squares.sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = third / freedom / (second / freedom) ** 1.5
            known = (freedom >= _FEWEST_LOGS) & (second > _SAME * freedom)
            return np.where(known, found, np.nan), np.where(known, np.sqrt(6 / freedom), np.nan)

    @property
    def depth_bins(self) -> int:
        """The number of bins of depth, 0 where depth explains no zeros."""
        return 0 if self.depth is None else int(self.depth.bin.max()) + 1

    def chosen(self, levels: Mapping[str, Any]) -> NDArray[np.bool_]:
        """Return which cells have the given levels of the variables."""
        found = np.ones(len(self.design.matrix), dtype=bool)
        for name, level in levels.items():
            found &= np.asarray(self.design.variables[name].values == level)
        return found

    def rows(self, levels: Mapping[str, Any]) -> NDArray[np.int64]:
        """Return the rows whose cells have the given levels."""
        return np.flatnonzero(self.chosen(levels)[self.example])

    def arms(self, conditions: Sequence[Mapping[str, Any]]) -> list[Arm]:
        """Return what was observed in the cells with the levels of each condition."""
        chosen = np.stack([self.chosen(levels) for levels in conditions]).astype(np.float64)
        rows = chosen[:, self.example]
        if self.totals is not None:
            positives, totals = rows @ self.data.value[..., 1].numpy(force=True), rows @ self.totals
        else:  # few passes over the cells, however many conditions
            positives = times(chosen, self.data.value, lambda x: x > 0)
            totals = times(chosen / self.factor, self.data.value)
        cells = (rows @ self.count).astype(int).tolist()
        return [Arm(*arm) for arm in zip(cells, positives.astype(np.int64), totals, strict=True)]

    def genes(self, columns: list[int]) -> NDArray[np.float64]:
        """Return the linear values of some genes in all cells, with size factors divided out."""
        if self.clean.expression.matrix is None:
            raise SingleCellError("adata is a cube, which has no single cells to draw genes of; needed an AnnData")
        return read_genes(self.clean, columns) / self.factor[:, None]

    @property
    def names(self) -> list[str]:
        """Names of the genes, in the order of the matrix."""
        return self.clean.expression.genes


def read(obs: Any, formula: str, donor: str | None, offset: Any, depth: str | None, clean: Cleaner) -> Cells:
    """Read all cells in one pass, or two where size factors are the totals of counts.

    Cells alike in all variables, random effects and bin of depth are reduced to statistics, unless these would be more
    than half as many as the cells, as with a covariate that has a value of its own in each cell; then the cells are
    kept, in memory or in their file.
    """
    fixed, bars = split_formula(formula)
    design = Design(fixed, obs)
    terms, left_out = random_terms(obs, design, donor, bars)
    for name in dict.fromkeys(name for term in terms for name in term.columns):
        grouping(obs, name, "donor" if name == donor else "formula")
    shift = None if offset is None else log_size_factors(obs, offset)
    known = Depth.find(obs, depth, clean)
    used = known if depth is not None else None
    if known and clean.scale == "counts":
        shift = np.log(known.size_factor)
    row, example = stratify(design, terms, donor, used)
    factor = np.ones(len(obs)) if shift is None else np.exp(shift)
    if 2 * len(example) > len(obs):
        row = example = np.arange(len(obs))
        value, left = keep_cells(clean), shift
        totals = cubes = None
    else:  # the offset is taken out of statistics and totals
        numbers = read_statistics(clean, row, len(example), shift)
        value, left, totals, cubes = of_groups(numbers), None, *numbers[5:]
    data = data_of(value, design, terms, example, left)
    cells = Cells(clean, design, terms, left_out, used, factor, data, row, example, np.bincount(row), totals, cubes)
    if not design.has_depth:
        warn_of_confounded_depth(cells, known or Depth.hinted(obs))
    return cells


def of_groups(numbers: NDArray[np.float64]) -> torch.Tensor:
    """Return the value of statistics of shape (5 or more, groups, genes)."""
    return torch.from_numpy(numbers[:5]).movedim(0, -1)


def stratify(
    design: Design, terms: list[RandomTerm], donor: str | None, depth: Depth | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the stratum of each row of obs, and one row of each stratum.

    Rows of a stratum are alike in all variables, random effects and bin of depth, which is added to the design.
    """
    if depth:
        design.add_depth(depth.column)
    alike = [variable.values for variable in design.variables.values()] + [term.code for term in terms]
    row, example = strata([*alike, design.zero_matrix[:, -1]] if design.has_depth else alike, len(design.matrix))
    for term in terms:
        term.check_confounding(design, example, donor)
    return row, example


def data_of(
    value: Any,
    design: Design,
    terms: list[RandomTerm],
    example: NDArray[np.int64],
    offset: NDArray[np.float64] | None = None,
) -> HurdleData:
    """Return the data of strata, or of cells, each of which is its own example."""
    # Rows that are all cells in their order are not copied.
    rows = slice(None) if np.array_equal(example, np.arange(len(design.matrix))) else example
    mean = torch.from_numpy(design.matrix[rows])
    zero = torch.from_numpy(design.zero_matrix[rows]) if design.has_depth else mean
    codes = [term.code[example] for term in terms]
    factors = torch.from_numpy(np.stack(codes, 1) if codes else np.empty((len(example), 0), np.int64))
    shift = torch.from_numpy(np.zeros(len(example)) if offset is None else offset)
    return HurdleData(value, mean, zero, mean, factors, shift, tuple(len(term.names) for term in terms))


def warn_of_confounded_depth(cells: Cells, known: Depth | None) -> None:
    """Warn if depth, or the share of positive values, differs much between conditions or donors."""
    data, example = cells.data, cells.example
    positive = data.value[..., 1].sum(1).numpy() if data.reduced else count_positives(data.value)
    measures = {} if known is None else {known.name: np.bincount(cells.row, known.value) / cells.count}
    if data.genes >= _FEWEST_GENES:
        measures["share of positive values"] = positive / (cells.count * data.genes)
    groups = {name: v.values.to_numpy()[example] for name, v in cells.design.variables.items() if v.categorical}
    groups |= {term.name: term.code[example] for term in cells.terms if len(term.columns) == 1}
    warn_of_depths(measures, groups, cells.count)


def warn_of_remnants(cells: Cells) -> None:
    """Warn of genes with positive values that can hardly all be amounts."""
    _, count, mean, squares, _ = cells.data.as_groups().value.unbind(-1)
    total = count.sum(0)
    variance = (squares + count * (mean - (count * mean).sum(0) / total).square()).sum(0) / total
    wide = (variance > _WIDEST**2).nonzero().flatten().tolist()  # not NaN, of genes without a positive value
    if wide:
        warnings.warn(
            f"the sd of log x is above {_WIDEST:g} in {listed([cells.names[g] for g in wide])}: positive numbers that "
            "stand for nothing, such as 1e-185, make means too large and hide changes of all genes; pass "
            "detection_threshold, above which values are amounts",
            ScaleWarning,
            stacklevel=3,
        )


def log_size_factors(obs: Any, offset: Any) -> NDArray[np.float64]:
    """Return the log size factors of the cells."""
    if isinstance(offset, str):
        values, said = column(obs, offset, "offset").to_numpy(), f"offset: obs[{offset!r}]"
    else:
        values, said = np.asarray(offset), "offset"
    if values.shape != (len(obs),):
        raise SingleCellError(f"{said} has shape {values.shape}; needed one number for each of the {len(obs)} cells")
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise SingleCellError(f"{said} is not a finite number in every cell; needed the log of a positive size factor")
    return values.astype(np.float64)
