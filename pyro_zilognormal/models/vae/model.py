"""The autoencoder as a Pyro pair: a cell's latent value and its genes given it, and the guide of the latent value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from pyro_zilognormal.distribution import ZeroInflatedLogNormal
from pyro_zilognormal.models.vae.networks import Conditions, Decoder, Encoder, GeneStatistics
from pyro_zilognormal.sufficient import SufficientStatistics
from pyro_zilognormal.svi.data import whole

Given: TypeAlias = Tensor | None


class ZILNVAE(PyroModule):
    r"""Cells with a latent value each, whose genes are zero-inflated log-normal given it.

    For cell n with batch and covariates :math:`c_n` and gene g,

    .. math::
        z_n &\sim \sum_k w_k \, \mathrm{Normal}(m_k, I), \quad m_1 = 0 \\
        (\mu_{n}, \ell_{n}) &= \mathrm{decoder}(z_n, c_n) \\
        x_{ng} &\sim \mathrm{ZILN}(\mu_{ng},\; \sigma_g,\; \ell_{ng})

    The prior of z is a mixture with learnt weights and means: one Normal would squeeze kinds of cells together until
    they lie no further apart than their states. The log odds of a zero, :math:`\ell`, are of each cell and gene, of any
    sign. The decoder is a perceptron, or linear in z; batch and covariates enter every layer. A log size factor
    :math:`o_n` multiplies E[X] by :math:`e^{o_n}` and takes P(X = 0) to the power :math:`e^{o_n}`, as in Poisson counts
    (the complementary log-log link): a gene of few counts is detected more often in deep cells, one of many is higher.
    Sites are ``z``, of shape (cells, latent), and ``x``, of shape (cells, genes), in the plate ``cells``, where a
    minibatch of b cells is scaled by N / b.

    Args:
        statistics: of the training cells, one or more groups of them: they give N, the number of genes, the units in
            which the networks work and where they start, so that the unit of x does not matter.
        latent: number of latent dimensions.
        components: number of Normals in the prior of z; 1 for a standard Normal.
        batches: number of batches; 1 for none.
        covariates: number of covariates, such as the log depth, which explains zeros; centre them.
        hidden: sizes of the encoder's hidden layers, and in reverse those of the decoder's.
        linear: whether the decoder is linear, so that :attr:`loadings` can be interpreted.

    Raises:
        ValueError: a size below 1, no hidden layer, or statistics without cells.

    References:
        R. Lopez et al., Deep generative modeling for single-cell transcriptomics, Nature Methods 15 (2018).
        J. Tomczak and M. Welling, VAE with a VampPrior, AISTATS (2018), for mixtures as priors.

    Example:
        >>> import torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_zilognormal.datasets import pbmc68k_reduced
        >>> from pyro_zilognormal.models import ZILNVAEGuide
        >>> pyro.clear_param_store()
        >>> x = pbmc68k_reduced().values
        >>> model = ZILNVAE(SufficientStatistics.from_cells(x), latent=5, hidden=[32])
        >>> svi = SVI(model, ZILNVAEGuide(model), pyro.optim.Adam({"lr": 0.003}), Trace_ELBO())
        >>> losses = [svi.step(x[:100]) for _ in range(30)]
        >>> losses[-1] < losses[0]
        True
    """

    def __init__(
        self,
        statistics: SufficientStatistics,
        *,
        latent: int = 10,
        components: int = 20,
        batches: int = 1,
        covariates: int = 0,
        hidden: Sequence[int] = (128,),
        linear: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"latent": latent, "components": components, "batches": batches}
        for name, size in (sizes | {f"hidden[{i}]": size for i, size in enumerate(hidden)}).items():
            whole(name, size, 1)
        whole("covariates", covariates, 0)
        if not hidden:
            raise ValueError("hidden is empty; needed the size of a layer; linear=True makes z enter linearly")
        self.cells = int((statistics.n_zero + statistics.n_pos)[:, 0].sum())
        if self.cells < 1:
            raise ValueError("statistics hold no cell; needed those of the training cells")
        self.latent, self.hidden = latent, tuple(hidden)
        self.genes, self.conditions = GeneStatistics(statistics), Conditions(batches, covariates)
        self.means = nn.Parameter(torch.randn(components - 1, latent))
        self.weight_logits = nn.Parameter(torch.zeros(components))
        self.decoder = Decoder(self.genes, latent, self.conditions.width, () if linear else self.hidden[::-1])
        to_pyro_module_(self)

    def forward(self, x: Tensor, batch: Given = None, covariates: Given = None, offset: Given = None) -> None:
        """Draw the latent values of cells, and observe their genes.

        Args:
            x: values, linear, of shape (cells, genes).
            batch: the batch of each cell, from 0, of shape (cells,); None where the model has one batch.
            covariates: of shape (cells, covariates); None where the model has none.
            offset: log size factor of each cell, of shape (cells,), for counts; None for normalised values.
        """
        x = self.genes.values(x)
        with pyro.plate("cells", max(self.cells, len(x)), subsample_size=len(x)):
            z = pyro.sample("z", self.prior.expand([len(x)]))
            pyro.sample("x", self.likelihood(z, batch, covariates, offset).to_event(1), obs=x)

    @property
    def prior(self) -> dist.MixtureSameFamily:
        """The distribution of a cell's latent value."""
        means = torch.cat([self.means.new_zeros(1, self.latent), self.means])  # the first one fixes the origin
        components = dist.Normal(means, 1.0).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.weight_logits), components)

    def likelihood(
        self, z: Tensor, batch: Given = None, covariates: Given = None, offset: Given = None
    ) -> ZeroInflatedLogNormal:
        """Return the distribution of all genes given latent values of shape (..., cells, latent)."""
        conditions = self.conditions(z.shape[-2], batch, covariates, offset, z)
        return ZeroInflatedLogNormal(*self.decoder(z, conditions, offset))

    @property
    def loadings(self) -> tuple[Tensor, Tensor]:
        """Change of mu and of the zero part's logits for a unit of z, each of shape (latent, genes).

        Raises:
            ValueError: the decoder is not linear.
        """
        if self.decoder.body is not None:
            raise ValueError("the decoder has hidden layers, and no loadings; make the model with linear=True")
        mu, zero = self.decoder.heads.weight.detach().T.chunk(2, -1)
        return mu * self.genes.spread, zero


