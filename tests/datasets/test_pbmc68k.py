"""The embedded data set is what its README says, and needs nothing but NumPy and torch to load."""

from __future__ import annotations

from collections import Counter
from importlib import resources

import numpy as np
import pytest
import torch

from pyro_zilognormal.datasets import PBMC68k, pbmc68k_reduced

FILE = resources.files("pyro_zilognormal.datasets") / "pbmc68k_reduced.npz"


@pytest.fixture(scope="module")
def data() -> PBMC68k:
    return pbmc68k_reduced()


def test_shapes_and_types(data: PBMC68k) -> None:
    assert data.values.shape == (700, 200)
    assert data.values.dtype == data.n_counts.dtype == torch.float32
    assert data.n_counts.shape == (700,)
    assert data.genes.shape == (200,)
    assert data.barcodes.shape == data.cell_type.shape == data.phase.shape == (700,)
    assert len(set(data.genes)) == 200
    assert len(set(data.barcodes)) == 700
    assert sorted(data.genes) == list(data.genes)


def test_values_are_finite_and_never_negative(data: PBMC68k) -> None:
    assert data.values.isfinite().all()
    assert (data.values >= 0).all()
    positive = data.values[data.values > 0]
    assert positive.min().item() == pytest.approx(1.0524, abs=1e-4)
    assert positive.max().item() == pytest.approx(656.865, abs=1e-3)


def test_genes_span_easy_and_hard_ones(data: PBMC68k) -> None:
    zero_fraction = data.values.eq(0).double().mean(0)
    assert data.values.eq(0).double().mean().item() == pytest.approx(0.669, abs=5e-4)
    assert zero_fraction.min().item() == pytest.approx(0.0029, abs=1e-4)
    assert zero_fraction.max().item() == pytest.approx(0.9929, abs=1e-4)
    assert (zero_fraction > 0.9).sum() >= 20
    assert (zero_fraction < 0.35).sum() >= 20


def test_values_are_counts_per_ten_thousand(data: PBMC68k) -> None:
    counts = data.values.double() * data.n_counts.double()[:, None] / 1e4
    assert (counts - counts.round()).abs().max() < 0.09
    assert counts[counts > 0].min() > 0.99
    assert (counts.sum(1) < data.n_counts).all()


def test_labels(data: PBMC68k) -> None:
    assert Counter(data.cell_type.tolist()) == {
        "Dendritic": 240,
        "CD14+ Monocyte": 129,
        "CD19+ B": 95,
        "CD4+/CD25 T Reg": 68,
        "CD8+ Cytotoxic T": 54,
        "CD8+/CD45RA+ Naive Cytotoxic": 43,
        "CD56+ NK": 31,
        "CD4+/CD45RO+ Memory": 19,
        "CD34+": 13,
        "CD4+/CD45RA+/CD25- Naive T": 8,
    }
    assert set(data.phase.tolist()) == {"G1", "S", "G2M"}
    assert {code.split("-")[1] for code in data.barcodes.tolist()} == set("12345678")


MYELOID, T_CELLS = (("Dendritic", "CD14+ Monocyte"), ("CD4+/CD25 T Reg", "CD8+ Cytotoxic T", "CD4+/CD45RO+ Memory"))
MARKERS = [
    *((gene, MYELOID, "CD19+ B") for gene in ("LYZ", "S100A8", "S100A9", "CST3", "FCN1", "TYROBP")),
    *((gene, T_CELLS, "CD14+ Monocyte") for gene in ("CD3D", "CD3E", "IL32")),
    *((gene, ("CD56+ NK", "CD8+ Cytotoxic T"), "CD19+ B") for gene in ("NKG7", "GNLY", "GZMB", "PRF1")),
    *((gene, ("CD19+ B",), "Dendritic") for gene in ("MS4A1", "CD79A", "CD79B")),
]


@pytest.mark.parametrize(("gene", "high", "low"), MARKERS)
def test_markers_mark_their_cells(data: PBMC68k, gene: str, high: tuple[str, ...], low: str) -> None:
    means = {kind: data.gene(gene)[data.cell_type == kind].mean().item() for kind in (*high, low)}
    assert min(means[kind] for kind in high) > 3 * means[low]


def test_gene_is_the_column_of_that_name(data: PBMC68k) -> None:
    for column, name in enumerate(data.genes):
        assert torch.equal(data.gene(name), data.values[:, column])


@pytest.mark.parametrize("name", ["lyz", "CD14", "", "LYZ "])
def test_unknown_gene(data: PBMC68k, name: str) -> None:
    with pytest.raises(ValueError, match=f"name: got '{name}', needed one of the 200 symbols in `genes`"):
        data.gene(name)


def test_each_call_gives_a_copy_of_its_own() -> None:
    first = pbmc68k_reduced()
    before = first.values.clone()
    first.values.fill_(7.0)
    first.genes[:] = "none"
    second = pbmc68k_reduced()
    assert torch.equal(second.values, before)
    assert "LYZ" in second.genes


def test_fields_are_frozen(data: PBMC68k) -> None:
    with pytest.raises(AttributeError):
        data.values = torch.zeros(1)  # type: ignore[misc]


def test_file_is_small_and_holds_no_pickles() -> None:
    content = FILE.read_bytes()
    assert len(content) < 500_000
    with FILE.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        assert all(arrays[name].dtype.kind in "fU" for name in arrays.files)
