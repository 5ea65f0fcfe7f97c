"""700 blood cells by 200 genes, embedded in the package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PBMC68k:
    r"""Normalised expression of peripheral blood cells, with labels of each cell.

    The value of cell :math:`c` and gene :math:`g` is :math:`10^4 \, k_{cg} / n_c`: molecules counted, per ten
    thousand molecules of the cell. scanpy published it as log1p rounded to three decimals, so 1 + value is
    within 0.05 % of the exact one; a zero is exactly zero and means that no molecule was observed.

    Attributes:
        values: float32, 700 cells x 200 genes, :math:`\ge 0`, linear (no logarithm), counts per ten thousand.
        genes: the 200 gene symbols, sorted.
        barcodes: the 700 cell barcodes; the digit after the dash is the well, of 8, that captured the cell.
        cell_type: of each cell, the sorted bulk population it resembles most (scanpy's `bulk_labels`).
            These labels were computed from the expression; they are not a measured truth.
        phase: of each cell, its inferred phase in the cell cycle: G1, S or G2M.
        n_counts: float32, the molecules :math:`n_c` counted in each cell over all genes, not only these 200;
            divide by its mean or its median to get a size factor.
    """

    values: Tensor
    genes: np.ndarray
    barcodes: np.ndarray
    cell_type: np.ndarray
    phase: np.ndarray
    n_counts: Tensor

    def gene(self, name: str) -> Tensor:
        """The values of one gene in every cell: a view of `values`, of shape (700,)."""
        found = np.flatnonzero(self.genes == name)
        if len(found) != 1:
            raise ValueError(f"name: got {name!r}, needed one of the {len(self.genes)} symbols in `genes`")
        return self.values[:, int(found[0])]


def pbmc68k_reduced() -> PBMC68k:
    """Load 700 peripheral blood cells x 200 genes from the file inside the package, with no network.

    A slice of the data set that scanpy carries under this name, from the 68,000 cells of Zheng et al. (2017).
    Each row was normalised over *all* genes of the cell before the genes were reduced, so the rows here do
    not sum to 10,000. `pyro_zilognormal/datasets/README.md` gives the history, the licences and the rule
    that chose the genes: the known markers, and others spread evenly over the fraction of zeros (0.3 % to
    99.3 %) and the variability.

    Returns:
        A fresh copy on each call, on the CPU, as a :class:`PBMC68k`.

    References:
        G. X. Y. Zheng et al., Massively parallel digital transcriptional profiling of single cells, Nature
        Communications 8, 14049 (2017), https://doi.org/10.1038/ncomms14049

    Example:
        >>> data = pbmc68k_reduced()
        >>> data.values.shape
        torch.Size([700, 200])
        >>> in_b_cells = data.cell_type == "CD19+ B"
        >>> round(data.gene("CD79A")[in_b_cells].mean().item(), 1)  # counts per ten thousand
        26.7
    """
    source = resources.files("pyro_zilognormal.datasets") / "pbmc68k_reduced.npz"
    with source.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        fields: dict[str, Any] = {name: arrays[name] for name in arrays.files}
    for name in ("values", "n_counts"):
        fields[name] = torch.from_numpy(fields[name])
    return PBMC68k(**fields)
