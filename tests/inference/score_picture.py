"""Draw how far the gradients of `test_score` are from quadrature, in standard errors.

    python tests/inference/score_picture.py --out docs/score.png

It prints the largest of each layout, as a table in markdown.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest import mock

import matplotlib
import pyro
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from score_cases import z_scores
from test_score import CASES, VECTORIZED, NoScore, estimate, parameters, ziln
from torch import Tensor

LOSSES = (Trace_ELBO, TraceEnum_ELBO)
POWER = ("plate", "probs", "to_event", "subsample, scale", "feeding")
ZERO = slice(4, 6)  # of the six parameters, after two of mu and two of log scale


def with_score(name: str, loss: type) -> Tensor:
    """z of the six parameters, from the seed of the tests."""
    pyro.set_rng_seed(20)
    return z_scores(*estimate(loss, CASES[name], **VECTORIZED)).detach()


def without_score(name: str, loss: type) -> Tensor:
    """The same for a distribution that takes its zero part for reparameterized, as in the test of the tests' power."""
    pyro.set_rng_seed(20)
    with (
        mock.patch.object(ziln, "require_score", lambda draw, zero, count: draw),
        mock.patch.object(NoScore, "expand", lambda self, shape, _=None: NoScore(**parameters(self, shape))),
    ):
        case = CASES[name]
        return z_scores(*estimate(loss, case, guide=case.guide(distribution=NoScore), **VECTORIZED)).detach()


def collect() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """z by layout, of shape (losses, 6), with and without the score."""
    right = {name: torch.stack([with_score(name, loss) for loss in LOSSES]) for name in CASES}
    wrong = {name: torch.stack([without_score(name, loss) for loss in LOSSES]) for name in POWER}
    return right, wrong


def table(right: dict[str, Tensor], wrong: dict[str, Tensor]) -> list[str]:
    lines = [
        "| layout | zero inflation | mu and scale | zero inflation without its score |",
        "| --- | --- | --- | --- |",
    ]
    for name, z in right.items():
        worst = f"{wrong[name][:, ZERO].abs().max():.0f}" if name in wrong else ""
        lines.append(f"| {name} | {z[:, ZERO].abs().max():.1f} | {z[:, :4].abs().max():.1f} | {worst} |")
    return lines


def draw(right: dict[str, Tensor], wrong: dict[str, Tensor], path: Path) -> None:
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, other) = plt.subplots(1, 2, figsize=(10, 5), sharey=True, layout="constrained", width_ratios=[3, 2])
    left.axvspan(-4, 4, color="0.95", label="what the tests allow")
    names = list(right)[::-1]
    for row, name in enumerate(names):
        _scatter(left, right[name][:, :4], row, color="0.6", marker="|", label="mu, scale")
        _scatter(left, right[name][:, ZERO], row, color="tab:red", marker="o", s=18, label="zero inflation")
        if name in wrong:
            _scatter(other, wrong[name][:, ZERO].abs(), row, color="tab:red", marker="o", s=18, label="zero inflation")
    left.axvline(0, color="0.4", linewidth=0.8, zorder=0)
    left.set(
        yticks=range(len(names)),
        yticklabels=names,
        xlim=(-5, 5),
        title="as it is",
        xlabel="standard errors from the exact gradient",
    )
    other.axvline(4, color="0.7", linewidth=0.8)
    other.set(
        xscale="log", xlim=(1, None), title="without the score of the zero inflation", xlabel="the same, absolute"
    )
    handles, labels = left.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    left.legend(unique.values(), unique.keys(), fontsize="small", loc="lower left", framealpha=1)
    figure.savefig(path, dpi=100)


def _scatter(ax: matplotlib.axes.Axes, z: Tensor, row: int, **style: object) -> None:
    flat = z.reshape(-1).tolist()
    ax.scatter(flat, [row] * len(flat), **style)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = collect()
    print("\n".join(table(*found)))
    draw(*found, options.out)
