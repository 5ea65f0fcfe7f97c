"""What the pages say of speed is what the benchmarks have measured, and the report names every loss and every gap."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import density  # noqa: E402
import density_measures  # noqa: E402
import losses  # noqa: E402
import report  # noqa: E402
import results  # noqa: E402
import run_all  # noqa: E402
import scvi_class  # noqa: E402

RECORD = json.loads(report.RESULTS.read_text())


def test_the_page_is_written_from_the_numbers() -> None:
    assert report.page(RECORD) == report.PAGE.read_text()


def test_every_part_was_measured_and_says_where() -> None:
    assert set(RECORD) >= set(run_all.PARTS) - {"gpu", "nuts"}  # which need a GPU, and a quarter of an hour
    for found in RECORD.values():
        assert "failed" not in found
        assert {"processor", "cores", "threads", "torch"} <= set(found["about"])


def test_other_pages_quote_the_numbers() -> None:
    quotations = report.quotations(RECORD)
    assert [mark for _, mark, _ in quotations] == ["speed", "speed", "csr", "reduction"]
    for path, mark, text in quotations:
        assert results.quoted(path, mark) == text


def test_no_bar_is_missed_in_silence() -> None:
    said = "\n".join(losses.losses(RECORD))
    for row in RECORD["bars"]["rows"]:
        if row["limit"] is not None and row["figure"] > row["limit"]:
            assert f"{row['what']}, against {row['against']}: {row['figure']:.3g}" in said


def row(figure: float, limit: float | None = 0.5) -> dict[str, Any]:
    return {"what": "a", "against": "b", "figure": figure, "limit": limit, "detail": ""}


FITS = {"fit_hurdle": {"seconds": 2.0, "error": 0.2}, "quick": {"seconds": 1.0, "error": 0.3}}
LOSSES = {
    "bars": ({"rows": [row(0.6), row(0.5), row(0.6, None), row(1.1, 1.2)]}, ["a, against b: 0.6,", "10 % more"]),
    "curves": (
        {
            "size": [{"entries": 8, "milliseconds": {"ours": 2.0, "b": 1.0, "c": 3.0}}],
            "density": [{"density": 0.1, "milliseconds": {"ours": 2.0, "ours, CSR": 1.0}}],
            "csr": [{"shape": "s", "density": d, "ratio": r} for d, r in ((0.1, 0.5), (0.2, 0.9), (0.3, 1.1))],
        },
        ["At 8 entries log_prob takes 2 ms; b 1 ms.", "only up to a density of 0.2"],
    ),
    "steps": ({"cases": {"a": {"ratio": 1.02}, "b": {"ratio": 0.9}}}, ["2.0 % longer"]),
    "nuts": ({"accuracy": {"20 genes": FITS}}, ["20 genes, fit_hurdle: seconds 2 s; quick: 1 s"]),
    "reduction": ({"memory": {"t": {"us": 0.2, "b": 0.1, "c": 0.3}}}, ["t: us takes 200 ms, b 100 ms"]),
    "de": ({"pairs": {"p": {"seconds": {"us": 3.0, "b": 1.0}}}}, ["p: 3.0 s of CPU time; b 1.0 s"]),
}


@pytest.mark.parametrize("part", LOSSES)
def test_losses_are_told_and_wins_are_not(part: str) -> None:
    found, expected = LOSSES[part]
    told = losses.losses({part: found})
    assert len(told) == len(expected)
    for sentence, words in zip(told, expected, strict=True):
        assert words in sentence


def test_what_failed_or_is_missing_is_named() -> None:
    bars = {"rows": [row(0.6)], "missing": {"scvi-tools": "no wheel"}, "about": {}, "peers": {}}
    record = {"bars": bars, "de": {"failed": "No module named 'duet'"}}
    assert report.failures(record) == [
        "de failed: No module named 'duet'",
        "bars: scvi-tools is missing: no wheel",
        "missed: a, b",
    ]
    page = report.page(record)
    assert "**Missing, so not compared: scvi-tools**: no wheel" in page
    assert "**Not measured**: No module named 'duet'" in page


def test_the_script_for_a_gpu_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a CPU can tell: the share of the bandwidth, of the eager cases."""
    eager = {key: limits for key, limits in density_measures.LIMITS.items() if key[1] == "eager"}
    monkeypatch.setattr(density_measures, "LIMITS", eager)
    found = density.accelerator("cpu", pairs=1, rows=8)
    assert [r["what"] for r in found["rows"]] == ["all full size, eager", "scale and logits per gene, eager"]
    assert all(0 < r["figure"] < 1 for r in found["rows"])
    assert "GB/s" in density.show_rows(found)


def test_another_wheel_than_the_released_one_is_refused(tmp_path: pathlib.Path) -> None:
    wheel = tmp_path / "scvi.whl"
    wheel.write_bytes(b"another")
    with pytest.raises(ImportError, match=r"is not the released wheel: its sha256 is .* Delete it"):
        scvi_class._checked(wheel)


def test_a_page_without_marks_is_refused(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- measured: a -->\n<!-- end of a -->\nrest\n")
    results.quote(page, "a", "one")
    results.quote(page, "a", "two\nlines")
    assert results.quoted(page, "a") == "two\nlines"
    assert page.read_text() == "<!-- measured: a -->\ntwo\nlines\n<!-- end of a -->\nrest\n"
    with pytest.raises(ValueError, match="lacks <!-- measured: b -->"):
        results.quote(page, "b", "one")
