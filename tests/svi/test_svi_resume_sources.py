"""Item 4: numbers that callbacks change and loaders with generators of their own, killed and gone on with."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from svi_cases import (
    Amortised,
    adam,
    check_resume,
    data,
    normal_guide,
    normal_model,
)
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from pyro_zilognormal.svi import (
    BatchStream,
    Checkpoint,
    fit,
)

STEPS = 40


class Tempered(Amortised):
    """A number, a tensor of one number and a switch that callbacks change, and one that they make."""

    def __init__(self, rows):
        super().__init__(rows)
        self.beta, self.heat, self.on = 0.0, torch.tensor(2.0), False

    def guide(self, x):
        loc, scale = self.net(x[:, None]).unbind(-1)
        warm = self.beta + self.heat + self.on + getattr(self, "late", 0.0)
        with pyro.plate("rows", self.rows, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp() * warm))


def test_numbers_of_a_module_that_a_callback_changes_resume_bit_for_bit(tmp_path):
    def run(callbacks):
        torch.manual_seed(11)
        module = Tempered(20)

        def anneal(run):
            if run.step % 5 == 0:
                module.beta, module.on, module.heat = 1 - 1 / run.step, run.step > 9, module.heat * 0.9
                module.late = run.step / 10

        return fit(module.model, module.guide, data(), steps=STEPS, callbacks=[anneal, *callbacks])

    check_resume(tmp_path / "a.ckpt", run, [13, 28])


LOADERS = {
    "generator": lambda g: DataLoader(data(23), batch_size=5, shuffle=True, generator=g),
    "sampler": lambda g: DataLoader(data(23), batch_size=5, sampler=RandomSampler(range(23), generator=g)),
    "batch sampler": lambda g: DataLoader(
        data(23), batch_sampler=BatchSampler(RandomSampler(range(23), generator=g), 5, drop_last=False)
    ),
}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("kills", [[13, 28], [5, 10, 15]], ids=["within", "at the end of an epoch"])
def test_a_loader_with_a_generator_of_its_own_resumes_bit_for_bit(loader, kills, tmp_path):
    def run(callbacks):
        source = BatchStream(loader(torch.Generator().manual_seed(8)), plate="rows")
        return fit(normal_model, normal_guide, source, steps=STEPS, optimizer=adam, callbacks=callbacks)

    check_resume(tmp_path / "a.ckpt", run, kills, every=1 if kills[0] == 5 else 3)


class OfItsOwn:
    """An order from a generator that nobody else knows."""

    def __init__(self):
        self.draws = np.random.default_rng(0)

    def __iter__(self):
        return iter(data(23)[torch.from_numpy(self.draws.permutation(23))].split(5))


def test_a_stream_whose_order_cannot_be_set_again_is_refused_with_a_checkpoint(tmp_path):
    source = BatchStream(OfItsOwn(), plate="rows")
    assert fit(normal_model, normal_guide, source, steps=3).steps == 3
    with pytest.raises(ValueError, match="so that a fit of it cannot be resumed"):
        fit(normal_model, normal_guide, source, steps=3, callbacks=[Checkpoint(tmp_path / "a.ckpt")])
