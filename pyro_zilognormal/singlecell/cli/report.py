"""The outputs of a run: metrics, diagnostics, the HTML report, and the summary on the terminal."""

from __future__ import annotations

import base64
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from pyro_zilognormal import __version__
from pyro_zilognormal.singlecell.api import HurdleDE
from pyro_zilognormal.singlecell.design.design import Contrast
from pyro_zilognormal.singlecell.errors import listed, printable, require
from pyro_zilognormal.singlecell.genes import GeneFit
from pyro_zilognormal.singlecell.predictive_check import STATISTICS, inside
from pyro_zilognormal.singlecell.results import COLUMNS, CREDIBLE, FEWEST_CELLS, LEFT_TAIL, posterior_calls
from pyro_zilognormal.svi.data import digest

_PACKAGES = ("torch", "pyro-ppl", "numpy", "scipy", "pandas", "anndata", "formulaic")
# Genes in a table of the report, in a sentence, and on the terminal.
_TOP, _NAMED, _PRINTED = 12, 5, 12
_MOST_LISTED = 6
# A hundredth of the genes is expected outside of 99 % intervals by chance.
_MOST_OUTSIDE = 0.05
# If so many genes do not fit, the model is not that of the data.
_MOST_UNFIT = 0.2
# Log2 ratio of shares of cells, from which on a gene is named that is not called: twice or half as many.
_SWITCHED = 1.0
_FEW_LEVELS = 6
# Powers of 2 that a float can hold.
_MOST_LOG2 = 1000.0
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
    certain = (table["detection_lfsr"] <= fdr) & (table["log_fc_detection"].abs() >= _SWITCHED)
    switched = table[certain & ~posterior & (table["status"] != "few_cells")]
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
        "switched": _names(switched.sort_values("log_fc_detection", key=lambda v: -v.abs(), kind="stable")),
        "around_zero": _names(called[(called["log_fc_low"] < 0) & (called["log_fc_high"] > 0)]),
        "left_tail": _names(table[table["predictive_check"].str.contains("left_tail")]),
        "log_skewness": float(np.median(known)) if len(known := table["log_skewness"].dropna()) else None,
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
        *(_left_tail(calls) for calls in numbers["contrasts"][:1] if calls["log_skewness"] is not None),
        *(_around_zero(calls) for calls in numbers["contrasts"] if calls["around_zero"]),
        *(_switched(calls) for calls in numbers["contrasts"] if calls["switched"]),
        *(_few_cells(calls) for calls in numbers["contrasts"] if "few_cells" in calls["status"]),
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


def _left_tail(calls: Mapping[str, Any]) -> Diagnostic:
    found = calls["left_tail"]
    text = f"Logarithms of positive values have a median skewness of {calls['log_skewness']:.1f} (0 for a log-normal). "
    if not found:
        return Diagnostic(True, text + "No gene has a left tail that makes means too large.")
    text += (
        f"Left tails, below {LEFT_TAIL:g}, make the model's means too large in {_genes(found)}; see docs/choosing.md."
    )
    return Diagnostic(False, text)


def _around_zero(calls: Mapping[str, Any]) -> Diagnostic:
    found = calls["around_zero"]
    text = f"{calls['contrast']}: less sure are {_genes(found)}: called, as few false calls are expected, "
    text += f"though their {CREDIBLE:.0%} interval holds 0."
    return Diagnostic(2 * len(found) <= calls["up"] + calls["down"], text)


def _switched(calls: Mapping[str, Any]) -> Diagnostic:
    text = f"{calls['contrast']}: detected in at least twice or half as many cells, but not called, are "
    text += f"{_genes(calls['switched'])}: their values where detected change the other way, or the ratio of means is "
    return Diagnostic(True, text + "too uncertain. See detection_lfsr and abundance_lfsr; depth may be a reason too.")


def _few_cells(calls: Mapping[str, Any]) -> Diagnostic:
    return Diagnostic(False, f"{calls['contrast']}: {few_cells(calls)}.")


def few_cells(calls: Mapping[str, Any]) -> str:
    """Return why no gene can be called, and what to do."""
    few = min(calls["n_test"], calls["n_ref"]) < FEWEST_CELLS
    cells = f"fewer than {FEWEST_CELLS} cells ({calls['n_test']} against {calls['n_ref']}): add cells"
    samples = "cells of one sample only, such as one donor: add donors"
    return f"no gene can be called, as a condition has {cells if few else samples}, or compare other conditions"


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
            f"No: {unfit:.0%} of the genes do not fit the predictive check. Values of another scale and left tails of "
            "their logarithms are common reasons; see docs/choosing.md."
        )
    if all(one.passed for one in found):
        return "Yes: all diagnostics are fine."
    return "Yes, with caution: the diagnostics marked ⚠ below limit what can be concluded."


