"""An embedding of the cells of an AnnData by the autoencoder, with cells read from memory or disk a block at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_zilognormal.models import ZILNVAE, FittedVAE, ZILNVAEGuide, fit_vae
from pyro_zilognormal.singlecell import arguments
from pyro_zilognormal.singlecell.arguments import flag, items, text_or_none, whole
from pyro_zilognormal.singlecell.cube.cube import Cube, is_cube
from pyro_zilognormal.singlecell.design.depth import Depth
from pyro_zilognormal.singlecell.design.formula import grouping
from pyro_zilognormal.singlecell.errors import SingleCellError, require
from pyro_zilognormal.singlecell.files.io import find_values
from pyro_zilognormal.singlecell.files.reading import read_statistics
from pyro_zilognormal.singlecell.files.scale import Cleaner
from pyro_zilognormal.singlecell.results import check_key
from pyro_zilognormal.sufficient import SufficientStatistics
from pyro_zilognormal.sufficient.dask import is_dask
from pyro_zilognormal.svi import Batch, Callback, Checkpoint, Minibatches, Run
from pyro_zilognormal.svi.data import digest
from pyro_zilognormal.svi.elbo import isolated

DENOISED = "ziln_denoised"
_BATCHES: dict[str, Any] = {"batch_size": 128, "plate": "cells", "dtype": torch.float32}
# Neighbouring cells that are read at once, and minibatches whose cells are mixed: files sort cells, and reading each
# where it lies would be slow.
_NEIGHBOURS, _MIXED = 32, 16
_HELD_OUT_SHARE, _MOST_HELD_OUT = 0.1, 1000
_FEWEST_CELLS, _WIDEST = 50, 10_000


class CellBatches(Minibatches):
    """Minibatches of an AnnData's cells, of which about two thousand are in memory at a time.

    Args:
        clean: the matrix, in memory or on disk, and how its values are brought to the linear scale.
        rows: which cells, ascending, of shape (cells,).
        conditions: batch, covariates and offset of all cells of the matrix, each an array or None.
        shuffle: whether to shuffle them: blocks of 32 neighbours, and then the cells of 64 blocks.
        device: where to put the minibatches.
    """

    def __init__(
        self, clean: Cleaner, rows: NDArray[np.int64], conditions: Sequence[Any], shuffle: bool, device: str
    ) -> None:
        own = (None if array is None else array[rows] for array in conditions)
        super().__init__(rows, *own, **_BATCHES, shuffle=shuffle, device=device)
        self.clean, self.conditions = clean, conditions

    def epoch(self, number: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the minibatches of epoch ``number``, without the first ``skip``."""
        for start, pool in enumerate(self._order(number, seed).split(_MIXED * self.batch_size)):
            wanted = pool[max(0, skip - start * _MIXED) * self.batch_size :]
            if len(wanted):
                values = self.values(wanted)
                for place in torch.arange(len(wanted)).split(self.batch_size):
                    yield self._with_values(wanted[place], values, place)

    def batch(self, indices: torch.Tensor) -> Batch:
        """Return the minibatch of some cells, counted among those of this object."""
        return self._with_values(indices, self.values(indices), torch.arange(len(indices)))

    def _with_values(self, indices: torch.Tensor, values: Any, place: torch.Tensor) -> Batch:
        batch = super().batch(indices)
        return replace(batch, args=(self._read(values, place), *batch.args[1:]))

    def values(self, indices: torch.Tensor) -> Any:
        """Return the linear values of some cells, counted among those of this object: an array or a CSR matrix."""
        rows = self.arrays[0][indices.numpy()]
        ascending = np.sort(rows)
        near = np.split(ascending, np.flatnonzero(np.diff(ascending) > _NEIGHBOURS) + 1)
        matrix = self.clean.expression.matrix
        blocks = [self.clean(matrix[r[0] : r[-1] + 1], int(r[0]))[r - r[0]] for r in near]
        sparse = hasattr(blocks[0], "tocsr")
        joined = require("scipy.sparse").vstack(blocks, "csr") if sparse else np.concatenate(blocks)
        return joined[np.searchsorted(ascending, rows)]

    def subset(self, chosen: Any) -> CellBatches:
        """Return those cells for which ``chosen``, of shape (cells,), is True, in order."""
        if np.shape(chosen) != (self.rows,) or not np.any(chosen):
            raise SingleCellError(f"chosen has shape {np.shape(chosen)}; needed ({self.rows},), and some cell chosen")
        rows = self.arrays[0][np.asarray(chosen, dtype=bool)]
        return CellBatches(self.clean, rows, self.conditions, False, str(self.device))

    def digest(self, seed: int) -> str:
        """Return a hash of the first minibatch, and of what all cells are conditioned on."""
        return digest([self.arrays, self.clean.expression.shape, next(self.epoch(0, seed)).args])

    def _order(self, number: int, seed: int) -> torch.Tensor:
        order = torch.arange(self.rows)
        if not self.shuffle:
            return order
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        blocks = order.split(_NEIGHBOURS)
        order = torch.cat([blocks[i] for i in torch.randperm(len(blocks), generator=generator)])
        pools = order.split(_MIXED * self.batch_size)
        return torch.cat([pool[torch.randperm(len(pool), generator=generator)] for pool in pools])


