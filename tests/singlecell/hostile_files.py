"""Damaged, malicious and odd files of cells: each is refused in one line, or read as what it holds."""

from __future__ import annotations

import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import anndata
import h5py
import numpy as np
import scipy.sparse as sp

from pyro_zilognormal import SufficientStatistics
from pyro_zilognormal.singlecell import HurdleDE, SingleCellError, open_cells
from tests.singlecell.cell_cases import experiment, frame, values

# Quarters, which float16 holds exactly.
X = np.minimum(np.round(4 * values()) / 4, 400.0)
CELLS, GENES = X.shape
Spoil = Callable[[h5py.File], object]


@functools.cache
def expected() -> np.ndarray:
    """The statistics of the cells as they were written."""
    groups = (frame()["condition"] == "stim").astype(int).to_numpy()
    return SufficientStatistics.from_cells(X, groups, 2).value.numpy()


def cells(form: str = "csr", place: str = "X") -> anndata.AnnData:
    """The cells with their values in a place."""
    stored = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.array}[form](X)
    made = experiment(x=stored if place == "X" else np.ones_like(X))
    if place == "raw":
        made.raw = experiment(x=stored)
    elif place == "layer":
        made.layers["linear"] = stored
    return made


def read(path: pathlib.Path, place: str = "X", follow_links: bool = False, dask: bool = False) -> str:
    """Read a file; return what is wrong with it, "" if all is read and is what was written, or "wrong"."""
    chosen = {"X": {}, "layer": {"layer": "linear"}, "raw": {"use_raw": True}}[place]
    try:
        with open_cells(path, follow_links=follow_links, dask=dask) as adata:
            found = HurdleDE(adata, "~ condition", scale="linear", **chosen).data.value.numpy()
    except SingleCellError as error:
        return str(error)
    close = found.shape == expected().shape and np.allclose(found, expected(), rtol=1e-12, atol=1e-12)
    return "" if close else "wrong"


def _set(name: str, at: int, value: int) -> Spoil:
    def spoil(group: Any) -> None:
        group[name][at] = value

    return spoil


def _replace(name: str, make: Callable[[np.ndarray], Any]) -> Spoil:
    def spoil(group: Any) -> None:
        old = group[name][:]
        del group[name]
        group[name] = make(old)

    return spoil


def _shape(*shape: float) -> Spoil:
    def spoil(group: Any) -> None:
        del group.attrs["shape"]
        group.attrs["shape"] = np.array(shape)

    return spoil


def _without(name: str) -> Spoil:
    def spoil(group: Any) -> None:
        del group[name]

    return spoil


# Of a group that holds a sparse matrix, in all places and both forms.
SPARSE: dict[str, Spoil] = {
    "an index of 10^8": _set("indices", 5, 10**8),
    "an index of -1": _set("indices", 5, -1),
    "the last index of 2^31 - 1": _set("indices", -1, 2**31 - 1),
    "an indptr that falls": _set("indptr", 3, 0),
    "an indptr that starts at 1": _set("indptr", 0, 1),
    "an indptr that starts below 0": _set("indptr", 0, -5),
    "an indptr that ends late": _set("indptr", -1, 10**6),
    "an indptr that ends early": _set("indptr", -1, 7),
    "an indptr that is too long": _replace("indptr", lambda a: np.append(a, a[-1])),
    "an indptr that is too short": _replace("indptr", lambda a: a[:-1]),
    "an indptr of fractions": _replace("indptr", lambda a: a + 0.5),
    "an indptr beyond int64": _replace("indptr", lambda a: a.astype(np.uint64) + np.uint64(2**63)),
    "an indptr of text": _replace("indptr", lambda a: [b"1"] * len(a)),
    "data that are too short": _replace("data", lambda a: a[:-9]),
    "data that are too long": _replace("data", lambda a: np.tile(a, 2)),
    "indices that are too short": _replace("indices", lambda a: a[:-9]),
    "indices of fractions": _replace("indices", lambda a: a + 0.25),
    "indices of 2 dimensions": _replace("indices", lambda a: a[None]),
    "indices beyond int64": _replace("indices", lambda a: a.astype(np.uint64) + np.uint64(2**63)),
    "indices beyond int32": _replace("indices", lambda a: a.astype(np.int64) + 2**32),
    "a number for data": _replace("data", lambda a: 1.0),
    "data of 2 dimensions": _replace("data", lambda a: a[None]),
    "text for data": _replace("data", lambda a: [b"1"] * len(a)),
    "complex data": _replace("data", lambda a: a + 1j),
    "records for data": _replace("data", lambda a: np.zeros(len(a), [("a", "f4")])),
    "NaN": _set("data", 4, np.nan),
    "a negative value": _set("data", 4, -1),
    "the shape of fewer genes": _shape(CELLS, GENES - 1),
    "the shape of more cells": _shape(CELLS + 1, GENES),
    "a shape of negative numbers": _shape(-CELLS, -GENES),
    "a huge shape": _shape(2**40, 2**40),
    "a shape of NaN": _shape(np.nan, np.nan),
    "a shape of one axis": _shape(CELLS),
    "no data": _without("data"),
    "no indptr": _without("indptr"),
}
# These are good files: what anndata reads is read.
GOOD: dict[str, Spoil] = {
    "float16": _replace("data", lambda a: a.astype(np.float16)),
    "big-endian values": _replace("data", lambda a: a.astype(">f4")),
    "big-endian indices": _replace("indices", lambda a: a.astype(">i8")),
    "indices of 8 bits": _replace("indices", lambda a: a.astype(np.uint8)),
    "an unsigned indptr": _replace("indptr", lambda a: a.astype(np.uint64)),
}


