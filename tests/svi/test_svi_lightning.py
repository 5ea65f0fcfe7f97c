"""Lightning trains any model and guide as a plain loop does."""

import subprocess
import sys

import pyro
import pytest
import torch
from svi_cases import adam, auto, data, normal_model
from torch.utils.data import DataLoader

from pyro_zilognormal.svi import Batch, SVIModule


@pytest.mark.filterwarnings("ignore")  # of Lightning's own: few workers, deprecated parts of torch
def test_lightning_gets_the_losses_of_a_plain_loop():
    import lightning

    from pyro_zilognormal.svi.lightning import LightningSVI

    x, losses, expected = data(20), [], []
    loader = DataLoader(x, batch_size=6)

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(outputs["loss"].item())

    module = LightningSVI(normal_model, auto(), x[:6], optimizer=adam, plate="rows", rows=20)
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=3,
        callbacks=[Watch()],
    )
    pyro.set_rng_seed(0)
    trainer.fit(module, loader)

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
    assert len(module.state_dict()) == 2
    assert not pyro.get_param_store()


def test_lightning_is_imported_only_when_used_and_asked_for_by_name():
    code = (
        "import sys; import pyro_zilognormal.svi; assert 'lightning' not in sys.modules\n"
        "sys.modules['lightning'] = None\n"
        "import pyro_zilognormal.svi.lightning"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'pyro-zilognormal[lightning]'" in done.stderr


def test_the_parameters_move_with_the_module():
    module = SVIModule(normal_model, auto())
    module.setup(Batch((data(),)))
    assert {p.dtype for p in module.double().trainable().values()} == {torch.float64}
