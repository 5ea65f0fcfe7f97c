"""Where we lose, in words, from the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from scaling import CSR, DENSE

Found = dict[str, Any]


def bars(found: Found) -> Iterator[str]:
    for row in found["rows"]:
        what, against, figure, limit = row["what"], row["against"], row["figure"], row["limit"]
        if limit is not None and figure > limit:
            yield f"{what}, against {against}: {figure:.3g}, where at most {limit} is asked."
        elif limit is not None and against != "microseconds" and figure > 1:
            yield f"{what} costs {100 * (figure - 1):.0f} % more than {against}, which is within the bar."


def curves(found: Found) -> Iterator[str]:
    for by, unit in (("size", "entries"), ("density", "density")):
        for point in found[by]:
            times = point["milliseconds"]
            at = point[unit if by == "density" else "entries"]
            where = f"{at:,} entries" if by == "size" else f"a density of {at:g}"
            faster = [
                f"{name} {t:.3g} ms" for name, t in times.items() if not name.startswith("ours") and t < times["ours"]
            ]
            if faster:
                yield f"At {where} log_prob takes {times['ours']:.3g} ms; {', '.join(faster)}."
    for shape, density in wins_below(found["csr"]).items():
        above = "at no density measured" if density is None else f"only up to a density of {density:.2g}"
        yield f"`log_prob_sum` on CSR, parameters {shape}: faster than the dense log_prob {above}."


def wins_below(points: list[Found]) -> dict[str, float | None]:
    """The largest density measured up to which CSR is faster, by the shape of the parameters."""
    found: dict[str, float | None] = {}
    for shape in dict.fromkeys(p["shape"] for p in points):
        found[shape] = None
        for point in sorted((p for p in points if p["shape"] == shape), key=lambda p: p["density"]):
            if point["ratio"] >= 1:
                break
            found[shape] = point["density"]
    return found


def steps(found: Found) -> Iterator[str]:
    for name, case in found["cases"].items():
        if case["ratio"] > 1:
            yield f"`svi.fit` takes {100 * (case['ratio'] - 1):.1f} % longer than a bare loop of SVI.step, {name}."


def nuts(found: Found) -> Iterator[str]:
    for size, ways in found["accuracy"].items():
        ours = next(way for name, way in ways.items() if "fit_hurdle" in name)
        for name, other in ways.items():
            for what, unit in (("seconds", "s"), ("error", "posterior sds")):
                if other[what] < ours[what] and "reference" not in name:
                    yield f"{size}, fit_hurdle: {what} {ours[what]:.3g} {unit}; {name}: {other[what]:.3g} {unit}."


def reduction(found: Found) -> Iterator[str]:
    for title, seconds in found["memory"].items():
        (ours, least), *others = seconds.items()
        for name, taken in others:
            if taken < least:
                yield f"{title}: {ours} takes {1e3 * least:.3g} ms, {name} {1e3 * taken:.3g} ms."


def scaling(found: Found) -> Iterator[str]:
    for dense, csr in zip(found["curves"][DENSE], found["curves"][CSR], strict=True):
        if csr["seconds"] > dense["seconds"]:
            yield f"At {dense['cells']:,} cells of 100 genes CSR at 10 % density is slower than dense."


def de(found: Found) -> Iterator[str]:
    for title, pair in found["pairs"].items():
        (_, ours), *others = pair["seconds"].items()
        for name, taken in others:
            if taken < ours:
                yield f"Differential expression, {title}: {ours:.1f} s of CPU time; {name} {taken:.1f} s."


OF_PART: dict[str, Callable[[Found], Iterator[str]]] = {
    "bars": bars,
    "curves": curves,
    "steps": steps,
    "nuts": nuts,
    "reduction": reduction,
    "scaling": scaling,
    "de": de,
}


def losses(record: dict[str, Found]) -> list[str]:
    """A sentence for each place where a peer, or another way of ours, is better, or a bar is missed."""
    measured = ((part, found) for part, found in record.items() if part in OF_PART and "failed" not in found)
    return [sentence for part, found in measured for sentence in OF_PART[part](found)]