def html(
    results: Results, numbers: Mapping[str, Any], pictures: Mapping[str, bytes], genes: Mapping[str, bytes]
) -> str:
    """Return the report."""
    found = diagnostics(results, numbers)
    return page(
        "report.html.jinja",
        run=results.specification,
        settings=results.de.settings,
        numbers=numbers,
        diagnostics=found,
        verdict=verdict(found, numbers),
        contrasts=[c | _shown(results, one) for c, one in zip(numbers["contrasts"], results.contrasts, strict=True)],
        named=_NAMED,
        unusual=_STATUS,
        pictures={name: inline(png) for name, png in pictures.items()},
        genes={name: inline(png) for name, png in genes.items()},
        columns=COLUMNS,
        interval=f"{100 * CREDIBLE:g} %",
        folds=folds,
    )


def page(name: str, **values: Any) -> str:
    """Return the HTML of a template, which loads nothing else."""
    template = resources.files("pyro_zilognormal.singlecell.cli") / name
    environment = require("jinja2").Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_visible
    )
    return str(environment.from_string(template.read_text(encoding="utf-8")).render(values))


def _visible(value: Any) -> Any:
    """Return text with escapes for control characters; HTML that was made before is left as it is."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def folds(log_fc: float) -> str:
    """Return a log2 fold change as a factor, up or down.

    Example:
        >>> folds(2.0), folds(-2.0)
        ('4-fold up', '4-fold down')
    """
    factor = 2.0 ** abs(log_fc) if abs(log_fc) < _MOST_LOG2 else np.inf
    return f"{factor:.3g}-fold {'up' if log_fc > 0 else 'down'}"


def _shown(results: Results, contrast: Contrast) -> dict[str, Any]:
    """Return what the report shows of a contrast: names of the conditions, and called genes."""
    called = results.of(contrast.name).query("is_de")
    higher, lower = (called[sign * called["log_fc"] > 0].head(_TOP).to_dict("records") for sign in (1, -1))
    test, reference = contrast.labels
    return {"test": test, "reference": reference, "higher": higher, "lower": lower}


def inline(png: bytes) -> str:
    """Return a picture as the address of itself, for pages that load nothing else."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def summary(results: Results, numbers: Mapping[str, Any]) -> str:
    """Return the results in a few lines for the terminal, with a table of the most certain genes."""
    delta, fdr = results.specification["delta"], results.specification["fdr"]
    parts, genes = [str(results.de.result)], len(results.de.genes)
    for calls in numbers["contrasts"]:
        up, down = calls["up"], calls["down"]
        parts += [
            "",
            f"{printable(calls['contrast'])}: {up + down} of {genes} genes change by more than {delta:g} log2 units",
            f"({up} up, {down} down, at an expected false discovery rate of {100 * fdr:g} %); the most certain:",
            _printed(results.of(calls["contrast"]).head(_PRINTED)),
        ]
        parts += [f"caution: {few_cells(calls)}"] if "few_cells" in calls["status"] else []
        for found, what in (
            (calls["around_zero"], f"less sure, as the {100 * CREDIBLE:g} % interval holds 0"),
            (calls["switched"], "not called, though detected in twice or half as many cells"),
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
    names = [printable(str(name)) for name in rows["variable"]]
    width, interval = max(4, *map(len, names)), f"{100 * CREDIBLE:g} % interval"
    lines = [f"  {'gene':<{width}}  log2 change   {interval:<14}   detected: test    ref   P(changed)"]
    for name, row in zip(names, rows.to_dict("records"), strict=True):
        interval = f"{row['log_fc_low']:+.2f} to {row['log_fc_high']:+.2f}"
        test, reference = (share_of(row[f"detection_{end}"]) for end in ("test", "ref"))
        detected = f"{test:>14}   {reference:>4}"
        lines.append(
            f"  {name:<{width}}  {row['log_fc']:+11.2f}   {interval:<14}   {detected}   {row['prob_de']:>10.3f}"
        )
    return "\n".join(lines)


def share_of(value: float) -> str:
    """Return a share in per cent, or a dash where there is none."""
    return "–" if np.isnan(value) else f"{value:.0%}"
