"""Embeddings of an AnnData: what is written, from memory and disk alike, and by the command line."""

import json
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata.experimental import AnnCollection
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from pyro_zilognormal import SufficientStatistics
from pyro_zilognormal.models import ZILNVAE, ZILNVAEGuide, fit_vae
from pyro_zilognormal.singlecell import SingleCellError, embed, open_cells
from pyro_zilognormal.singlecell.cli import embed as embed_cli
from pyro_zilognormal.singlecell.embed import CellBatches
from pyro_zilognormal.svi import BatchStream, Checkpoint
from tests.cli.cli_cases import run

CELLS, GENES, STEPS = 300, 24, 20


@pytest.fixture(autouse=True)
def _no_scanpy(monkeypatch):
    """Where it is installed, its UMAP takes the place of principal components."""
    monkeypatch.setitem(sys.modules, "scanpy", None)


def cells(cells=CELLS):
    """Return counts of two kinds of cells in two samples of other depth, as CSR, with their labels."""
    rng = np.random.default_rng(0)
    kind, sample = rng.integers(0, 2, cells), np.arange(cells) * 2 // cells
    mean = np.exp(rng.normal(0.5, 1, GENES) + np.outer(kind, rng.normal(0, 1.5, GENES)) + 0.8 * sample[:, None])
    x = sp.csr_matrix(rng.poisson(mean * rng.lognormal(0, 0.3, (cells, 1))).astype(np.float32))
    obs = pd.DataFrame({"kind": np.array(["a", "b"])[kind], "sample": np.array(["s1", "s2"])[sample]})
    obs.index = [f"cell{i}" for i in range(cells)]
    var = pd.DataFrame(index=[f"gene{i}" for i in range(GENES)])
    return anndata.AnnData(x, obs, var, obsm={"X_pca": np.zeros((cells, 2))})


def holding(value):
    adata = cells()
    adata.X = adata.X.toarray().astype(np.float64) + 0.5
    adata.X[7, 3] = value
    return adata


def named():
    adata = cells()
    adata.obs["name"] = adata.obs_names
    return adata


def embedded(adata, **options):
    found = embed(
        adata, **{"batch": "sample", "scale": "counts", "latent": 2, "hidden": (16,), "steps": STEPS, **options}
    )
    return adata.obsm["X_ziln"], found


def on_disk(folder, adata, kind):
    path = folder / f"cells.{kind}"
    adata.write_zarr(path) if kind == "zarr" else adata.write_h5ad(path)
    return path


REFERENCE, FOUND = embedded(cells())


def test_the_results_are_where_scanpy_looks_for_them_and_survive_a_file(tmp_path):
    adata = cells()
    values, found = embedded(adata, denoise=True)
    assert values.shape == (CELLS, 2)
    assert adata.layers["ziln_denoised"].shape == (CELLS, GENES)
    assert found.batches == ["s1", "s2"]
    read = anndata.read_h5ad(on_disk(tmp_path, adata, "h5ad"))
    assert np.array_equal(read.obsm["X_ziln"], values)
    params = read.uns["X_ziln"]["params"]
    assert (params["batch"], params["scale"], params["depth"]) == ("sample", "counts", "total counts")


def dense(adata):
    adata.X = adata.X.toarray()
    return adata


def by_column(adata):
    adata.X = adata.X.tocsc()
    return adata


