"""Files of cells, whose matrices stay on disk: nothing in them is trusted before it is checked."""

from __future__ import annotations

import os
import warnings
from functools import cache, partial
from pathlib import Path
from typing import Any

from pyro_zilognormal.singlecell.errors import UNREADABLE, SingleCellError, listed, reason, require
from pyro_zilognormal.singlecell.files.stored_matrix import checked, hdf5, lazy, missing_filter

_ON_DISK = ("array", "csr_matrix", "csc_matrix")
_ALIGNED = ("obsm", "varm", "obsp", "varp")
_DEEPEST = 32


def open_cells(path: str | os.PathLike[str], *, follow_links: bool = False, dask: bool = False) -> Any:
    """Open an h5ad or zarr file as an AnnData whose matrices stay on disk.

    obs, var and uns are read into memory; X, raw, layers, obsm, varm, obsp and varp are read when they are sliced.
    (``anndata.read_h5ad(path, backed="r")`` reads every layer into memory.) Use it with ``with``, which closes the file
    at the end, or without; the file is then closed with the object. ``to_memory()`` makes an ordinary AnnData of it.
    A column or another element that anndata cannot read is left out, with a warning that names it. Files of anndata
    before 0.7 are read into memory.

    Args:
        path: the h5ad file or zarr folder.
        follow_links: whether to read a file with links, virtual datasets or external storage, which can reach other
            files.
        dask: whether X, raw and layers are dask arrays, whose blocks the workers of Dask read and check, so that
            :func:`differential_expression` is spread over a cluster; its machines need the file at the same path.

    Returns:
        An ``anndata.AnnData``.

    Raises:
        SingleCellError: the file does not exist, is damaged, holds no AnnData, or holds links.

    Example:
        >>> import anndata, numpy, os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "cells.h5ad")
        >>> anndata.AnnData(numpy.eye(3)).write_h5ad(path)
        >>> with open_cells(path) as cells:
        ...     isinstance(cells, anndata.AnnData), cells.X[1:2]
        (True, array([[0., 1., 0.]]))
    """
    path = Path(path)
    if not (os.path.isfile(path) or os.path.isdir(path)):  # false of a name that is too long; a pipe would wait
        said = "is no file" if os.path.exists(path) else "does not exist"
        raise SingleCellError(f"{str(path)!r} {said}; needed an h5ad or zarr file of an AnnData")
    try:
        full = str(path.absolute())  # workers may have another working directory
        root = require("zarr").open_group(full, mode="r") if path.is_dir() else hdf5().File(full, "r")
        if not follow_links and (link := _link(root, path)):
            raise SingleCellError(
                f"{str(path)!r} holds {link}, which may reach other files; if you trust it, pass follow_links=True"
            )
        with warnings.catch_warnings():
            # Duplicate names of genes are refused later; those of cells do no harm.
            warnings.filterwarnings("ignore", r"(Observation|Variable) names are not unique", UserWarning)
            warnings.filterwarnings("ignore", ".*was written with")  # formats of old versions
            cells, left_out = _opened(root, path, dask)
    except (ModuleNotFoundError, SingleCellError):
        raise
    except Exception as error:  # h5py, zarr and anndata raise many kinds for damaged files
        said = f"{str(path)!r} cannot be read as an AnnData ({reason(error)})"
        raise SingleCellError(f"{said}; needed a whole file that anndata wrote, h5ad or zarr") from error
    if left_out:
        cells.obs.attrs[UNREADABLE] = left_out
        said = listed(f"{what} ({why})" for what, why in left_out.items())
        text = f"{str(path)!r}: left out what anndata cannot read: {said}"
        warnings.warn(text, UserWarning, stacklevel=2)
    return cells


