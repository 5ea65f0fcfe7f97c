"""results.json in words: RESULTS.md, and what README.md and pages of docs quote of it, all from the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from losses import Found, losses, wins_below
from results import quote, table

HERE = Path(__file__).parent
RESULTS, PAGE, PICTURE = HERE / "results.json", HERE / "RESULTS.md", HERE / "results.png"
README, DOCS = HERE.parent / "README.md", HERE.parent / "docs"


def bars(found: Found) -> str:
    head = ("forward and backward, if not said otherwise", "against", "ours / theirs", "at most", "met", "medians")
    rows = []
    for r in found["rows"]:
        limit = r["limit"]
        met = "" if limit is None else "yes" if r["figure"] <= limit else "**no**"
        rows.append((r["what"], r["against"], f"{r['figure']:.3g}", "" if limit is None else limit, met, r["detail"]))
    return table(head, rows)


def curves(found: Found) -> str:
    return "\n\n".join([_curve(found["size"], "entries"), _curve(found["density"], "density"), _csr(found["csr"])])


def _curve(points: list[Found], key: str) -> str:
    names = list(points[-1]["milliseconds"])
    rows = [(f"{p[key]:,}", *(f"{p['milliseconds'][name]:.3g}" for name in names)) for p in points]
    return table((f"milliseconds, by {key}", *names), rows)


def _csr(points: list[Found]) -> str:
    densities = sorted({p["density"] for p in points})
    ratio = {(p["shape"], p["density"]): f"{p['ratio']:.2f}" for p in points}
    shapes = dict.fromkeys(p["shape"] for p in points)
    return table(("CSR / dense, by density", *densities), [(s, *(ratio[s, d] for d in densities)) for s in shapes])


def steps(found: Found) -> str:
    rows = [
        (n, f"{1e3 * c['bare_seconds']:.2f}", f"{100 * (c['ratio'] - 1):+.1f} %") for n, c in found["cases"].items()
    ]
    return table(("model", "bare SVI.step, ms", "svi.fit with Progress"), rows)


def fits(found: Found) -> str:
    few, ratio = found["scaling"]["seconds_1e3"], found["scaling"]["ratio_1e6"]
    return f"{1e3 * few:.1f} ms at 1,000 cells, and {ratio:.2f} times as long at 1,000,000."


def nuts(found: Found) -> str:
    def of_size(size: str, ways: dict[str, dict[str, float]]) -> str:
        rows = [(name, f"{a['seconds']:.1f}", f"{a['error']:.2f}") for name, a in ways.items()]
        return table((size, "seconds", "largest error against the reference, in posterior sds"), rows)

    return "\n\n".join(of_size(*item) for item in found["accuracy"].items())


def reduction(found: Found) -> str:
    rows = [
        (
            how,
            f"{r['values']:,}",
            f"{r['seconds']:.1f}",
            f"{r['values'] / r['seconds'] / 1e6:.0f}",
            f"{r['growth'] / 1e6:.0f}",
        )
        for how, r in found["disk"].items()
    ]
    head = ("1,000,000 cells x 2,000 genes on disk", "values", "seconds", "million a second", "memory, MB")
    others = [
        table(
            (title, "ms", "of ours"),
            [(n, f"{1e3 * s:.2f}", f"{s / next(iter(times.values())):.2f}") for n, s in times.items()],
        )
        for title, times in found["memory"].items()
    ]
    return "\n\n".join([table(head, rows), *others])


def scaling(found: Found) -> str:
    rows = []
    for name, points in found["curves"].items():
        cells = (f"{1e3 * p['seconds']:.3g} ms, {p['growth'] / 2**20:.0f} MiB" for p in points)
        rows.append((name, *cells))
    counts = [f"{p['cells']:,} cells" for p in next(iter(found["curves"].values()))]
    return table(("100 genes, 10 % density", *counts), rows)


def de(found: Found) -> str:
    methods = list(next(iter(found["pairs"].values()))["seconds"])
    rows = [
        (title, f"{p['cells']} x {p['genes']}", *(f"{p['seconds'][m]:.1f}" for m in methods))
        for title, p in found["pairs"].items()
    ]
    return table(("whole run, CPU seconds", "cells x genes", *methods), rows)


PARTS: dict[str, tuple[str, Callable[[Found], str]]] = {
    "bars": ("The log density: bars", bars),
    "curves": ("The log density by size and density", curves),
    "steps": ("A step of SVI", steps),
    "fits": ("A step of the hurdle regression", fits),
    "nuts": ("A fit against NUTS and minibatches", nuts),
    "reduction": ("Reduction", reduction),
    "scaling": ("From 1,000 to 1,000,000 cells", scaling),
    "de": ("Differential expression", de),
    "gpu": ("The log density on a GPU", bars),
}


def page(record: dict[str, Found]) -> str:
    """RESULTS.md."""
    lost = "\n".join(f"- {sentence}" for sentence in losses(record))
    parts = "\n\n".join(_part(part, record.get(part, {"failed": "it was not run here."})) for part in PARTS)
    return f"""# Results

