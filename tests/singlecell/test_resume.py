"""A fit that was killed and goes on gives the same table to the last bit."""

from __future__ import annotations

import pathlib
from typing import Any

import pandas as pd
import pytest

from pyro_zilognormal.singlecell import HurdleDE, differential_expression
from pyro_zilognormal.svi import Checkpoint, CheckpointError, Run
from tests.singlecell.cell_cases import STIM, experiment


class Killed:
    """Ctrl-C after so many steps."""

    def __init__(self, step: int) -> None:
        self.step, self.seen = step, 0

    def __call__(self, run: Run) -> None:
        self.seen += 1
        if run.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("formula", ["~ condition", "~ condition + age"])
def test_killed_and_gone_on_with(formula: str, tmp_path: pathlib.Path) -> None:
    def table(**options: Any) -> pd.DataFrame:
        de = HurdleDE(experiment(), formula, donor="donor").fit(steps=10, **options)
        return pd.concat([de.test(STIM), de.predict(de.cond()), de.predictive_check()], axis=1)

    whole = table()
    path = tmp_path / "fit.ckpt"
    killed = Killed(7)
    with pytest.raises(KeyboardInterrupt):
        table(callbacks=[killed], checkpoint=Checkpoint(path, steps=4))
    again = Killed(99)
    pd.testing.assert_frame_equal(table(callbacks=[again], checkpoint=path), whole, check_exact=True)
    assert again.seen == 6  # it went on from step 4


def test_a_checkpoint_is_of_its_own_fit(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "fit.ckpt"
    first = HurdleDE(experiment(), "~ condition").fit(steps=10, checkpoint=path).test(STIM)
    last = Killed(99)
    again = HurdleDE(experiment(), "~ condition").fit(steps=10, checkpoint=path, callbacks=[last])
    pd.testing.assert_frame_equal(again.test(STIM), first, check_exact=True)
    assert last.seen == 0  # it was done
    with pytest.raises(CheckpointError, match="is the checkpoint of another fit"):
        HurdleDE(experiment(), "~ sex").fit(steps=10, checkpoint=path)


def test_each_fit_has_its_checkpoint(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "fit.ckpt"
    differential_expression(experiment(), groupby="condition", steps=10, checkpoint=path)
    names = {p.name for p in tmp_path.iterdir()}
    assert {"fit.ckpt", "fit.ckpt.2"} <= names
    assert not any(name.startswith("fit.ckpt.3") for name in names)
