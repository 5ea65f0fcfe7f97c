"""The embedded blood cells as an AnnData, for the demonstration."""

from __future__ import annotations

from typing import Any

from pyro_zilognormal.datasets import pbmc68k_reduced
from pyro_zilognormal.singlecell.errors import require

FORMULA = "~ cell_type"
CONTRAST = ("cell_type", "monocyte", "T cell")


def demo_cells() -> Any:
    """Return the monocytes and T cells of :func:`~pyro_zilognormal.datasets.pbmc68k_reduced` as an AnnData.

    Example:
        >>> demo_cells().obs["cell_type"].value_counts().to_dict()
        {'T cell': 192, 'monocyte': 129}
    """
    data = pbmc68k_reduced()
    lineage = {str(label): _lineage(str(label)) for label in data.cell_type}
    pandas = require("pandas")
    names = [str(barcode) for barcode in data.barcodes]
    obs = pandas.DataFrame({"cell_type": [lineage[str(label)] for label in data.cell_type]}, index=names)
    chosen = (obs["cell_type"] != "").to_numpy()
    var = pandas.DataFrame(index=[str(gene) for gene in data.genes])
    return require("anndata").AnnData(data.values.numpy()[chosen], obs[chosen], var)


def _lineage(label: str) -> str:
    if label == "CD14+ Monocyte":
        return "monocyte"
    return "T cell" if label.startswith(("CD4+", "CD8+")) else ""
