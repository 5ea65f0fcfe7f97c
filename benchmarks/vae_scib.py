"""The embedding beside PCA, Harmony and scVI by the scores of scib-metrics, as a table in markdown.

    pip install -c constraints.txt scib-metrics harmonypy scanpy
    pyro-zilognormal embed FILE.h5ad --batch donor --scale counts --out out
    python benchmarks/vae_scib.py FILE.h5ad out/embedding.h5ad scvi.h5ad

The file holds raw counts, with `donor` and `cell_type` in obs. scib-metrics judges how well batches mix and how well
types of cells keep apart; PCA and Harmony get scanpy's log1p of normalised, scaled counts, 30 components. `scvi.h5ad`
is written by vae_scvi.py.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

import harmonypy
import numpy as np
import scanpy as sc
from scib_metrics.benchmark import Benchmarker

COMPONENTS = 30


def main(path: str, embedded: str, scvi: str) -> None:
    adata = sc.read_h5ad(path)
    adata.obsm["scVI"] = sc.read_h5ad(scvi).obsm["X_scVI"]
    adata.obsm["ZILN VAE"] = sc.read_h5ad(embedded).obsm["X_ziln"]
    log = adata.copy()
    sc.pp.normalize_total(log)
    sc.pp.log1p(log)
    sc.pp.scale(log, max_value=10)
    sc.pp.pca(log, n_comps=COMPONENTS)
    adata.obsm["PCA"] = log.obsm["X_pca"]
    harmony = np.asarray(harmonypy.run_harmony(log.obsm["X_pca"], log.obs[["donor"]], ["donor"]).Z_corr)
    adata.obsm["Harmony"] = harmony.T if len(harmony) == COMPONENTS else harmony  # versions differ
    names = ["PCA", "Harmony", "scVI", "ZILN VAE"]
    benchmark = Benchmarker(adata, "donor", "cell_type", names, pre_integrated_embedding_obsm_key="PCA")
    benchmark.benchmark()
    table = benchmark.get_results(min_max_scale=False).T
    print(f"scib-metrics {version('scib-metrics')}, harmonypy {version('harmonypy')}, scanpy {version('scanpy')}.\n")
    print(f"| score | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}")
    for score, row in table.iterrows():
        print(f"| {score} | {' | '.join(f'{row[name]:.3f}' for name in names)} |")


if __name__ == "__main__":
    main(*sys.argv[1:4])
