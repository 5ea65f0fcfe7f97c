"""Make `pyro_zilognormal/datasets/pbmc68k_reduced.npz` from the data set that scanpy carries.

    pip install scanpy
    python tools/make_pbmc68k.py            # writes the file
    python tools/make_pbmc68k.py --check    # rebuilds it and compares it with the committed one

No network is used: the source file is part of scanpy's wheel. The rule that picks the genes is in
`choose_genes`; the data's history and licences are in `pyro_zilognormal/datasets/README.md`.
"""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from pathlib import Path

import numpy as np

TARGET = Path(__file__).parents[1] / "pyro_zilognormal" / "datasets" / "pbmc68k_reduced.npz"
N_GENES = 200
N_BINS = 16  # bins of equal size along the fraction of zeros

MARKERS = (
    *("LYZ", "S100A8", "S100A9", "CST3", "FCN1", "TYROBP", "FCGR3A", "FCER1A", "HLA-DRA", "CD74"),  # myeloid
    *("CD3D", "CD3E", "IL32", "IL7R", "CD4", "CD8A", "CD8B"),  # T cells
    *("NKG7", "GNLY", "GZMA", "GZMB", "GZMK", "PRF1", "CCL5"),  # cytotoxic
    *("MS4A1", "CD79A", "CD79B"),  # B cells
    "FTL",  # nearly no zeros
)


def linear_values(log1p_values: np.ndarray) -> np.ndarray:
    """Undo log1p in float64, through the integers that the three published decimals are."""
    thousandths = np.rint(log1p_values.astype(np.float64) * 1000)
    if np.abs(thousandths / 1000 - log1p_values).max() > 1e-6:
        raise ValueError("the source is no longer log1p values rounded to three decimals")
    return np.expm1(thousandths / 1000)


def log_spread(values: np.ndarray) -> np.ndarray:
    """The standard deviation of the logarithm of each gene's positive values."""
    logs = np.log(np.where(values > 0, values, np.nan))
    return np.nanstd(logs, axis=0, ddof=1)


def choose_genes(values: np.ndarray, names: np.ndarray) -> np.ndarray:
    """The markers; then, of the others in bins of zero fraction, evenly spaced ranks of `log_spread`.

    So each bin gives its least and its most variable gene and those between, easy and hard ones alike. Ties
    go by name.
    """
    missing = set(MARKERS) - set(names)
    if missing:
        raise ValueError(f"the source has no gene named {sorted(missing)}")
    is_marker, spread, zeros = np.isin(names, MARKERS), log_spread(values), (values == 0).mean(0)
    others = [i for i in np.lexsort((names, zeros)) if not is_marker[i]]
    chosen = set(np.flatnonzero(is_marker))
    bins = np.array_split(others, N_BINS)
    quotas = [len(part) for part in np.array_split(np.arange(N_GENES - len(chosen)), N_BINS)]
    for members, quota in zip(bins, quotas, strict=True):
        ranked = members[np.lexsort((names[members], spread[members]))]
        chosen |= set(ranked[np.rint(np.linspace(0, len(ranked) - 1, quota)).astype(int)])
    return np.array(sorted(chosen, key=lambda i: names[i]))


def build() -> dict[str, np.ndarray]:
    """The arrays of the file."""
    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the source file is in an old format of anndata
        adata = scanpy.datasets.pbmc68k_reduced()
    values, names = linear_values(adata.raw.X.toarray()), np.asarray(adata.raw.var_names, dtype=str)
    genes = choose_genes(values, names)
    barcodes = np.asarray(adata.obs_names, dtype=str)
    return {
        "values": values[:, genes].astype(np.float32),
        "genes": names[genes],
        "barcodes": barcodes,
        "cell_type": np.asarray(adata.obs["bulk_labels"], dtype=str),
        "phase": np.asarray(adata.obs["phase"], dtype=str),
        "n_counts": np.asarray(adata.obs["n_counts"], dtype=np.float32),
    }


def check(arrays: dict[str, np.ndarray]) -> list[str]:
    """The names of the arrays in which the committed file differs from what was built now."""
    with np.load(TARGET, allow_pickle=False) as old:
        if set(old.files) != set(arrays):
            return sorted(set(old.files) ^ set(arrays))
        return [name for name in arrays if not np.array_equal(arrays[name], old[name])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file differs")
    arguments = parser.parse_args()
    arrays = build()
    if arguments.check:
        differing = check(arrays)
        print(f"{TARGET.name}: " + (f"differs in {', '.join(differing)}" if differing else "as built"))
        return int(bool(differing))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    TARGET.write_bytes(buffer.getvalue())
    print(f"{TARGET}: shape {arrays['values'].shape}, {TARGET.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