@dataclass(eq=False)
class Embedding:
    """What :func:`embed` found.

    Attributes:
        model: the autoencoder.
        guide: its guide.
        fitted: the fitted autoencoder, with its methods.
        cells: all cells, in their order, to give to these methods; ``cells.subset(mask)`` are some of them.
        held_out: which cells were held out, of shape (cells,).
        genes: names of the genes.
        batches: names of the batches; one name, "", if there are none.
        settings: how they were read and fitted, as plain values.
    """

    model: ZILNVAE
    guide: ZILNVAEGuide
    cells: CellBatches
    held_out: NDArray[np.bool_]
    genes: list[str]
    batches: list[str]
    settings: dict[str, Any]
    fitted: FittedVAE = field(init=False)

    def fit(self, steps: int, callbacks: Sequence[Callback | Callable[[Run], Any]] = ()) -> Embedding:
        """Fit the autoencoder to the cells that are not held out."""
        every, device = self.cells, str(self.cells.device)
        train, test = (np.flatnonzero(chosen) for chosen in (~self.held_out, self.held_out))
        # Held-out cells are evaluated again and again, so that they are read once.
        values = every.values(torch.from_numpy(test)).astype(np.float32)
        conditions = (None if array is None else array[test] for array in every.conditions)
        self.fitted = fit_vae(
            self.model,
            self.guide,
            CellBatches(every.clean, train, every.conditions, True, device),
            held_out=Minibatches(values, *conditions, **_BATCHES, device=device),
            steps=steps,
            seed=self.settings["seed"],
            callbacks=callbacks,
        )
        self.settings |= {"steps": self.fitted.result.steps, "stop_reason": self.fitted.result.stop_reason}
        return self

    def write(self, adata: Any, key_added: str = "X_ziln") -> None:
        """Write the latent values to ``obsm[key_added]`` and the settings to ``uns[key_added]``."""
        adata.obsm[key_added] = self.fitted.latent(self.cells).mean.numpy(force=True)
        known = {name: value for name, value in self.settings.items() if value is not None}
        adata.uns[key_added] = {"params": known}


