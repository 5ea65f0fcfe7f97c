"""What a run says on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro_zilognormal.singlecell.job import Answer

_TOP = 12
_MOST_NAMED = 8
_CHECKED = {"zero_fraction": "zeros", "mean": "means", "sd_log": "spreads"}


def summary(answer: Answer, numbers: Mapping[str, Any]) -> str:
    """Return what was found in a few lines, the surest genes as a table."""
    parts = [f"{answer.result}"]
    for calls in numbers["contrasts"]:
        parts += ["", _headline(answer, calls), _table(answer.of(calls["contrast"]).head(_TOP)), *_off(calls["off"])]
    check = numbers["predictive_check"]
    shares = ", the ".join(f"{what} of {check[f'{name}_inside']:.1%}" for name, what in _CHECKED.items())
    parts += [
        "",
        f"predictive check: inside the {check['credible']:.0%} interval of cells drawn anew in each condition",
    ]
    return "\n".join([*parts, f"are the {shares} of genes"])


def _off(genes: Sequence[str]) -> list[str]:
    """Return two lines about fold changes that are off, if there are any."""
    more = f" and {len(genes) - _MOST_NAMED} more" if len(genes) > _MOST_NAMED else ""
    lines = [
        f"beware: the model gives a gene one spread in both conditions; where cells show two, {len(genes)} changes",
        f"are off by more than their interval (see log_fc_bias): {', '.join(genes[:_MOST_NAMED])}{more}",
    ]
    return lines if genes else []


def _headline(answer: Answer, calls: Mapping[str, Any]) -> str:
    up, down, genes = calls["up"], calls["down"], len(answer.de.genes)
    return (
        f"{calls['contrast']}: {up + down} of {genes} genes change by more than {answer.job.delta:g} log2 units\n"
        f"({up} up, {down} down, at an expected false discovery rate of {100 * answer.job.fdr:g} %); the surest:"
    )


def _table(rows: Any) -> str:
    width = max(4, *(len(str(name)) for name in rows["variable"]))
    head = f"  {'gene':<{width}}  log2 change   95 % interval    seen in test   in ref   P(changes)"
    return "\n".join([head, *(_row(row, width) for row in rows.to_dict("records"))])


def _row(row: Mapping[str, Any], width: int) -> str:
    interval = f"{row['log_fc_low']:+.2f} to {row['log_fc_high']:+.2f}"
    seen = f"{row['detection_test']:>12.0%}   {row['detection_ref']:>6.0%}"
    return f"  {row['variable']:<{width}}  {row['log_fc']:+11.2f}   {interval:<14}   {seen}   {row['prob_de']:>10.3f}"
