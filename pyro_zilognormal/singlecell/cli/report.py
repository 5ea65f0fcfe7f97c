"""The outputs of a run: metrics, diagnostics, pictures, the HTML report, and the summary on the terminal."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pyro_zilognormal import __version__
from pyro_zilognormal.singlecell import plots
from pyro_zilognormal.singlecell.api import HurdleDE
from pyro_zilognormal.singlecell.design.design import Contrast
from pyro_zilognormal.singlecell.errors import listed, printable, require
from pyro_zilognormal.singlecell.genes import GeneFit
from pyro_zilognormal.singlecell.predictive_check import STATISTICS, inside
from pyro_zilognormal.singlecell.results import COLUMNS, CREDIBLE, FEWEST_CELLS, LEFT_TAIL, posterior_calls
from pyro_zilognormal.svi.data import digest

_PACKAGES = ("torch", "pyro-ppl", "numpy", "scipy", "pandas", "anndata", "formulaic")
# Genes in a table of the report, in a sentence of its summary and of its diagnostics, and on the terminal.
_TOP, _NAMED, _MOST_LISTED, _PRINTED = 12, 5, 6, 12
# A hundredth of the genes is expected outside of 99 % intervals by chance.
_MOST_OUTSIDE = 0.05
# If so many genes do not fit, the model is not that of the data.
_MOST_UNFIT = 0.2
# Log2 ratio of shares of cells, from which on a gene is named that is not called: twice or half as many.
_SWITCHED = 1.0
_FEW_LEVELS = 6
_DPI = 110
_STATUS = {
    "all_zero": "no positive value in these cells, so that nothing is known about their change",
    "all_positive": "no zero in these cells",
    "too_few_positive": "fewer than three positive values in these cells, so that little is known about their change",
    "few_cells": "a condition of fewer than 10 cells or 2 samples, so that their intervals rest much on other genes",
}
# Statistics of the predictive check: what they are, what it means if they do not fit, and their plural.
_CHECKED = {
    "zero_fraction": ("share of zeros", "the model predicts too many or too few zeros", "shares of zeros"),
    "mean": ("mean", "their positive values are not log-normal, and log_fc may be biased", "means"),
    "sd_log": ("spread of log x where x > 0", "their spread is not that of the model's sigma", "spreads of log x"),
}
# What the terminal says of genes of a contrast.
_SAID = {
    "around_zero": f"less sure, as the {100 * CREDIBLE:g} % interval holds 0",
    "switched": "not called, though detected in twice or half as many cells",
    "posterior_only": "not called, as the test of samples does not confirm them",
    "samples_only": "not called, though significant in the test of samples",
    "log_fc_unfit": "caution: the interval of log_fc excludes the observed ratio in",
}


@dataclass(frozen=True, eq=False)
class Results:
    """The results of a run of the command line."""

    options: dict[str, Any]
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


class Diagnostic(NamedTuple):
    """One check of the run: whether all is well, and the finding in words."""

    passed: bool
    text: str


def metrics(results: Results) -> dict[str, Any]:
    """Return versions, input, settings, calls, convergence, predictive check, timing and warnings as plain values."""
    specification = {name: results.options[name] for name in ("delta", "fdr", "max_error", "resume", "command")}
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
        "input": {"source": results.options["source"], "fingerprint": fingerprint(results.de)},
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
    called, fdr, check = table[table["is_de"]], specification["fdr"], table["predictive_check"]
    posterior = posterior_calls(table, fdr, specification["max_error"])
    certain = (table["detection_lfsr"] <= fdr) & (table["log_fc_detection"].abs() >= _SWITCHED)
    switched = table[certain & ~posterior & (table["status"] != "few_cells")]
    found = {
        "posterior_only": table[posterior & (table["padj"] > fdr)],
        "samples_only": table[~posterior & (table["padj"] <= fdr)].sort_values("pval", kind="stable"),
        "switched": switched.sort_values("log_fc_detection", key=lambda v: -v.abs(), kind="stable"),
        "around_zero": called[(called["log_fc_low"] < 0) & (called["log_fc_high"] > 0)],
        "left_tail": table[check.str.contains("left_tail")],
        "log_fc_unfit": table[check.str.contains("log_fc")],
    }
    return {
        "contrast": table["contrast"].iloc[0],
        "n_test": int(table["n_test"].iloc[0]),
        "n_ref": int(table["n_ref"].iloc[0]),
        "up": int((called["log_fc"] > 0).sum()),
        "down": int((called["log_fc"] < 0).sum()),
        "tested": int(table["pval"].notna().sum()),
        **{what: [str(name) for name in rows["variable"]] for what, rows in found.items()},
        "unfit": float((~check.isin(["ok", "no_cells"])).mean()),
        "log_skewness": float(np.median(known)) if len(known := table["log_skewness"].dropna()) else None,
        "status": {str(status): int(number) for status, number in table["status"].value_counts().items()},
    }


def diagnostics(results: Results, numbers: Mapping[str, Any]) -> list[Diagnostic]:
    """Return convergence, lack of fit, agreement with samples, random effects and warnings, and which are fine."""
    fit, contrasts = numbers["convergence"], numbers["contrasts"]
    ended = (
        f"The fit converged: its loss no longer fell in the last fifth of {fit['steps']} steps."
        if fit["converged"]
        else f"The fit did not converge in {fit['steps']} steps ({fit['stop_reason']}). Do not use these results; run "
        "again with more --steps."
    )
    return [
        Diagnostic(fit["converged"], ended),
        *(_fit_of(numbers["predictive_check"], statistic) for statistic in STATISTICS),
        *(_left_tail(calls) for calls in contrasts[:1] if calls["log_skewness"] is not None),
        *(Diagnostic(ok, f"{calls['contrast']}: {text}") for calls in contrasts for ok, text in of_contrast(calls)),
        _random_effects(results.de),
        *(Diagnostic(False, f"Warning: {text}") for text in results.warnings),
    ]


def _fit_of(check: Mapping[str, Any], statistic: str) -> Diagnostic:
    share, outside = check[f"{statistic}_inside"], check[f"{statistic}_outside"]
    what, meaning, _ = _CHECKED[statistic]
    text = f"Posterior predictive check of the {what}: {share:.1%} of genes and conditions lie inside the "
    text += f"{check['credible']:.0%} interval."
    if not outside:
        return Diagnostic(True, text)
    return Diagnostic(1 - share <= _MOST_OUTSIDE, f"{text} Outside: {listed(outside, _MOST_LISTED)}; {meaning}.")


def _left_tail(calls: Mapping[str, Any]) -> Diagnostic:
    text = f"Logarithms of positive values have a median skewness of {calls['log_skewness']:.1f} (0 for a log-normal). "
    if not (found := calls["left_tail"]):
        return Diagnostic(True, text + "No gene has a left tail that makes means too large.")
    text += f"Left tails, below {LEFT_TAIL:g}, make the model's means too large in {_genes(found)}; "
    return Diagnostic(False, text + "see docs/choosing.md.")


def of_contrast(calls: Mapping[str, Any]) -> Iterator[Diagnostic]:
    """Yield what is to be said of the genes of a contrast."""
    changed = calls["up"] + calls["down"]
    if found := calls["log_fc_unfit"]:
        text = "the interval of log_fc excludes the observed log2 ratio of means, by more than the noise of that ratio"
        yield Diagnostic(False, f"{text}, in {_genes(found)}. Do not trust their fold changes.")
    else:
        yield Diagnostic(True, "no interval of log_fc excludes the observed log2 ratio of means.")
    if found := calls["around_zero"]:
        text = f"less sure are {_genes(found)}: called, as few false calls are expected, though their "
        yield Diagnostic(2 * len(found) <= changed, f"{text}{CREDIBLE:.0%} interval holds 0.")
    if found := calls["switched"]:
        text = f"detected in at least twice or half as many cells, but not called, are {_genes(found)}: their values "
        text += "where detected change the other way, or the ratio of means is too uncertain. See detection_lfsr and "
        yield Diagnostic(True, text + "abundance_lfsr; depth may be a reason too.")
    if "few_cells" in calls["status"]:
        yield Diagnostic(False, f"{few_cells(calls)}.")
    if calls["tested"]:
        posterior, samples = calls["posterior_only"], calls["samples_only"]
        said = [f"The posterior alone would call {_genes(posterior)} more."] if posterior else []
        said += [f"The test alone would call {_genes(samples)} more."] if samples else []
        text = "a called gene needs both the posterior and a moderated t test of the samples' means. "
        text += " ".join(said) or "They agree on all genes."
        yield Diagnostic(len(posterior) <= max(1, changed), text)


def few_cells(calls: Mapping[str, Any]) -> str:
    """Return why no gene can be called, and what to do."""
    few = min(calls["n_test"], calls["n_ref"]) < FEWEST_CELLS
    cells = f"fewer than {FEWEST_CELLS} cells ({calls['n_test']} against {calls['n_ref']}): add cells"
    samples = "cells of one sample only, such as one donor: add donors"
    return f"no gene can be called, as a condition has {cells if few else samples}, or compare other conditions"


def _genes(names: Sequence[str]) -> str:
    return f"{len(names)} {'gene' if len(names) == 1 else 'genes'} ({listed(names, _MOST_LISTED)})"


def _random_effects(de: HurdleDE) -> Diagnostic:
    if not (terms := de.cells.terms):
        text = "Cells were taken as independent: intervals and calls hold for these cells, not for other donors. If "
        return Diagnostic(False, text + "the cells come from several donors, name their column with --donor.")
    few = min(len(term.names) for term in terms) < _FEW_LEVELS
    text = f"The model has random effects {listed([f'{term} of {len(term.names)} levels' for term in terms])}"
    text += "; so few levels say little about others." if few else "."
    return Diagnostic(not few, text + "".join(f" Left out: {reason}." for reason in de.cells.left_out))


def verdict(found: Sequence[Diagnostic], numbers: Mapping[str, Any]) -> str:
    """Return in a sentence whether the results can be used."""
    if not numbers["convergence"]["converged"]:
        return "No: the fit did not converge. Run it again with more --steps before using the results."
    unfit = max(calls["unfit"] for calls in numbers["contrasts"])
    if unfit >= _MOST_UNFIT:
        text = f"No: {unfit:.0%} of the genes do not fit the predictive check. Values of another scale and left tails "
        return text + "of their logarithms are common reasons; see docs/choosing.md."
    if all(one.passed for one in found):
        return "Yes: all diagnostics are fine."
    return "Yes, with caution: the diagnostics marked ⚠ below limit what can be concluded."


def draw(results: Results) -> tuple[dict[str, bytes], dict[str, bytes], list[str]]:
    """Return the pictures of a run by name, those of single genes, both as PNG, and why others could not be drawn."""
    de, contrasts, problems = results.de, results.contrasts, list[str]()

    def volcano(axes: Sequence[Any]) -> None:
        for ax, contrast in zip(axes, contrasts, strict=True):
            plots.volcano(results.of(contrast.name), ax)

    def predictive(axes: Sequence[Any]) -> None:
        for ax, statistic in zip(axes, STATISTICS, strict=True):
            plots.predictive(results.check, statistic, ax, credible=CREDIBLE)

    def loss(axes: Sequence[Any]) -> None:
        plots.convergence(de.result, len(de.genes), axes[0])

    number = len(contrasts)
    pictures = {
        "loss": painted("the loss", (7.0, 3.6), 1, loss, problems),
        "volcano": painted("the volcano", (max(7.0, 5.5 * number), 5.0), number, volcano, problems),
        "predictive": painted("the predictive check", (13.0, 4.6), 3, predictive, problems),
    }
    genes = {f"{one.gene}, {one.contrast}": _gene(one, problems) for one in results.genes}
    made, of_genes = ({name: png for name, png in found.items() if png} for found in (pictures, genes))
    return made, of_genes, problems


def _gene(one: GeneFit, problems: list[str]) -> bytes:
    def paint(axes: Sequence[Any]) -> None:
        plots.gene(one, axes[0])
        if one.samples:
            plots.samples(one, axes[1])

    return painted(one.gene, (11.0, 3.6) if one.samples else (6.4, 3.6), 2 if one.samples else 1, paint, problems)


def painted(
    name: str, size: tuple[float, float], columns: int, paint: Callable[[Sequence[Any]], Any], problems: list[str]
) -> bytes:
    """Return a picture as PNG; where it fails, b"", and why in problems, as no picture should cost the results."""
    from matplotlib.figure import Figure

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # names in scripts that the font lacks
            figure = Figure(figsize=size, layout="constrained")  # pyplot would keep it in a global list
            paint(figure.subplots(1, columns, squeeze=False)[0])
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=_DPI)
            return buffer.getvalue()
    except Exception as error:  # whatever matplotlib raises for odd values and names
        problems.append(printable(f"the picture of {name} could not be drawn: {type(error).__name__}: {error}"))
        return b""


def html(
    results: Results, numbers: Mapping[str, Any], pictures: Mapping[str, bytes], genes: Mapping[str, bytes]
) -> str:
    """Return the report."""
    found = diagnostics(results, numbers)
    return page(
        "report.html.jinja",
        run=results.options,
        settings=results.de.settings,
        numbers=numbers,
        diagnostics=found,
        verdict=verdict(found, numbers),
        contrasts=[c | _shown(results, one) for c, one in zip(numbers["contrasts"], results.contrasts, strict=True)],
        named=_NAMED,
        unusual=_STATUS,
        pictures=pictures,
        genes=genes,
        columns=COLUMNS,
        interval=f"{100 * CREDIBLE:g} %",
        folds=folds,
    )


def page(name: str, **values: Any) -> str:
    """Return the HTML of a template, which loads nothing else: the filter ``inline`` makes addresses of pictures."""
    jinja2 = require("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyro_zilognormal.singlecell.cli", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # Text gets escapes for control characters; HTML that was made before is left as it is.
        finalize=lambda v: printable(v) if isinstance(v, str) and not hasattr(v, "__html__") else v,
    )
    environment.filters["inline"] = lambda png: f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return str(environment.get_template(name).render(values))


def folds(log_fc: float) -> str:
    """Return a log2 fold change as a factor, up or down.

    Example:
        >>> folds(2.0), folds(-2.0)
        ('4-fold up', '4-fold down')
    """
    factor = 2.0 ** abs(log_fc) if abs(log_fc) < 1000 else np.inf  # 2^1024 is no float
    return f"{factor:.3g}-fold {'up' if log_fc > 0 else 'down'}"


def _shown(results: Results, contrast: Contrast) -> dict[str, Any]:
    """Return what the report shows of a contrast: names of the conditions, and called genes."""
    called = results.of(contrast.name).query("is_de")
    higher, lower = (called[sign * called["log_fc"] > 0].head(_TOP).to_dict("records") for sign in (1, -1))
    return dict(zip(("test", "reference"), contrast.labels, strict=True)) | {"higher": higher, "lower": lower}


def summary(results: Results, numbers: Mapping[str, Any]) -> str:
    """Return the results in a few lines for the terminal, with a table of the most certain genes."""
    delta, fdr = results.options["delta"], results.options["fdr"]
    parts, genes = [str(results.de.result)], len(results.de.genes)
    for calls in numbers["contrasts"]:
        up, down = calls["up"], calls["down"]
        parts += [
            "",
            f"{printable(calls['contrast'])}: {up + down} of {genes} genes change by more than {delta:g} log2 units",
            f"({up} up, {down} down, at an expected false discovery rate of {100 * fdr:g} %); the most certain:",
            *_printed(results.of(calls["contrast"]).head(_PRINTED)),
        ]
        parts += [f"caution: {few_cells(calls)}"] if "few_cells" in calls["status"] else []
        parts += [f"{said}: {_genes(calls[what])}" for what, said in _SAID.items() if calls[what]]
    check = numbers["predictive_check"]
    shares = ", ".join(f"{check[f'{name}_inside']:.1%} of {plural}" for name, (*_, plural) in _CHECKED.items())
    return "\n".join([*parts, "", f"posterior predictive check, inside the {check['credible']:.0%} interval: {shares}"])


def _printed(rows: Any) -> Iterator[str]:
    """Yield the lines of a table."""
    names = [printable(str(name)) for name in rows["variable"]]
    width, interval = max(4, *map(len, names)), f"{100 * CREDIBLE:g} % interval"
    yield f"  {'gene':<{width}}  log2 change   {interval:<14}   detected: test    ref   P(changed)"
    for name, row in zip(names, rows.to_dict("records"), strict=True):
        interval = f"{row['log_fc_low']:+.2f} to {row['log_fc_high']:+.2f}"
        shares = (row["detection_test"], row["detection_ref"])
        test, reference = ("–" if np.isnan(share) else f"{share:.0%}" for share in shares)
        start, detected = f"  {name:<{width}}  {row['log_fc']:+11.2f}", f"{test:>14}   {reference:>4}"
        yield f"{start}   {interval:<14}   {detected}   {row['prob_de']:>10.3f}"
