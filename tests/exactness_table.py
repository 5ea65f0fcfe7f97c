"""Print the largest errors of every quantity: python -m tests.exactness_table [points]."""

from __future__ import annotations

import sys
from itertools import product

import numpy as np
import torch

from tests.exactness import DIVERGENCES, QUANTITIES, Exam, examine
from tests.points import extreme_points, nearly_equal_points, random_points

OF_MOMENTS = {
    "loc (from_mean)": ("loc_of_mean", "zi_logits"),
    "loc (from_moments)": ("loc_of_moments", "zi_probs"),
    "scale (from_moments)": ("scale_of_moments", "zi_probs"),
}
HEADER = "| quantity | value f64 | derivatives f64 | value f32 | derivatives f32 | points | skipped |"


def cell(exam: Exam) -> str:
    return f"{exam.worst(0):.3g} | {exam.errors[:, 1:].max():.3g}"


def row(label: str, exams: list[Exam]) -> str:
    cells = " | ".join(map(cell, exams))
    return f"| {label} | {cells} | {sum(len(e.points) for e in exams)} | {sum(e.skipped for e in exams)} |"


def table(n: int) -> list[str]:
    """The table in markdown: errors in units of eps times conditioning."""
    dtypes = (torch.float64, torch.float32)
    lines = [HEADER, "| --- " * HEADER.count("| ") + "|"]
    for name in (*QUANTITIES, *DIVERGENCES):
        points = [np.concatenate([random_points(name, n, t, 0), extreme_points(name, t, n, 0)]) for t in dtypes]
        lines.append(row(name, [examine(name, p, t) for p, t in zip(points, dtypes, strict=True)]))
    for zero, name in product(("zi_probs", "cloglog"), QUANTITIES):
        exams = [examine(name, random_points(name, n, t, 1, zero), t, zero=zero) for t in dtypes]
        lines.append(row(f"{name} ({zero})", exams))
    for label, (name, zero) in OF_MOMENTS.items():
        exams = [examine(name, random_points(name, n, t, 1, zero), t, zero=zero, logs=True) for t in dtypes]
        lines.append(row(label, exams))
    limits = [random_points("log_prob_censored", n, t, 1) for t in dtypes]
    exams = [examine("log_prob_censored", p[p[:, -1] > 0], t) for p, t in zip(limits, dtypes, strict=True)]
    lines.append(row("log_prob (below a limit)", exams))
    nearly = [examine("kl", nearly_equal_points(n, t, 0), t, tolerance=300.0) for t in dtypes]
    return [*lines, row("kl (nearly equal)", nearly)]


if __name__ == "__main__":
    print("\n".join(table(int(sys.argv[1]) if len(sys.argv) > 1 else 500)))