class ZILNVAEGuide(PyroModule):
    """The amortised posterior of a :class:`ZILNVAE`: Normal, with mean and sd from an encoder of the cell.

    The encoder reads a cell's sufficient statistics, the pattern of its zeros and log x where x > 0, less what the
    model expects by the cell's batch, covariates and offset. There is no parameter of a cell, so memory does not grow
    with the cells, and new cells need no training.

    Args:
        model: the model, whose sizes and units it takes.
        dropout: share of hidden units that are left out at random in training.

    Raises:
        TypeError: a model that is not a :class:`ZILNVAE`.

    Example:
        >>> x = torch.rand(20, 4)
        >>> model = ZILNVAE(SufficientStatistics.from_cells(x), latent=2)
        >>> ZILNVAEGuide(model).posterior(x).mean.shape
        torch.Size([20, 2])
    """

    def __init__(self, model: ZILNVAE, dropout: float = 0.2) -> None:
        super().__init__()
        if not isinstance(model, ZILNVAE):
            raise TypeError(f"model is a {type(model).__name__}; needed ZILNVAE(statistics)")
        self.cells = model.cells
        self._model = (model,)  # not a module of the guide: its parameters are the model's
        self.encoder = Encoder(model.genes, model.latent, model.hidden, dropout)
        to_pyro_module_(self)

    def forward(self, x: Tensor, batch: Given = None, covariates: Given = None, offset: Given = None) -> None:
        """Draw the latent values of cells; the arguments are those of the model."""
        with pyro.plate("cells", max(self.cells, len(x)), subsample_size=len(x)):
            pyro.sample("z", self.posterior(x, batch, covariates, offset).to_event(1))

    def posterior(self, x: Tensor, batch: Given = None, covariates: Given = None, offset: Given = None) -> dist.Normal:
        """Return the distribution of the latent values of cells, of shape (cells, latent)."""
        (model,), x = self._model, self.encoder.genes.values(x)
        conditions = model.conditions(len(x), batch, covariates, offset, x)
        return dist.Normal(*self.encoder(x, *model.decoder.typical(conditions, offset)))