def prepare(
    adata: Any,
    *,
    batch: str | None = None,
    layer: str | None = None,
    use_raw: bool = False,
    scale: str | None = None,
    depth: str | None = "auto",
    detection_threshold: float = 0.0,
    latent: int = 10,
    hidden: Sequence[int] = (128,),
    linear: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> Embedding:
    """Read and check the cells, and make the autoencoder that is to be fitted, with the arguments of :func:`embed`."""
    if isinstance(adata, Cube) or is_cube(adata):
        raise SingleCellError("adata is a cube, which has no single cells; needed an AnnData of them")
    seed, device, linear = whole("seed", seed, 0, 2**32 - 1), arguments.check_device(device), flag("linear", linear)
    latent, hidden = whole("latent", latent, 1, _WIDEST), items("hidden", hidden, "sizes of layers")
    hidden = [whole("hidden", size, 1, _WIDEST) for size in hidden]
    depth = text_or_none("depth", depth, "'auto' or the name of a column of obs")
    settings = arguments.matrix_arguments(layer, use_raw, scale, None, detection_threshold)
    clean = _by_rows(find_values(adata, settings))
    number = clean.expression.shape[0]
    names, *conditions, known = _conditions(adata.obs, batch, depth, clean)
    held_out = np.zeros(number, dtype=bool)
    size = min(int(_HELD_OUT_SHARE * number), _MOST_HELD_OUT)
    held_out[np.random.default_rng(seed).choice(number, size, replace=False)] = True
    statistics = read_statistics(clean, held_out.astype(np.int64), 2, conditions[-1])
    train = SufficientStatistics(*torch.from_numpy(statistics[:5, :1]))
    sizes = {"latent": latent, "batches": len(names), "covariates": 0 if conditions[1] is None else 1}
    with isolated(seed), arguments.refusing():
        model = ZILNVAE(train, hidden=hidden, linear=linear, **sizes).to(device)
        guide = ZILNVAEGuide(model).to(device)
    del settings["offset"]
    settings |= {"batch": batch, "scale": clean.scale, "depth": known, "linear": linear, "hidden": hidden, "seed": seed}
    cells = CellBatches(clean, np.arange(number), conditions, False, device)
    return Embedding(model, guide, cells, held_out, clean.expression.genes, names, settings)


def embed(
    adata: Any,
    *,
    batch: str | None = None,
    layer: str | None = None,
    use_raw: bool = False,
    scale: str | None = None,
    depth: str | None = "auto",
    detection_threshold: float = 0.0,
    latent: int = 10,
    hidden: Sequence[int] = (128,),
    linear: bool = False,
    denoise: bool = False,
    steps: int = 20_000,
    seed: int = 0,
    device: str = "cpu",
    callbacks: Sequence[Callback | Callable[[Run], Any]] = (),
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    key_added: str = "X_ziln",
) -> Embedding:
    """Embed cells by a variational autoencoder on the zero-inflated log-normal, and correct for batches.

    ``obsm[key_added]`` gets the posterior means of the latent values, of shape (cells, latent), which
    ``scanpy.pp.neighbors(adata, use_rep="X_ziln")`` reads, and ``uns[key_added]`` the settings. A tenth of the cells,
    at most 1,000, are held out to stop the fit by. The matrix is read from where it is, about two thousand cells at a
    time: with :func:`open_cells`, only names, obs and results of all cells are in memory.

    Args:
        adata: an AnnData, in memory, backed, or from :func:`open_cells`.
        batch: the column of obs that names the batches, such as samples; None for no correction.
        layer: the layer to use; None for X.
        use_raw: whether to use ``adata.raw``.
        scale: the stored scale, as for :class:`HurdleDE`: what the AnnData declares or its values show if None; the
            size factor of "counts" is an offset.
        depth: column of obs with the total counts or the detection rate of cells, whose logarithm is a covariate, so
            that z need not hold it; "auto" for totals of counts, or a column ``total_counts``, ``n_counts`` or
            ``nCount_RNA`` if there is one; None for none.
        detection_threshold: linear values of at most this are taken as zeros.
        latent: number of latent dimensions.
        hidden: sizes of the hidden layers of the encoder, and in reverse of the decoder.
        linear: whether the decoder is linear.
        denoise: whether to write denoised expression, linear and the mean over batches, to ``layers["ziln_denoised"]``,
            a dense matrix.
        steps: number of steps at most, of 128 cells each.
        seed: of the held-out cells, the fit and the draws.
        device: the torch device.
        callbacks: callbacks of ``svi.fit``.
        checkpoint: a file to save the fit to and to resume from, or a ``svi.Checkpoint``.
        key_added: where the embedding goes.

    Returns:
        The fit, and the cells to call its methods with.

    Raises:
        SingleCellError: data or arguments that cannot be used; the message says why and how to fix it.

    Example:
        >>> import anndata
        >>> from pyro_zilognormal.datasets import pbmc68k_reduced
        >>> adata = anndata.AnnData(pbmc68k_reduced().values.numpy()[:200, :30])
        >>> found = embed(adata, latent=2, steps=20)
        >>> adata.obsm["X_ziln"].shape
        (200, 2)
        >>> found.fitted.normalized_expression(found.cells).shape
        torch.Size([200, 30])
    """
    check_key(key_added)
    steps, denoise = whole("steps", steps, 1), flag("denoise", denoise)
    callbacks = arguments.callbacks_of(callbacks, checkpoint)
    given: dict[str, Any] = {"batch": batch, "layer": layer, "use_raw": use_raw, "scale": scale, "depth": depth}
    given |= {"detection_threshold": detection_threshold, "latent": latent, "hidden": hidden, "linear": linear}
    found = prepare(adata, **given, seed=seed, device=device).fit(steps, callbacks)
    found.write(adata, key_added)
    if denoise:
        adata.layers[DENOISED] = found.fitted.normalized_expression(found.cells, seed=seed).numpy(force=True)
    return found


def _by_rows(clean: Cleaner) -> Cleaner:
    """Return the same for minibatches, whose rows can be sliced; a matrix in memory by column is turned."""
    expression, matrix = clean.expression, clean.expression.matrix
    if expression.shape[0] < _FEWEST_CELLS:
        raise SingleCellError(f"adata has {expression.shape[0]} cells; needed at least {_FEWEST_CELLS} to learn from")
    if is_dask(matrix):
        raise SingleCellError(
            f"{expression.where} is a dask array, of which minibatches of cells would compute whole chunks again and "
            "again; needed a matrix in memory or on disk: open_cells(path) reads an h5ad or zarr file by rows"
        )
    if expression.by_column:
        if not hasattr(matrix, "tocsr"):
            raise SingleCellError(
                f"{expression.where} is stored on disk by gene (CSC), so that minibatches of cells would read all of "
                "it; needed CSR or dense: write it anew with adata.X = adata.X.to_memory().tocsr(), or read it first"
            )
        expression = replace(expression, matrix=matrix.tocsr())
    return Cleaner(expression, clean.scale, clean.threshold, dtype=torch.float32)


def _conditions(obs: Any, batch: str | None, depth: str | None, clean: Cleaner) -> tuple[Any, ...]:
    """Return names of the batches; batch, covariates and offset of the cells, None for none; and the depth's name."""
    names, code = [""], None
    if batch is not None:
        code, levels = require("pandas").factorize(grouping(obs, batch, "batch"), sort=True)
        names, code = [str(level) for level in levels], code.astype(np.int64) if len(levels) > 1 else None
    known = Depth.find(obs, depth, clean)
    if known is None:
        return names, code, None, None, None
    log = np.log(known.value)
    covariates = (log - log.mean())[:, None] if depth is not None and known.bin.any() else None
    return names, code, covariates, np.log(known.size_factor) if clean.scale == "counts" else None, known.name
