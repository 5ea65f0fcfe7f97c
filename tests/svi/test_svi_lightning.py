"""Lightning trains any model and guide as a plain loop does; its validation, checkpoints and precision work."""

import lightning
import pyro
import pytest
import torch
from svi_cases import adam, auto, data, delta_guide, normal_model
from torch.utils.data import DataLoader

from pyro_zilognormal import SufficientStatistics
from pyro_zilognormal.models import ZILNVAE, ZILNVAEGuide
from pyro_zilognormal.svi import Batch, SVIModule
from pyro_zilognormal.svi.lightning import LightningSVI

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning's own: few workers, deprecated parts of torch


def trainer(epochs, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, **quiet, **{"enable_checkpointing": False, **options}
    )


def module(guide=delta_guide):
    return LightningSVI(normal_model, guide, data()[:5], optimizer=adam, plate="rows", rows=20)


def test_a_run_resumed_from_lightnings_checkpoint_is_the_uninterrupted_one(tmp_path):
    loader = DataLoader(data(), batch_size=5)
    whole, half, resumed = module(), module(), module()
    trainer(4).fit(whole, loader)
    first = trainer(2, enable_checkpointing=True, default_root_dir=tmp_path)
    first.fit(half, loader)
    first.save_checkpoint(tmp_path / "half.ckpt")
    trainer(4).fit(resumed, loader, ckpt_path=tmp_path / "half.ckpt")
    assert whole.svi.constrained().keys() == {"q_loc"}
    assert torch.equal(resumed.svi.constrained()["q_loc"], whole.svi.constrained()["q_loc"])
    assert not torch.equal(half.svi.constrained()["q_loc"], whole.svi.constrained()["q_loc"])


def test_held_out_rows_are_evaluated_at_a_kl_weight_of_one():
    class Anneal(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            module.svi.kl_weight = 0.25

    annealed, held_out = module(auto()), data(8, seed=1)
    run = trainer(1, callbacks=[Anneal()])
    pyro.set_rng_seed(0)
    run.fit(annealed, DataLoader(data(), batch_size=20), DataLoader(held_out, batch_size=8))
    assert annealed.svi.kl_weight == 0.25
    losses = run.callback_metrics
    assert losses["train_loss"].isfinite()
    # The mean of 20 rows' loss, estimated from 8: about that of a Normal at the start of the guide.
    expected = torch.stack([torch.tensor(annealed.svi.evaluate(Batch((held_out,), rows=8))) for _ in range(200)])
    assert abs(losses["val_loss"] - expected.mean()) < 5 * expected.std()


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_the_autoencoder_trains_in_other_precisions(precision):
    torch.manual_seed(0)
    x = torch.rand(60, 8).mul(3).floor()
    model = ZILNVAE(SufficientStatistics.from_cells(x), latent=2, hidden=(8,))
    fitted = LightningSVI(model, ZILNVAEGuide(model), x[:4], optimizer=adam)
    before = fitted.svi.evaluate(Batch((x,), rows=60))
    trainer(30, precision=precision).fit(fitted, DataLoader(x, batch_size=20, shuffle=True))
    after = fitted.svi.evaluate(Batch((x.to(fitted.dtype),), rows=60))
    assert after < before - 20
    assert {p.dtype for p in model.parameters()} == {torch.float64 if precision == "64-true" else torch.float32}


def test_lightning_gets_the_losses_of_a_plain_loop():
    x, losses, expected = data(20), [], []
    loader = DataLoader(x, batch_size=6)

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(outputs["loss"].item())

    fitted = LightningSVI(normal_model, auto(), x[:6], optimizer=adam, plate="rows", rows=20)
    pyro.set_rng_seed(0)
    trainer(3, callbacks=[Watch()]).fit(fitted, loader)

    svi = SVIModule(normal_model, auto(), plate="rows", rows=20)
    svi.setup(Batch((x[:6],), rows=6))
    optimizer = adam(svi.trainable().values())
    pyro.set_rng_seed(0)
    for _ in range(3):
        for batch in loader:
            optimizer.zero_grad()
            loss = svi(Batch((batch,), rows=len(batch)))
            loss.backward()
            optimizer.step()
            expected.append(loss.item())
    assert len(losses) == 12
    assert losses == pytest.approx(expected, rel=1e-6)
    assert len(fitted.state_dict()) == 2
    assert not pyro.get_param_store()


def test_the_parameters_move_with_the_module():
    module = SVIModule(normal_model, auto())
    module.setup(Batch((data(),)))
    assert {p.dtype for p in module.double().trainable().values()} == {torch.float64}
