"""Files of cells, whose matrices stay on disk: nothing in them is trusted before it is checked."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_zilognormal.singlecell.errors import UNREADABLE, SingleCellError, listed, reason, require
from pyro_zilognormal.singlecell.files.stored_matrix import checked, hdf5, lazy, missing_filter

_ON_DISK = ("array", "csr_matrix", "csc_matrix")
_ALIGNED = ("layers", "obsm", "varm", "obsp", "varp")
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
        link = None if follow_links else (_symbolic_link(path) if path.is_dir() else _hdf5_link(root))
        if link:
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
        raise SingleCellError(
            f"{str(path)!r} cannot be read as an AnnData ({reason(error)}); needed a whole file that anndata wrote, "
            "h5ad or zarr"
        ) from error
    if left_out:
        cells.obs.attrs[UNREADABLE] = left_out
        said = listed(f"{what} ({why})" for what, why in left_out.items())
        text = f"{str(path)!r}: left out what anndata cannot read: {said}"
        warnings.warn(text, UserWarning, stacklevel=2)
    return cells


def _opened(root: Any, path: Path, dask: bool) -> tuple[Any, dict[str, str]]:
    """Return the AnnData of an open file, and why elements cannot be read."""
    left_out: dict[str, str] = {}
    if _is_old(root):
        old = require("anndata").read_h5ad(path)
        parts = {name: getattr(old, name) for name in ("X", "obs", "var", "uns", *_ALIGNED)}
        parts["raw"] = None if old.raw is None else {"X": old.raw.X, "var": old.raw.var}
    else:
        parts = _parts(root, dask, left_out)
    cells = _on_disk_class()(**parts)
    cells._root = root
    for name in (name for name in _ALIGNED if name in root and not _is_old(root)):
        for key in root[name]:
            with _leaving_out(f"{name}[{key!r}]", left_out):
                where = f"adata.layers[{key!r}]" if dask and name == "layers" else None
                getattr(cells, name)[key] = _element(root[name][key], where)
    return cells, left_out


def _parts(root: Any, dask: bool, left_out: dict[str, str]) -> dict[str, Any]:
    """Return what an AnnData is made of, except what is aligned to its axes."""
    parts: dict[str, Any] = {name: _table(root, name, left_out) for name in ("obs", "var")}
    parts["X"] = None
    with _leaving_out("X", left_out):
        parts["X"] = _element(root["X"], "adata.X" if dask else None) if "X" in root else None
    parts["uns"] = _readable(root["uns"], "uns", left_out) if "uns" in root else {}
    if "raw" in root and "X" in root["raw"]:  # a zarr file of no raw has an element for it
        with _leaving_out("raw", left_out):
            matrix = _element(root["raw/X"], "adata.raw.X" if dask else None)
            raw = {"X": matrix, "var": _table(root, "raw/var", left_out)}
            if raw["X"].shape != (len(parts["obs"]), len(raw["var"])):
                raise ValueError(f"its X has shape {tuple(raw['X'].shape)}, its var {len(raw['var'])} genes")
            parts["raw"] = raw
    return parts


@functools.cache
def _on_disk_class() -> Any:
    """Return the class of open cells, made here because anndata is imported only where it is used."""

    class AnnDataOnDisk(require("anndata").AnnData):  # type: ignore[misc]
        """An AnnData over the arrays of an open file, which ``with`` closes."""

        def __enter__(self) -> AnnDataOnDisk:
            return self

        def __exit__(self, *_: object) -> None:
            if hasattr(self._root, "close"):  # a zarr folder needs no closing
                self._root.close()

    return AnnDataOnDisk


def _is_old(root: Any) -> bool:
    """Whether obs is an array of records, as anndata wrote it before 0.7."""
    return bool(getattr(getattr(root.get("obs"), "dtype", None), "names", None))


@contextmanager
def _leaving_out(what: str, left_out: dict[str, str]) -> Iterator[None]:
    """Note that an element cannot be read, instead of the error."""
    try:
        yield
    except Exception as error:
        left_out[what] = reason(error)


def _readable(group: Any, where: str, left_out: dict[str, str], names: Any = None) -> dict[str, Any]:
    """Return the elements of a group that anndata can read, in memory."""
    found = {}
    for name in group if names is None else names:
        with _leaving_out(f"{where}[{name!r}]", left_out):
            found[name] = _in_memory(group[name])
    return found


def _in_memory(element: Any) -> Any:
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
        columns = _readable(table, where, left_out, names)
        return require("pandas").DataFrame(columns, index=index)


def _element(element: Any, on_dask: str | None) -> Any:
    """Return a matrix on disk, or on Dask under the name that errors use, and anything else (a table) in memory."""
    if element.attrs.get("encoding-type", "array") not in _ON_DISK:
        return _in_memory(element)
    matrix = require("anndata.io").sparse_dataset(element) if hasattr(element, "keys") else element
    matrix.dtype  # noqa: B018  AnnData reads it, which can fail
    return matrix if on_dask is None else lazy(checked(matrix, on_dask))


def _hdf5_link(root: Any) -> str | None:
    """Return the first link or dataset that may lie elsewhere, in words; anndata writes each object once, by name."""
    h5py = require("h5py")

    def of_link(name: str, link: Any) -> str | None:
        if name.count("/") > _DEEPEST:  # HDF5 takes minutes for thousands
            raise SingleCellError(f"{root.filename!r} holds more than {_DEEPEST} groups in each other; needed fewer")
        return None if isinstance(link, h5py.HardLink) else f"a link, {name!r}"

    def of_object(name: str, found: Any) -> str | None:
        if h5py.h5o.get_info(found.id).rc > 1:
            return f"a second name of one object, {name!r}"
        if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external):
            return f"a dataset in other places, {name!r}"
        return None

    said: str | None = root.visititems_links(of_link) or root.visititems(of_object)
    return said


def _symbolic_link(folder: Path) -> str | None:
    """Return the first symbolic link in a folder, in words."""
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if os.path.islink(os.path.join(where, name)):
                return f"a symbolic link, {name!r}"
    return None
