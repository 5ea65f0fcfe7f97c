"""The outputs of a run: metrics, diagnostics, pictures, the HTML report, and the summary on the terminal."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from pyro_zilognormal import __version__
from pyro_zilognormal.singlecell import plots
from pyro_zilognormal.singlecell.api import HurdleDE
from pyro_zilognormal.singlecell.design import Contrast
from pyro_zilognormal.singlecell.errors import listed, require
from pyro_zilognormal.singlecell.genes import GeneFit
from pyro_zilognormal.singlecell.predictive_check import CREDIBLE, STATISTICS, inside
from pyro_zilognormal.singlecell.results import COLUMNS, posterior_calls
from pyro_zilognormal.svi import plot_loss
from pyro_zilognormal.svi.data import digest

_PACKAGES = ("torch", "pyro-ppl", "numpy", "scipy", "pandas", "anndata", "formulaic")
# Genes in a table of the report, in a sentence, and on the terminal.
_TOP, _NAMED, _PRINTED = 12, 5, 12
_MOST_LISTED = 6
# A hundredth of the genes is expected outside of 99 % intervals by chance.
_MOST_OUTSIDE = 0.05
# If so many genes do not fit, the model is not that of the data.
_MOST_UNFIT = 0.2
_FEW_LEVELS = 6
_DPI = 110
_STATUS = {
    "all_zero": "no positive value in these cells, so that nothing is known about their change",
    "all_positive": "no zero in these cells",
    "too_few_positive": "fewer than three positive values in these cells, so that little is known about their change",
    "few_cells": "a condition of fewer than 10 cells or 2 samples, so that their intervals rest much on other genes",
}


@dataclass(frozen=True, eq=False)
class Results:
    """The results of a run of the command line."""

    specification: dict[str, Any]  # source, delta, fdr, max_error, resume and command, as plain values
    de: HurdleDE
    contrasts: list[Contrast]
    table: Any  # of HurdleDE.test
    check: Any  # of HurdleDE.predictive_check, for all conditions of the contrasts
    genes: list[GeneFit]  # of the most certain genes of each contrast
    warnings: list[str]
    seconds: dict[str, float]  # duration of each part

    def of(self, contrast: str) -> Any:
        """Return the rows of a contrast."""
        return self.table[self.table["contrast"] == contrast]


def metrics(results: Results) -> dict[str, Any]:
    """Return versions, input, settings, calls, convergence, predictive check, timing and warnings as plain values."""
    specification = dict(results.specification)
    source = specification.pop("source")
    fit, check = results.de.result, results.check
    checks: dict[str, Any] = {"credible": CREDIBLE, "genes": check["variable"].nunique()}
    checks["conditions"] = list(dict.fromkeys(check["condition"]))
    names = check["variable"].astype(str) + " in " + check["condition"].astype(str)
    for statistic in STATISTICS:
        within = inside(check, statistic)
        checks |= {f"{statistic}_inside": float(within.mean()), f"{statistic}_outside": names[~within].tolist()}
    return {
        "versions": {"pyro-zilognormal": __version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "input": {"source": source, "fingerprint": fingerprint(results.de)},
        "settings": results.de.settings | specification,
        "contrasts": [_calls(results.of(c.name), specification) for c in results.contrasts],
        "convergence": {
            "converged": bool(fit.converged),
            "stop_reason": fit.stop_reason,
            "steps": fit.steps,
            "best_step": fit.best_step,
            "skipped_steps": len(fit.skipped),
            "loss_last_tenth": float(np.nanmean(fit.losses[-max(1, len(fit.losses) // 10) :])),
            "fit_seconds": round(fit.seconds, 3),
        },
        "predictive_check": checks,
        "seconds": {part: round(seconds, 3) for part, seconds in results.seconds.items()},
        "warnings": results.warnings,
    }


def fingerprint(de: HurdleDE) -> str:
    """Return a digest of the data of the fit: values, designs, random effects, offsets and names of genes."""
    return digest([de.genes, *de.cells.data.arguments])


def _calls(table: Any, specification: Mapping[str, Any]) -> dict[str, Any]:
    called, fdr = table[table["is_de"]], specification["fdr"]
    posterior = posterior_calls(table, fdr, specification["max_error"])
    unfit = ~table["predictive_check"].isin(["ok", "no_cells"])
    return {
        "contrast": table["contrast"].iloc[0],
        "n_test": int(table["n_test"].iloc[0]),
        "n_ref": int(table["n_ref"].iloc[0]),
        "up": int((called["log_fc"] > 0).sum()),
        "down": int((called["log_fc"] < 0).sum()),
        "tested": int(table["pval"].notna().sum()),
        "posterior_only": _names(table[posterior & (table["padj"] > fdr)]),
        "samples_only": _names(table[~posterior & (table["padj"] <= fdr)].sort_values("pval", kind="stable")),
        "unfit": float(unfit.mean()),
        "log_fc_unfit": _names(table[table["predictive_check"].str.contains("log_fc")]),
        "status": {str(status): int(number) for status, number in table["status"].value_counts().items()},
    }


def _names(table: Any) -> list[str]:
    return [str(name) for name in table["variable"]]


@dataclass(frozen=True)
class Diagnostic:
    """One check of the run: whether all is well, and the finding in words."""

    passed: bool
    text: str


def diagnostics(results: Results, numbers: Mapping[str, Any]) -> list[Diagnostic]:
    """Return convergence, lack of fit, agreement with samples, random effects and warnings, and which are fine."""
    fit, check = numbers["convergence"], numbers["predictive_check"]
    ended = (
        f"The fit converged: its loss no longer fell in the last fifth of {fit['steps']} steps."
        if fit["converged"]
        else f"The fit did not converge in {fit['steps']} steps ({fit['stop_reason']}). Do not use these results; run "
        "again with more --steps."
    )
    return [
        Diagnostic(fit["converged"], ended),
        _fit_of(check, "zero_fraction", "share of zeros", "the model predicts too many or too few zeros"),
        _fit_of(check, "mean", "mean", "their positive values are not log-normal, and log_fc may be biased"),
        _fit_of(check, "sd_log", "spread of log x where x > 0", "their spread is not that of the model's sigma"),
        *(_log_fc(calls) for calls in numbers["contrasts"]),
        *(_agreement(calls) for calls in numbers["contrasts"] if calls["tested"]),
        _random_effects(results.de),
        *(Diagnostic(False, f"Warning: {text}") for text in results.warnings),
    ]


def _fit_of(check: Mapping[str, Any], statistic: str, what: str, meaning: str) -> Diagnostic:
    share, outside = check[f"{statistic}_inside"], check[f"{statistic}_outside"]
    text = f"Posterior predictive check of the {what}: {share:.1%} of genes and conditions lie inside the "
    text += f"{check['credible']:.0%} interval"
    if not outside:
        return Diagnostic(True, f"{text}.")
    return Diagnostic(1 - share <= _MOST_OUTSIDE, f"{text}. Outside: {listed(outside, _MOST_LISTED)}; {meaning}.")


def _log_fc(calls: Mapping[str, Any]) -> Diagnostic:
    found = calls["log_fc_unfit"]
    if not found:
        return Diagnostic(
            True, f"{calls['contrast']}: no interval of log_fc excludes the observed log2 ratio of means."
        )
    text = f"{calls['contrast']}: the interval of log_fc excludes the observed log2 ratio of means, by more than the "
    return Diagnostic(False, f"{text}noise of that ratio, in {_genes(found)}. Do not trust their fold changes.")


def _agreement(calls: Mapping[str, Any]) -> Diagnostic:
    text = f"{calls['contrast']}: a called gene needs both the posterior and a moderated t test of the samples' means. "
    posterior, samples = calls["posterior_only"], calls["samples_only"]
    if not posterior and not samples:
        return Diagnostic(True, f"{text}They agree on all genes.")
    text += f"The posterior alone would call {_genes(posterior)} more. " if posterior else ""
    text += f"The test alone would call {_genes(samples)} more." if samples else ""
    return Diagnostic(len(posterior) <= max(1, calls["up"] + calls["down"]), text.strip())


def _genes(names: Sequence[str]) -> str:
    return f"{len(names)} {'gene' if len(names) == 1 else 'genes'} ({listed(names, _MOST_LISTED)})"


def _random_effects(de: HurdleDE) -> Diagnostic:
    terms = de.cells.terms
    if not terms:
        return Diagnostic(
            False,
            "Cells were taken as independent: intervals and calls hold for these cells, not for other donors. If the "
            "cells come from several donors, name their column with --donor.",
        )
    levels = listed([f"{term} of {len(term.names)} levels" for term in terms])
    text = f"The model has random effects {levels}"
    few = min(len(term.names) for term in terms) < _FEW_LEVELS
    text += "; so few levels say little about others." if few else "."
    text += "".join(f" Left out: {reason}." for reason in de.cells.left_out)
    return Diagnostic(not few, text)


def verdict(found: Sequence[Diagnostic], numbers: Mapping[str, Any]) -> str:
    """Return in a sentence whether the results can be used."""
    if not numbers["convergence"]["converged"]:
        return "No: the fit did not converge. Run it again with more --steps before using the results."
    unfit = max(calls["unfit"] for calls in numbers["contrasts"])
    if unfit >= _MOST_UNFIT:
        return (
            f"No: {unfit:.0%} of the genes do not fit the predictive check. Values of another scale, left tails or "
            "skewed logarithms are common reasons; see docs/choosing.md."
        )
    if all(one.passed for one in found):
        return "Yes: all diagnostics are fine."
    return "Yes, with caution: the diagnostics marked ⚠ below limit what can be concluded."


def html(
    results: Results, numbers: Mapping[str, Any], pictures: Mapping[str, bytes], genes: Mapping[str, bytes]
) -> str:
    """Return the report as HTML that loads nothing else."""
    template = resources.files("pyro_zilognormal.singlecell") / "report.html.jinja"
    environment = require("jinja2").Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    found = diagnostics(results, numbers)
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        run=results.specification,
        settings=results.de.settings,
        numbers=numbers,
        diagnostics=found,
        verdict=verdict(found, numbers),
        contrasts=[c | _shown(results, one) for c, one in zip(numbers["contrasts"], results.contrasts, strict=True)],
        named=_NAMED,
        unusual=_STATUS,
        pictures={name: _inline(png) for name, png in pictures.items()},
        genes={name: _inline(png) for name, png in genes.items()},
        columns=COLUMNS,
    )


def _shown(results: Results, contrast: Contrast) -> dict[str, Any]:
    """Return what the report shows of a contrast: names of the conditions, and called genes."""
    called = results.of(contrast.name).query("is_de")
    higher, lower = (called[sign * called["log_fc"] > 0].head(_TOP).to_dict("records") for sign in (1, -1))
    test, reference = contrast.labels
    return {"test": test, "reference": reference, "higher": higher, "lower": lower}


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def summary(results: Results, numbers: Mapping[str, Any]) -> str:
    """Return the results in a few lines for the terminal, with a table of the most certain genes."""
    delta, fdr = results.specification["delta"], results.specification["fdr"]
    parts, genes = [str(results.de.result)], len(results.de.genes)
    for calls in numbers["contrasts"]:
        up, down = calls["up"], calls["down"]
        parts += [
            "",
            f"{calls['contrast']}: {up + down} of {genes} genes change by more than {delta:g} log2 units",
            f"({up} up, {down} down, at an expected false discovery rate of {100 * fdr:g} %); the most certain:",
            _printed(results.of(calls["contrast"]).head(_PRINTED)),
        ]
        for found, what in (
            (calls["posterior_only"], "not called, as the test of samples does not confirm them"),
            (calls["samples_only"], "not called, though significant in the test of samples"),
            (calls["log_fc_unfit"], "caution: the interval of log_fc excludes the observed ratio in"),
        ):
            parts += [f"{what}: {_genes(found)}"] if found else []
    check = numbers["predictive_check"]
    words = {"zero_fraction": "shares of zeros", "mean": "means", "sd_log": "spreads of log x"}
    shares = ", ".join(f"{check[f'{name}_inside']:.1%} of {what}" for name, what in words.items())
    parts += ["", f"posterior predictive check, inside the {check['credible']:.0%} interval: {shares}"]
    return "\n".join(parts)


def _printed(rows: Any) -> str:
    width = max(4, *(len(str(name)) for name in rows["variable"]))
    lines = [f"  {'gene':<{width}}  log2 change   95 % interval    detected: test    ref   P(changed)"]
    for row in rows.to_dict("records"):
        interval = f"{row['log_fc_low']:+.2f} to {row['log_fc_high']:+.2f}"
        detected = f"{row['detection_test']:>14.0%}   {row['detection_ref']:>4.0%}"
        name = f"{row['variable']:<{width}}"
        lines.append(f"  {name}  {row['log_fc']:+11.2f}   {interval:<14}   {detected}   {row['prob_de']:>10.3f}")
    return "\n".join(lines)


def draw(results: Results) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the pictures of a run by name, and those of single genes, as PNG."""
    fit, number = results.de.result, len(results.contrasts)
    pictures = {}

    figure = _figure(7.0, 3.6)
    ax = plot_loss(fit, figure.subplots(), window=max(1, fit.steps // 10))
    ax.set(ylabel=f"loss per {'group of cells' if results.de.data.reduced else 'cell'} (nats)")
    ax.legend(fontsize="small", loc="upper center", framealpha=0.9)
    pictures["loss"] = _png(figure)

    figure = _figure(7.0 if number == 1 else 5.5 * number, 5.0)
    for ax, contrast in zip(figure.subplots(1, number, squeeze=False)[0], results.contrasts, strict=True):
        plots.volcano(results.of(contrast.name), ax)
    pictures["volcano"] = _png(figure)

    figure = _figure(13.0, 4.6)
    for ax, statistic in zip(figure.subplots(1, 3), STATISTICS, strict=True):
        plots.predictive(results.check, statistic, ax, credible=CREDIBLE)
    pictures["predictive"] = _png(figure)

    genes = {}
    for one in results.genes:
        figure = _figure(11.0 if one.samples else 6.4, 3.6)
        axes = np.atleast_1d(figure.subplots(1, 2 if one.samples else 1))
        plots.gene(one, axes[0])
        if one.samples:
            plots.samples(one, axes[1])
        genes[f"{one.gene}, {one.contrast}"] = _png(figure)
    return pictures, genes


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")  # pyplot would keep it in a global list


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # names in scripts that the font lacks
        figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
