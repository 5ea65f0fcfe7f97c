"""The layer starts at the maximum likelihood estimates of the data, and gives distributions."""

import copy
import pickle

import numpy as np
import pytest
import torch

from pyro_zilognormal import ZeroInflatedLogNormal
from pyro_zilognormal.nn import ZILNHead, ziln_loss

Y = torch.tensor([0.0, 0.0, 0.0, 1.0, 4.0, 30.0, 2.0])


def constant(head: ZILNHead) -> ZeroInflatedLogNormal:
    return head(torch.randn(1, head.in_features, dtype=head.weight.dtype))


def test_starts_at_the_moments() -> None:
    d, log_y = constant(ZILNHead(2, dtype=torch.float64).start_at(Y)), np.log(Y[3:].double().numpy())
    assert d.loc.item() == pytest.approx(log_y.mean(), rel=1e-12)
    assert d.scale.item() == pytest.approx(log_y.std(), rel=1e-12)
    assert d.zi_logits.item() == pytest.approx(np.log(3.5 / 4.5), rel=1e-12)


def test_a_weight_counts_rows() -> None:
    weight = torch.tensor([1.0, 0, 0, 2, 1, 3, 0])
    weighted = ZILNHead(2).start_at(torch.where(weight > 0, Y, torch.nan), weight)
    repeated = ZILNHead(2).start_at(Y.repeat_interleave(weight.long()))
    torch.testing.assert_close(weighted.bias, repeated.bias)


# Outcomes, and the mu, scale and zi_logits to start at.
DEGENERATE = {
    "no zeros": ([1.0, np.exp(2.0)], (1.0, 1.0, np.log(0.5 / 2.5))),
    "all zeros": ([0.0, 0.0, 0.0], (0.0, 1.0, np.log(3.5 / 0.5))),
    "one positive": ([0.0, 5.0], (np.log(5.0), 1.0, 0.0)),
    "one price": ([0.0, 5.0, 5.0, 5.0], (np.log(5.0), 1.0, np.log(1.5 / 3.5))),
    "nothing": ([], (0.0, 1.0, 0.0)),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_starts_somewhere_finite(case: str) -> None:
    y, expected = DEGENERATE[case]
    d = constant(ZILNHead(3, dtype=torch.float64).start_at(torch.tensor(y)))
    found = [d.loc.item(), d.scale.item(), d.zi_logits.item()]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_starts_at_zero_one_zero_without_data() -> None:
    d = constant(ZILNHead(2))
    assert (d.loc.item(), d.scale.item(), d.zi_logits.item()) == (0, pytest.approx(1, rel=1e-6), 0)


BAD = {
    "negative": ((torch.tensor([1.0, -2.0]),), r"not negative, got values from -2.0 to 1.0"),
    "NaN": ((torch.tensor([1.0, torch.nan]),), r"target must be finite"),
    "infinite": ((torch.tensor([1.0, torch.inf]),), r"to inf"),
    "weight": ((Y, torch.ones(1)), r"weight must have the shape of target, \(7,\), got \(1,\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ZILNHead(1).start_at(*arguments)


def test_takes_no_random_numbers() -> None:
    before = torch.random.get_rng_state()
    ZILNHead(5).start_at(Y)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_shapes(shape: tuple[int, ...]) -> None:
    head = ZILNHead(4)
    assert head(torch.randn(*shape, 4)).batch_shape == shape
    assert head.params(torch.randn(*shape, 4)).shape == (*shape, 3)


def test_learns_and_is_copied() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=generator)
    y = (x[:, 0] + 0.1 * torch.randn(300, generator=generator)).exp()
    head = ZILNHead(2).start_at(y)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    losses = []
    for _ in range(200):
        loss = ziln_loss(head.params(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1  # the scale falls from 1 to 0.1, which is worth log 10 nats
    torch.testing.assert_close(head.weight[0].detach(), torch.tensor([1.0, 0.0]), rtol=0, atol=0.05)
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        torch.testing.assert_close(other(x).mean, head(x).mean, rtol=0, atol=0)
