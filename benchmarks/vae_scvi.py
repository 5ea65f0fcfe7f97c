"""scVI's embedding of cells with its own settings, to be scored beside ours by vae_scib.py.

    pip install scvi-tools
    OMP_NUM_THREADS=1 python benchmarks/vae_scvi.py FILE.h5ad OUT.h5ad

scvi-tools needs an environment of its own. The file holds raw counts, with `donor` in obs.
"""

from __future__ import annotations

import sys
import time

import anndata
import scvi


def main(path: str, out: str) -> None:
    adata = anndata.read_h5ad(path)
    scvi.settings.seed, start = 0, time.process_time()
    scvi.model.SCVI.setup_anndata(adata, batch_key="donor")
    model = scvi.model.SCVI(adata)
    model.train(accelerator="cpu", enable_progress_bar=False)
    adata.obsm["X_scVI"] = model.get_latent_representation()
    adata.write_h5ad(out)
    print(f"scvi-tools {scvi.__version__}, {time.process_time() - start:.0f} s of the processor")


if __name__ == "__main__":
    main(*sys.argv[1:3])