Written by `python benchmarks/run_all.py` from `results.json`. Ratios are ours over theirs, medians of pairs timed in
turn. Times are of forward and backward of the sum of `log_prob`, of 1024 x 2000 float32 values, 70 % zeros, if not said
otherwise. Pairs are called disturbed where other processes used more than 8 % of a core meanwhile.

![Curves](results.png)

## Where we lose

{lost}

{parts}
"""


def _part(part: str, found: Found) -> str:
    title, show = PARTS[part]
    if "failed" in found:
        return f"## {title}\n\n**Not measured**: {found['failed']}"
    about = ", ".join(f"{k} {v}" for k, v in (found["about"] | found["peers"]).items())
    missing = "".join(f"**Missing, so not compared: {n}**: {why}\n\n" for n, why in found.get("missing", {}).items())
    return f"## {title}\n\n{missing}{show(found)}\n\n{about}."


def short(record: dict[str, Found]) -> str:
    """The table of docs/speed.md."""
    rows = [r for r in record["bars"]["rows"] if r["what"].endswith((", eager", ", torch.compile of the sum"))]
    peers = list(dict.fromkeys(r["against"] for r in rows))
    figure = {(r["what"], r["against"]): f"{r['figure']:.2f}" for r in rows}
    cases = dict.fromkeys(r["what"] for r in rows)
    return table(("our time / theirs", *peers), [(c, *(figure[c, p] for p in peers)) for c in cases])


def speed_in_words(record: dict[str, Found]) -> str:
    """The sentence of README.md on speed."""
    full, per_gene = (
        next(
            r["figure"] for r in record["bars"]["rows"] if (r["what"], r["against"]) == (f"{case}, eager", "scvi-tools")
        )
        for case in ("all full size", "scale and logits per gene")
    )
    return (
        "The sum of `log_prob` of 1024 x 2000 values, forward and backward on two cores, takes "
        f"{full:.2f} of scvi-tools' time where all parameters are full size, and "
        f"{per_gene:.2f} where scale and logits are per gene."
    )


def csr_in_words(record: dict[str, Found]) -> str:
    """The sentence of docs/speed.md on when CSR wins."""
    found = [
        f"{shape}, {'at none' if density is None else f'up to {density:.0%}'}"
        for shape, density in wins_below(record["curves"]["csr"]).items()
    ]
    return f"Densities measured at which CSR is faster than dense, by the shape of parameters: {'; '.join(found)}."


def failures(record: dict[str, Found]) -> list[str]:
    """Parts that failed, peers that are missing, and bars that are missed."""
    found = [f"{part} failed: {f['failed']}" for part, f in record.items() if "failed" in f]
    found += [f"{part}: {n} is missing: {why}" for part, f in record.items() for n, why in f.get("missing", {}).items()]
    rows = record.get("bars", {}).get("rows", [])
    return found + [f"missed: {r['what']}, {r['against']}" for r in rows if r["limit"] and r["figure"] > r["limit"]]


def reduction_in_words(record: dict[str, Found]) -> str:
    """The sentence of docs/reduction.md."""
    found = record["reduction"]["disk"]["read"]
    return (
        "`benchmarks/reduction.py` reduces 1,000,000 cells x 2,000 genes at 10 % density from disk in "
        f"{found['seconds']:.0f} s, in {found['growth'] / 1e9:.1f} GB of memory, on one core."
    )


def quotations(record: dict[str, Found]) -> list[tuple[Path, str, str]]:
    """What other pages quote: the page, the mark of the place, and the text."""
    known = {part for part, found in record.items() if "failed" not in found}
    wanted = (
        ("bars", README, "speed", speed_in_words),
        ("bars", DOCS / "speed.md", "speed", short),
        ("curves", DOCS / "speed.md", "csr", csr_in_words),
        ("reduction", DOCS / "reduction.md", "reduction", reduction_in_words),
    )
    return [(path, mark, text(record)) for part, path, mark, text in wanted if part in known]


def write_all(record: dict[str, Any]) -> str:
    """Keep the numbers and everything that is written from them; return the page."""
    from picture import draw

    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    text = page(record)
    PAGE.write_text(text)
    draw(record, PICTURE)
    for path, mark, quoted in quotations(record):
        quote(path, mark, quoted)
    return text