def _dense(make: Callable[[np.ndarray], Any]) -> Spoil:
    return lambda file: _replace("X", make)(file)


def _wide(file: h5py.File) -> None:
    del file["X"]
    file.create_dataset("X", (CELLS, 2**40), "f8", chunks=(1, 2**20))


def _external(file: h5py.File) -> None:
    del file["X"]
    file["X"] = h5py.ExternalLink("other.h5ad", "/X")


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(X.shape, "f8")
    layout[:] = h5py.VirtualSource("other.h5ad", "X", X.shape)
    del file["X"]
    file.create_virtual_dataset("X", layout)


def _storage(file: h5py.File) -> None:
    del file["X"]
    file.create_dataset("X", X.shape, "f8", external=[("other.bin", 0, X.nbytes)])


def _soft(file: h5py.File) -> None:
    file["uns/same"] = h5py.SoftLink("/uns")


def _hard(file: h5py.File) -> None:
    file["uns/same"] = file["uns"]


def _huge_index(file: h5py.File) -> None:
    del file["obs/_index"]
    file.create_dataset("obs/_index", (2**50,), "f8", chunks=(2**20,))


def _deep(file: h5py.File) -> None:
    group = file["uns"]
    for _ in range(3000):
        group = group.create_group("x")
        group.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})


def _attribute(where: str, name: str, value: Any) -> Spoil:
    def spoil(file: h5py.File) -> None:
        file[where].attrs[name] = value

    return spoil


# Of a file with a dense X.
FILES: dict[str, Spoil] = {
    "fewer genes than var": _dense(lambda x: x[:, :-1]),
    "more genes than var": _dense(lambda x: np.hstack([x, x])),
    "fewer cells than obs": _dense(lambda x: x[:-1]),
    "an X of 3 dimensions": _dense(lambda x: x[..., None]),
    "an X of 1 dimension": _dense(lambda x: x[0]),
    "an X of text": _dense(lambda x: np.full(x.shape, b"1")),
    "a complex X": _dense(lambda x: x + 0j),
    "an X of 2^40 genes": _wide,
    "an external link": _external,
    "a virtual dataset": _virtual,
    "external storage": _storage,
    "a soft link in a circle": _soft,
    "a hard link in a circle": _hard,
    "an index of 2^50 cells": _huge_index,
    "no var": _without("var"),
    "no obs": _without("obs"),
    "no index of obs": _without("obs/_index"),
    "columns that obs lacks": _attribute("obs", "column-order", ["missing"]),
    "an index that obs lacks": _attribute("obs", "_index", "missing"),
    "codes of levels that are not there": _set("obs/condition/codes", 3, 99),
    "thousands of groups in each other": _deep,
    "fewer codes than cells": _replace("obs/condition/codes", lambda a: a[:-1]),
}
GOOD_FILES: dict[str, Spoil] = {
    "big-endian X": _dense(lambda x: x.astype(">f8")),
    "float16 X": _dense(lambda x: x.astype(np.float16)),
    "a column of an unknown version": _attribute("obs/donor", "encoding-version", "9.9.9"),
    "an element of an unknown kind": _attribute("varm/new", "encoding-type", "of tomorrow"),
}


def write_all(folder: pathlib.Path) -> list[tuple[str, str, pathlib.Path]]:
    """Write all files; return the name, the place of the matrix and the path of each. Names of good ones start so."""
    found = []
    for form in ("csr", "csc"):
        for place, where in (("X", "X"), ("layer", "layers/linear"), ("raw", "raw/X")):
            # All kinds in X of either form; in other places, every third.
            kinds = list({**SPARSE, **{f"good: {k}": v for k, v in GOOD.items()}}.items())
            for name, spoil in kinds if place == "X" else kinds[:: 3 if form == "csr" else 5]:
                path = folder / f"{len(found)}.h5ad"
                cells(form, place).write_h5ad(path)
                with h5py.File(path, "a") as file:
                    spoil(file[where])
                found.append((f"{name}, {form} in {place}", place, path))
    for name, spoil in {**FILES, **{f"good: {k}": v for k, v in GOOD_FILES.items()}}.items():
        path = folder / f"{len(found)}.h5ad"
        made = cells("dense")
        made.varm["new"], made.uns["a"] = np.ones((GENES, 2)), 1
        made.write_h5ad(path)
        with h5py.File(path, "a") as file:
            spoil(file)
        found.append((name, "X", path))
    return found


def flipped(content: bytes, number: int) -> bytes:
    """Return a file with one bit flipped at random."""
    bit = int(np.random.default_rng(number).integers(8 * len(content)))
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def small_file(path: pathlib.Path, form: str) -> bytes:
    """Return a small h5ad file, whose indices are a large part of it."""
    made = cells(form)
    made[::8].copy().write_h5ad(path)
    return path.read_bytes()


def main() -> None:
    """Read files with a flipped bit, numbers from standard input; print each number before, and what came after."""
    folder = pathlib.Path(sys.argv[1])
    for line in sys.stdin:
        number = int(line)
        content = (folder / f"{('csr', 'csc', 'dense')[number % 3]}.h5ad").read_bytes()
        path = folder / f"flipped{number}.h5ad"
        path.write_bytes(flipped(content, number))
        print(number, end=" ", flush=True)
        print(" ".join(read(path).split()) or "read", flush=True)
        path.unlink()


if __name__ == "__main__":
    main()