@pytest.mark.parametrize("change", [dense, by_column])
def test_a_matrix_in_memory_gives_the_same_in_every_form(change):
    assert np.allclose(embedded(change(cells()))[0], REFERENCE, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer be the default:UserWarning")
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_a_matrix_on_disk_gives_the_same(tmp_path, kind):
    with open_cells(on_disk(tmp_path, cells(), kind)) as adata:
        assert np.allclose(embedded(adata)[0], REFERENCE, atol=1e-4)


def test_a_fit_separates_kinds_and_not_samples():
    adata = cells(600)
    values, found = embedded(adata, steps=600)
    kind, sample = (adata.obs[name].to_numpy() for name in ("kind", "sample"))
    gaps = {}
    for name, labels in (("kind", kind == "a"), ("sample", sample == "s1")):
        difference = values[labels].mean(0) - values[~labels].mean(0)
        pooled = np.cov(values[labels].T) + np.cov(values[~labels].T)
        gaps[name] = difference @ np.linalg.solve(pooled / 2, difference)
    assert gaps["kind"] > 4
    assert gaps["sample"] < 0.25
    change = found.fitted.differential_expression(*(found.cells.subset(kind == k) for k in "ab"), draws=50, batches=[0])
    x, size = adata.X.toarray(), adata.X.sum(1) / np.median(np.asarray(adata.X.sum(1)))
    truth = np.log2((x / size)[kind == "a"].mean(0) / (x / size)[kind == "b"].mean(0))
    assert np.corrcoef(change.draws.mean(0), np.asarray(truth).reshape(-1))[0, 1] > 0.95


def test_minibatches_hold_every_cell_once_an_epoch_in_an_order_of_the_seed():
    part = CellBatches(FOUND.cells.clean, np.arange(10, 290), FOUND.cells.conditions, True, "cpu")
    part.batch_size, part.batches = 16, 18
    epochs = {key: list(part.epoch(*key)) for key in ((0, 0), (1, 0), (0, 1))}
    x = torch.from_numpy(cells().X.toarray())
    for batches in epochs.values():
        indices = torch.cat([batch.indices for batch in batches])
        assert sorted(indices.tolist()) == list(range(280))
        assert torch.equal(torch.cat([batch.args[0] for batch in batches]), x[10 + indices])
    orders = {tuple(torch.cat([b.indices for b in batches]).tolist()) for batches in epochs.values()}
    assert len(orders) == 3
    skipped = list(part.epoch(0, 0, skip=17))
    assert len(skipped) == 1
    assert torch.equal(skipped[0].args[0], epochs[0, 0][-1].args[0])


def test_few_cells_are_in_memory_at_a_time(monkeypatch):
    read = []

    class Matrix:
        def __init__(self, x):
            self.x, self.shape = x, x.shape

        def __getitem__(self, rows):
            read.append(rows.stop - rows.start)
            return self.x[rows]

    many = sp.csr_matrix(np.ones((20_000, 3)))
    clean = FOUND.cells.clean
    clean = type(clean)(type(clean.expression)(Matrix(many), list("abc"), range(20_000), "X", False), "linear", 0.0)
    part = CellBatches(clean, np.arange(20_000), (None, None, None), True, "cpu")
    batches = part.epoch(0, 0)
    assert len(next(batches).args[0]) == 128
    assert sum(read) == 2048
    assert sum(len(batch.args[0]) for batch in batches) == 20_000 - 128
    assert sum(read) == 20_000


def arguments(part):
    return part.X, part.obs["code"].to_numpy()


def collection(folder, adata):
    """Return a loader of two files as one, which are read as they are needed."""
    adata.obs["code"] = pd.factorize(adata.obs["sample"])[0]
    parts = [(folder / "first", adata[:100]), (folder / "second", adata[100:])]
    for place, part in parts:
        place.mkdir()
        part.copy().write_h5ad(place / "cells.h5ad")
    files = AnnCollection([anndata.read_h5ad(place / "cells.h5ad", backed="r") for place, _ in parts])
    rows = BatchSampler(SequentialSampler(files), batch_size=64, drop_last=False)
    return DataLoader(files, batch_size=None, sampler=rows, collate_fn=arguments)


class OfDictionaries:
    """The same batches as annbatch gives them."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        given = ({"X": x, "obs": pd.DataFrame({"code": code})} for x, code in self.loader)
        return ((batch["X"], batch["obs"]["code"].to_numpy()) for batch in given)


@pytest.mark.parametrize("form", [lambda loader: loader, OfDictionaries])
def test_a_loader_over_files_trains_the_model_and_embeds_as_the_whole_matrix_does(tmp_path, form):
    adata = cells()
    stream = BatchStream(form(collection(tmp_path, adata)), plate="cells")
    model = ZILNVAE(sum(SufficientStatistics.from_cells(b.args[0]) for b in stream.epoch(0, 0)), latent=2, batches=2)
    assert model.cells == CELLS
    fitted = fit_vae(model, ZILNVAEGuide(model), stream, steps=STEPS)
    assert fitted.result.losses[-5:].mean() < fitted.result.losses[:5].mean()  # five batches are an epoch
    whole = torch.from_numpy(adata.X.toarray()), torch.from_numpy(adata.obs["code"].to_numpy())
    assert torch.allclose(fitted.latent(stream).mean, fitted.latent(*whole).mean, atol=1e-5)


class Killed(Exception):
    """Stands for the end of the process."""


def kill(run):
    if run.step == 12:
        raise Killed


def test_a_killed_fit_goes_on_from_its_checkpoint(tmp_path):
    path = tmp_path / "fit.ckpt"
    with pytest.raises(Killed):
        embedded(cells(), callbacks=[kill], checkpoint=Checkpoint(path, steps=5))
    assert np.array_equal(embedded(cells(), checkpoint=path)[0], REFERENCE)


def test_the_random_state_is_left_as_it_was():
    state = torch.get_rng_state()
    embedded(cells())
    assert torch.equal(torch.get_rng_state(), state)


BAD = [
    ({"adata": named(), "batch": "name"}, r"batch: obs\['name'\] has 300 levels in 300 cells"),
    ({"batch": "sampel"}, "batch: 'sampel' is not one of .*; did you mean 'sample'"),
    ({"layer": "counts"}, "layer: 'counts'"),
    ({"scale": "log"}, "scale is 'log'"),
    ({"depth": "umi"}, "depth: 'umi'"),
    ({"key_added": "a/b"}, "key_added is 'a/b'"),
    ({"adata": cells()[:20].copy()}, "adata has 20 cells; needed at least 50"),
    ({"latent": 0}, "latent is 0"),
    ({"adata": holding(1e300), "scale": "linear"}, r"1e\+300 in cell 'cell7', gene 'gene3', which float32 cannot hold"),
    ({"adata": holding(1e-60), "scale": "linear"}, "1e-60 in cell 'cell7', gene 'gene3', which float32 cannot hold"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_arguments_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        embedded(**{"adata": cells(), **options})


def test_genes_stored_by_column_on_disk_are_refused(tmp_path):
    with (
        open_cells(on_disk(tmp_path, by_column(cells()), "h5ad")) as adata,
        pytest.raises(SingleCellError, match="CSC"),
    ):
        embedded(adata)


@pytest.mark.parametrize("chosen", [np.zeros(CELLS, bool), np.ones(3, bool)])
def test_subsets_without_cells_or_of_other_length_are_refused(chosen):
    with pytest.raises(SingleCellError, match="chosen has shape"):
        FOUND.cells.subset(chosen)


def test_the_command_writes_the_embedding_checks_and_a_report(tmp_path):
    path, out = on_disk(tmp_path, cells(), "h5ad"), tmp_path / "out"
    asked = ["embed", path, "--batch", "sample", "--label", "kind", "--scale", "counts", "--latent", "2", "--out", out]
    ran = run(*asked, "--steps", "600", "--quiet")
    assert (ran.code, ran.said) == (0, "")
    names = {file.name for file in Path(out).iterdir()}
    pictures = {"loss.png", "embedding_by_batch.png", "embedding_by_label.png"}
    assert names == pictures | {"embedding.h5ad", "genes.csv", "metrics.json", "report.html", "fit.ckpt"}
    result = anndata.read_h5ad(out / "embedding.h5ad")
    assert result.obsm["X_ziln"].shape == (CELLS, 2)
    assert list(result.obs["kind"]) == list(cells().obs["kind"])
    genes, metrics = pd.read_csv(out / "genes.csv"), json.loads((out / "metrics.json").read_text())
    assert len(genes) == GENES
    assert (genes["zero_share"] - genes["zero_share_fit"]).abs().mean() < 0.15
    assert metrics["held_out_elbo_per_value"] < 0
    report = (out / "report.html").read_text()
    assert report.count("data:image/png") == 3
    assert str(path) in report
    resumed = run(*asked, "--steps", "600", "--resume")
    assert resumed.code == 0
    assert np.array_equal(anndata.read_h5ad(out / "embedding.h5ad").obsm["X_ziln"], result.obsm["X_ziln"])


def test_odd_names_and_pictures_that_fail_cost_no_embedding(tmp_path, monkeypatch):
    adata, odd = cells(), {"a": "$\\frac{$", "b": "\x1b[31m基😀"}
    adata.obs["_$\\x\x1b"] = adata.obs["kind"].map(odd)
    adata.obs["text"] = pd.array(["x", None] * (CELLS // 2), dtype="string")
    with anndata.settings.override(allow_write_nullable_strings=True):
        path, asked = on_disk(tmp_path, adata, "h5ad"), ["--scale", "counts", "--latent", "2", "--steps", "5"]
    asked += ["--label", "_$\\x\x1b", "--quiet"]
    ran = run("embed", path, *asked, "--out", tmp_path / "out")
    assert (ran.code, ran.said, ran.problems) == (0, "", "")
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.count("<img") == 2
    assert all(line.isprintable() for line in text.splitlines())
    monkeypatch.setattr(embed_cli, "plane", lambda values: 1 / 0)
    ran = run("embed", path, *asked, "--out", tmp_path / "failed")
    assert ran.code == 0
    assert (
        ran.problems == "warning: the picture of _$\\x\\x1b could not be drawn: ZeroDivisionError: division by zero\n"
    )
    assert len(anndata.read_h5ad(tmp_path / "failed" / "embedding.h5ad")) == CELLS


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--batch", "nobody"], 2, "batch: 'nobody' is not one of"),
        (["--steps", "5", "--scale", "counts", "--strict"], 3, ""),
    ],
)
def test_the_command_fails_with_the_code_of_the_cause(tmp_path, more, code, said):
    ran = run("embed", on_disk(tmp_path, cells(), "h5ad"), "--out", tmp_path / "out", "--latent", "2", *more)
    assert ran.code == code
    assert said in ran.problems