def _opened(root: Any, path: Path, dask: bool) -> tuple[Any, dict[str, str]]:
    """Return the AnnData of an open file, and why elements cannot be read."""
    if getattr(getattr(root.get("obs"), "dtype", None), "names", None):  # records, as anndata wrote them before 0.7
        return _on_disk_class()(require("anndata").read_h5ad(path)), {}
    left_out: dict[str, str] = {}
    matrix = partial(_matrix, dask=dask)

    def raw(group: Any, where: str) -> dict[str, Any]:
        found = {"X": matrix(group["X"], f"{where}.X"), "var": _table(root, "raw/var", left_out)}
        if found["X"].shape != (len(parts["obs"]), len(found["var"])):
            raise ValueError(f"its X has shape {tuple(found['X'].shape)}, its var {len(found['var'])} genes")
        return found

    parts: dict[str, Any] = {name: _table(root, name, left_out) for name in ("obs", "var")}
    parts |= _readable(root, "", left_out, matrix, ["X"])
    if "raw" in root and "X" in root["raw"]:  # a zarr file of no raw has an element for it
        parts |= _readable(root, "", left_out, raw, ["raw"])
    for name, read in {"uns": _in_memory, "layers": matrix, **dict.fromkeys(_ALIGNED, _matrix)}.items():
        parts[name] = _readable(root[name], name, left_out, read) if name in root else {}
    cells = _on_disk_class()(**parts)
    cells._root = root
    return cells, left_out


@cache
def _on_disk_class() -> Any:
    """Return the class of open cells, made here because anndata is imported only where it is used."""

    class AnnDataOnDisk(require("anndata").AnnData):  # type: ignore[misc]
        """An AnnData over the arrays of an open file, which ``with`` closes."""

        def __enter__(self) -> AnnDataOnDisk:
            return self

        def __exit__(self, *_: object) -> None:
            if hasattr(getattr(self, "_root", None), "close"):  # a zarr folder, or a file in memory, needs no closing
                self._root.close()

    return AnnDataOnDisk


def _readable(group: Any, where: str, left_out: dict[str, str], read: Any, names: Any = None) -> dict[str, Any]:
    """Return the elements of a group that can be read, and note why others cannot."""
    found = {}
    for name in group if names is None else names:
        what = f"{where}[{name!r}]" if where else name
        try:
            if where or name in group:  # X may be missing
                found[name] = read(group[name], f"adata.{what}")
        except Exception as error:
            left_out[what] = reason(error)
    return found


def _in_memory(element: Any, where: str = "") -> Any:
    """Return an element in memory."""
    try:
        return require("anndata.io").read_elem(element)
    except Exception as error:
        if missing := missing_filter(element):
            raise SingleCellError(missing) from error
        raise


def _table(root: Any, where: str, left_out: dict[str, str]) -> Any:
    """Return a table; columns that cannot be read are left out."""
    if where not in root:
        raise KeyError(f"it has no {where}")
    table = root[where]
    if not hasattr(table, "keys"):
        raise TypeError(f"its {where} is not a table")
    try:
        return _in_memory(table)
    except Exception:
        index = _in_memory(table[table.attrs["_index"]])
        names = [str(name) for name in table.attrs["column-order"]]
        columns = _readable(table, where, left_out, _in_memory, names)
        return require("pandas").DataFrame(columns, index=index)


def _matrix(element: Any, where: str, dask: bool = False) -> Any:
    """Return a matrix on disk or on Dask, and anything else, such as a table, in memory."""
    if element.attrs.get("encoding-type", "array") not in _ON_DISK:
        return _in_memory(element)
    matrix = require("anndata.io").sparse_dataset(element) if hasattr(element, "keys") else element
    matrix.dtype  # noqa: B018  AnnData reads it, which can fail
    return lazy(checked(matrix, where)) if dask else matrix


def _link(root: Any, path: Path) -> str | None:
    """Return the first link or dataset that may lie elsewhere, in words; anndata writes each object once, by name."""
    if path.is_dir():
        return next((f"a symbolic link, {found.name!r}" for found in path.rglob("*") if found.is_symlink()), None)
    h5py = require("h5py")

    def elsewhere(name: str, link: Any) -> str | None:
        if name.count("/") > _DEEPEST:  # HDF5 takes minutes for thousands
            raise SingleCellError(f"{root.filename!r} holds more than {_DEEPEST} groups in each other; needed fewer")
        if not isinstance(link, h5py.HardLink):
            return f"a link, {name!r}"
        if h5py.h5o.get_info(root[name].id).rc > 1:
            return f"a second name of one object, {name!r}"
        dataset = isinstance(root[name], h5py.Dataset) and (root[name].is_virtual or root[name].external)
        return f"a dataset in other places, {name!r}" if dataset else None

    said: str | None = root.visititems_links(elsewhere)
    return said
