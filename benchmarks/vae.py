"""The autoencoder beside other likelihoods with the same encoder, on real cells: what it explains, and in what time.

    pip install -c constraints.txt -e ".[singlecell]"
    OMP_NUM_THREADS=1 python benchmarks/vae.py [FILE.h5ad COLUMN_OF_DONORS FOLDER] > benchmarks/VAE.md

The file holds raw counts, and the cells' types in `cell_type`; a file of 1,000,000 cells is written to the folder, to
embed it from disk. Without them, the 700 cells inside the package are all. The peers have our encoder, sizes, optimiser
and stopping, and another likelihood:

- a zero part of one parameter a gene, passed through softplus as logits, so that P(X = 0) is at least 1/2: what
  scvi-tools' DiagVI does;
- a Normal of log1p x, with its Jacobian, compared on positive values alone, as it has no mass at 0.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import anndata
import h5py
import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_zilognormal import SufficientStatistics, ZeroInflatedLogNormal, __version__
from pyro_zilognormal.datasets import pbmc68k_reduced
from pyro_zilognormal.models import ZILNVAE, FittedVAE, ZILNVAEGuide, fit_vae
from pyro_zilognormal.singlecell import embed, open_cells
from pyro_zilognormal.svi import Minibatches

PARTICLES, MOST_HALVED = 100, 1000
MILLION, GENES, POSITIVE = 1_000_000, 500, 50


@dataclass(frozen=True)
class Cells:
    """Linear values of cells, with the arguments that the model is conditioned on and a label of each."""

    name: str
    x: Tensor
    batch: Tensor | None
    depth: Tensor
    label: np.ndarray

    def part(self, rows: Tensor) -> tuple[Tensor | None, ...]:
        return self.x[rows], None if self.batch is None else self.batch[rows], self.depth[rows]


class FeatureGate(ZILNVAE):
    """A zero part of one parameter a gene, as DiagVI has it."""

    def __init__(self, statistics: SufficientStatistics, **options: Any) -> None:
        super().__init__(statistics, **options)
        start = self.genes.zi_logits.clamp(min=0.01)
        self.gate = nn.Parameter(start.expm1().log())  # softplus of it is the log odds of a zero

    def likelihood(self, z: Tensor, *conditions: Any) -> ZeroInflatedLogNormal:
        d = super().likelihood(z, *conditions)
        return ZeroInflatedLogNormal(d.loc, d.scale, softplus(self.gate).expand(d.batch_shape))


class NormalOfLog1p(dist.TorchDistribution):
    """log(1 + x) is Normal: the density of x >= 0, without a mass at 0."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = dist.constraints.nonnegative

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.normal = dist.Normal(loc, scale)
        super().__init__(self.normal.batch_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        log = torch.log1p(value)
        return self.normal.log_prob(log) - log


class LogNormalised(ZILNVAE):
    """A Normal of log1p x, of the same decoder, in units of the mean and sd of log1p x."""

    def __init__(self, statistics: SufficientStatistics, x: Tensor, **options: Any) -> None:
        super().__init__(statistics, **options)
        log = torch.log1p(x)
        self.register_buffer("level", log.mean(0))
        self.register_buffer("unit", log.std(0).clamp(min=1e-3))

    def likelihood(self, z: Tensor, *conditions: Any) -> Any:
        d = super().likelihood(z, *conditions)
        location = (d.loc - self.genes.center) / self.genes.spread
        return NormalOfLog1p(self.level + self.unit * location, self.unit * d.scale / self.genes.spread)


def pbmc() -> Cells:
    data = pbmc68k_reduced()
    log = data.n_counts.log()
    return Cells("pbmc68k_reduced", data.values, None, (log - log.mean())[:, None], data.cell_type)


def counts(path: str, donor: str) -> Cells:
    """Return raw counts as counts per cell of median depth."""
    adata = anndata.read_h5ad(path)
    x = np.asarray(adata.X.toarray(), np.float64)
    size = x.sum(1) / np.median(x.sum(1))
    log = torch.from_numpy(np.log(size)).float()
    batch = torch.from_numpy(adata.obs[donor].astype("category").cat.codes.to_numpy().astype(np.int64))
    values = torch.from_numpy(x / size[:, None]).float()
    label = adata.obs["cell_type"].astype(str).to_numpy()
    return Cells(os.path.basename(path), values, batch, (log - log.mean())[:, None], label)


def fit(kind: type[ZILNVAE], cells: Cells, train: Tensor, stop_by: Tensor) -> FittedVAE:
    torch.manual_seed(0)
    arguments = cells.part(train)
    own = {"x": arguments[0]} if kind is LogNormalised else {}
    batches = 1 if cells.batch is None else int(cells.batch.max()) + 1
    statistics = SufficientStatistics.from_cells(arguments[0])
    model = kind(statistics, batches=batches, covariates=1, **own)
    data = Minibatches(*arguments, batch_size=128, plate="cells")
    held_out = Minibatches(*cells.part(stop_by), batch_size=128, plate="cells")
    return fit_vae(model, ZILNVAEGuide(model), data, held_out=held_out, steps=20_000)


def splits(cells: int, folds: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the cells to train on, to stop by and to judge of the first folds of five, all of them apart."""
    order = torch.randperm(cells, generator=torch.Generator().manual_seed(0))
    size = cells // 5
    found = []
    for start in range(0, folds * size, size):
        test, train = order[start : start + size], torch.cat([order[:start], order[start + size :]])
        found.append((train.sort().values, test[: size // 5], test[size // 5 :]))
    return found


@torch.no_grad()
def of_positive_values(fitted: FittedVAE, arguments: tuple[Any, ...]) -> float:
    """Return the mean over positive values of log E_q p(x), with draws of z of the cell."""
    total, number = 0.0, 0
    with fitted._batches(arguments) as batches:
        for x, *conditions in batches:
            q = fitted.guide.posterior(x, *conditions)
            logs = torch.stack([fitted.model.likelihood(q.sample(), *conditions).log_prob(x) for _ in range(PARTICLES)])
            found = torch.logsumexp(logs, 0) - np.log(PARTICLES)
            total, number = total + float(found[x > 0].double().sum()), number + int((x > 0).sum())
    return total / number


def zero_share(fits: list[FittedVAE], judged: list[tuple[Any, ...]]) -> float:
    """Return the mean error of the share of zeros by gene in all judged cells; folds are of one size."""
    checks = [fitted.predictive_check(*cells, draws=50) for fitted, cells in zip(fits, judged, strict=True)]
    errors = [check.replicated["zero fraction"].mean(0) - check.observed["zero fraction"] for check in checks]
    return float(torch.stack(errors).mean(0).abs().mean())


def noise_of_shares(x: Tensor, cells: int) -> float:
    """Return the mean error of the true shares of zeros against shares in some cells: binomial, by simulation."""
    truth = (x == 0).double().mean(0).numpy()
    drawn = np.random.default_rng(0).binomial(cells, truth, (2000, len(truth))) / cells
    return float(np.abs(drawn - truth).mean())


def false_calls(fitted: FittedVAE, cells: Cells, rows: Tensor, splits: int = 5) -> float:
    """Return the share of genes that are called between random halves of cells."""
    called = []
    for seed in range(splits):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        halves = (cells.part(rows[half.sort().values]) for half in order.chunk(2))
        called.append((fitted.differential_expression(*halves, draws=100).expected_fdr <= 0.05).float().mean())
    return float(torch.stack(called).mean())


def report(cells: Cells, folds: int) -> None:
    parts, genes = splits(len(cells.x), folds), cells.x.shape[1]
    judged = [cells.part(test) for _, _, test in parts]
    number, (train, stop_by, test) = sum(len(part[0]) for part in judged), map(len, parts[0])
    print(f"\n## {cells.name}: {len(cells.x)} cells x {genes} genes\n")
    print(f"{folds} of 5 folds, each of {train} cells to train on, {stop_by} to stop by and {test} judged. True shares")
    print(
        f"of zeros would differ from those of {number} cells by {noise_of_shares(cells.x, number):.4f} in the mean.\n"
    )
    print("| likelihood | log likelihood a value | of positive values | error of zero shares | s | steps |")
    print("| --- | --- | --- | --- | --- | --- |")
    names = {ZILNVAE: "ZILN (ours)", FeatureGate: "zero part by gene, at least 1/2", LogNormalised: "Normal of log1p"}
    for kind, name in names.items():
        start = time.process_time()
        fits = [fit(kind, cells, train, stop_by) for train, stop_by, _ in parts]
        seconds, steps = (time.process_time() - start) / folds, np.mean([f.result.steps for f in fits])
        pairs = list(zip(fits, judged, strict=True))
        cell = ["no mass at 0", f"{np.mean([of_positive_values(*pair) for pair in pairs]):.3f}", "-"]
        if kind is not LogNormalised:
            likelihood = torch.cat([f.log_likelihood(*part, particles=PARTICLES) for f, part in pairs]).mean() / genes
            cell = [f"{likelihood:.4f}", cell[1], f"{zero_share(fits, judged):.4f}"]
        print(f"| {name} | {' | '.join(cell)} | {seconds:.0f} | {steps:.0f} |", flush=True)
        if kind is ZILNVAE:
            ours = fits[0]
    common = max(set(cells.label), key=list(cells.label).count)
    rows = torch.from_numpy(np.flatnonzero(cells.label == common))[:MOST_HALVED]
    print(f"\nGenes called between random halves of {len(rows)} {common} cells: {false_calls(ours, cells, rows):.2%}.")


def memory(folder: str) -> None:
    """Embed a million cells from disk in a process of its own, and print its time and peak memory."""
    path = os.path.join(folder, "million.h5ad")
    rng, values = np.random.default_rng(0), MILLION * POSITIVE
    anndata.AnnData(shape=(MILLION, GENES)).write_h5ad(path)
    with h5py.File(path, "a") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (MILLION, GENES)})
        group["indptr"] = np.arange(MILLION + 1) * POSITIVE
        indices = group.create_dataset("indices", values, np.int32)
        data = group.create_dataset("data", values, np.float32)
        for start in range(0, values, values // 100):
            part = slice(start, start + values // 100)
            rows = values // 100 // POSITIVE
            indices[part] = (rng.random((rows, GENES)).argpartition(POSITIVE)[:, :POSITIVE]).astype(np.int32).ravel()
            data[part] = rng.lognormal(1.0, 0.5, values // 100)
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak, steps = pool.apply(_embed, (path,))
    seconds = time.perf_counter() - start
    size = os.path.getsize(path) / 1e9
    os.remove(path)
    print(f"\n## {MILLION:,} cells x {GENES} genes on disk\n")
    print(
        f"{size:.2f} GB of CSR in an h5ad file, {steps} steps and the embedding of all cells: {seconds:.0f} s, ", end=""
    )
    print(f"peak memory {peak:.2f} GB.")


def _embed(path: str) -> tuple[float, int]:
    with open_cells(path) as adata:
        found = embed(adata, steps=1000)
        assert np.isfinite(adata.obsm["X_ziln"]).all()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, found.fitted.result.steps


def main() -> None:
    print("# The autoencoder beside other likelihoods\n")
    print(
        "Printed by `python benchmarks/vae.py`; what it compares is said there. Importance-weighted log likelihood of"
    )
    print(
        f"{PARTICLES} particles, in nats, of cells that neither trained the fit nor stopped it; a higher one is better."
    )
    print(f"Versions: ours {__version__}, torch {torch.__version__}; Python {platform.python_version()}; ", end="")
    print(f"{torch.get_num_threads()} thread. Seconds are those of the processor, as others share the machine.")
    report(pbmc(), folds=5)
    if len(sys.argv) > 3:
        report(counts(*sys.argv[1:3]), folds=1)
        memory(sys.argv[3])


if __name__ == "__main__":
    main()
