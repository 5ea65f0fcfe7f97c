"""Two processes of Lightning's DDP compute what one does."""

import subprocess
import sys

import lightning_ddp_script as script
import pytest
import torch


@pytest.mark.filterwarnings("ignore")  # of Lightning's own: few workers, deprecated parts of torch
def test_two_processes_have_the_elbo_and_gradients_of_one(tmp_path):
    script.main(tmp_path, 1)
    command = [sys.executable, script.__file__, str(tmp_path), "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    one, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    assert (one["world_size"], first["world_size"], second["world_size"]) == (1, 2, 2)
    assert len(one["gradients"]) == len(first["gradients"]) == 3
    assert one["losses"] == pytest.approx(first["losses"], rel=1e-6)
    states = ([*saved["gradients"], saved["parameters"]] for saved in (one, first))
    for mine, theirs in zip(*states, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert value.abs().max() > 0, name
            torch.testing.assert_close(theirs[name], value, rtol=1e-6, atol=1e-6 * float(value.abs().max()))
    for name, value in first["parameters"].items():
        assert torch.equal(value, second["parameters"][name]), name
    assert not torch.equal(first["noise"], second["noise"])  # of what is drawn, each process has its own
