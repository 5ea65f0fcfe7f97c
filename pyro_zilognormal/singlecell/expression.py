"""Which matrix of an AnnData is meant, and what its rows and columns are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro_zilognormal.singlecell.errors import SingleCellError, unknown


@dataclass(frozen=True, eq=False)
class Expression:
    """A matrix of cells x genes, perhaps on disk, with its names.

    Attributes:
        matrix: has a shape; its slices of rows are arrays or scipy sparse matrices.
        genes: names of the columns.
        cells: names of the rows.
        where: what to call it in an error.
        log1p: whether the AnnData says that it has taken log1p of it.
    """

    matrix: Any
    genes: list[str]
    cells: Any
    where: str
    log1p: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""
        return int(self.matrix.shape[0]), int(self.matrix.shape[1])


def find_expression(adata: Any, layer: str | None = None, use_raw: bool = False) -> Expression:
    """Return X, a layer or raw.X of an AnnData.

    Args:
        adata: an AnnData, or a :class:`CellFile`.
        layer: the name of a layer; None for X.
        use_raw: take ``adata.raw``.

    Raises:
        TypeError: something that has no obs, var_names and X.
        SingleCellError: no such matrix, none of its cells or genes, or gene names that are not unique.
    """
    if not all(hasattr(adata, name) for name in ("obs", "var_names", "layers")):
        raise TypeError(
            f"adata is a {type(adata).__name__}; needed an AnnData, such as anndata.read_h5ad(path) returns"
        )
    matrix, names, where = _choose(adata, layer, use_raw)
    if matrix is None:
        raise SingleCellError(f"adata has no X; name a layer: {', '.join(adata.layers) or 'it has none'}")
    if len(matrix.shape) != 2 or 0 in matrix.shape:
        raise SingleCellError(
            f"{where} is empty, of shape {tuple(matrix.shape)}; needed cells x genes, each at least 1"
        )
    genes = [str(name) for name in names]
    _check_unique(genes, where)
    logged = where == "adata.X" and "log1p" in adata.uns
    return Expression(matrix, genes, adata.obs_names, where, logged)


def _choose(adata: Any, layer: str | None, use_raw: bool) -> tuple[Any, Any, str]:
    if layer is not None and use_raw:
        raise SingleCellError(f"layer is {layer!r} and use_raw is True; needed one of them, as raw has no layers")
    if use_raw:
        if adata.raw is None:
            raise SingleCellError("use_raw is True, but adata.raw is None; set use_raw=False or name a layer")
        return adata.raw.X, adata.raw.var_names, "adata.raw.X"
    if layer is None:
        return adata.X, adata.var_names, "adata.X"
    if layer not in adata.layers:
        raise unknown("layer", layer, "layers of adata", adata.layers)
    return adata.layers[layer], adata.var_names, f"adata.layers[{layer!r}]"


def _check_unique(genes: list[str], where: str) -> None:
    if len(set(genes)) == len(genes):
        return
    seen: set[str] = set()
    first = next(name for name in genes if name in seen or seen.add(name))  # type: ignore[func-returns-value]
    raise SingleCellError(
        f"{where}: gene name {first!r} stands {genes.count(first)} times in var_names; needed unique names: "
        "call adata.var_names_make_unique()"
    )
