"""Differential expression from cells to a folder: read, fit, test, check, draw, write."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pyro_zilognormal.singlecell.check import CREDIBLE
from pyro_zilognormal.singlecell.contrasts import Contrast, parse_contrasts
from pyro_zilognormal.singlecell.de import HurdleDE
from pyro_zilognormal.singlecell.genes import GeneFit, gene_fits
from pyro_zilognormal.singlecell.outputs import OutputFolder
from pyro_zilognormal.singlecell.provenance import check_fractions
from pyro_zilognormal.singlecell.variables import column
from pyro_zilognormal.svi import Checkpoint, FitResult, Progress

_GENES_DRAWN = 6
_SECONDS_A_SAVE = 10.0


@dataclass(frozen=True)
class Job:
    """What is asked.

    Attributes:
        source: where the cells are from, in words or as a path.
        formula: what explains the cells.
        contrasts: (column, test level, reference level), one or more.
        out: the folder that results go to.
        model: further arguments of :class:`HurdleDE`.
        delta: changes of at most so many log2 units are of no interest.
        fdr: call genes up to this expected false discovery rate.
        seed: of everything random.
        steps: of the fit; None for the default.
        resume: whether to go on from the checkpoint in the folder.
        progress: whether to show a bar; None where standard error is a terminal.
        command: the line that asked for it.
    """

    source: str
    formula: str
    contrasts: Sequence[tuple[str, str, str]]
    out: Path
    model: dict[str, Any] = field(default_factory=dict)
    delta: float = 0.25
    fdr: float = 0.05
    seed: int = 0
    steps: int | None = None
    resume: bool = False
    progress: bool | None = None
    command: str = ""


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked, once it is known to make sense of these cells.

    Attributes:
        job: what is asked.
        cells: an AnnData or CellFile, which stays open.
        de: the model, not fitted yet.
        contrasts: what is compared.
        warnings: what was warned of so far.
        seconds: spent on each part so far.
    """

    job: Job
    cells: Any
    de: HurdleDE
    contrasts: list[Contrast]
    warnings: list[str]
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class Answer:
    """What was found.

    Attributes:
        job: what was asked.
        de: the fitted model.
        result: of the fit.
        contrasts: what is compared.
        table: what :meth:`HurdleDE.test` returns.
        check: what :meth:`HurdleDE.predictive_check` returns of all conditions that are compared.
        genes: the surest genes of each contrast, to be drawn.
        warnings: what was warned of.
        seconds: spent on each part.
    """

    job: Job
    de: HurdleDE
    result: FitResult
    contrasts: list[Contrast]
    table: Any
    check: Any
    genes: list[GeneFit]
    warnings: list[str]
    seconds: dict[str, float]

    def of(self, contrast: str) -> Any:
        """Return the rows of a contrast."""
        return self.table[self.table["contrast"] == contrast]


def ask(job: Job, cells: Any) -> Question:
    """Read the cells, and see that what is asked makes sense of them; nothing is written.

    Args:
        job: what is asked.
        cells: an AnnData or CellFile.
    """
    seconds: dict[str, float] = {}
    with _warnings() as said, _timed(seconds, "read"):
        check_fractions(job.delta, job.fdr, CREDIBLE)
        de = HurdleDE(cells, job.formula, **job.model)
        contrasts = parse_contrasts(de.cells.design, list(job.contrasts))
    return Question(job, cells, de, contrasts, said, seconds)


def answer(question: Question, folder: OutputFolder) -> Answer:
    """Fit the model, saving it to the folder's checkpoint, and return what it says."""
    job, de, contrasts, seconds = question.job, question.de, question.contrasts, dict(question.seconds)
    with _warnings() as said:
        with _timed(seconds, "fit"):
            result = _fit(job, de, folder)
        with _timed(seconds, "summarise"):
            table = de.test(contrasts, delta=job.delta, fdr=job.fdr)
            ends = {c.name: c for contrast in contrasts for c in (contrast.test, contrast.reference)}
            check = de.predictive_check(*ends.values(), credible=CREDIBLE)
            genes = _genes(question, table)
    return Answer(job, de, result, contrasts, table, check, genes, [*question.warnings, *said], seconds)


def _fit(job: Job, de: HurdleDE, folder: OutputFolder) -> FitResult:
    checkpoint = Checkpoint(folder.checkpoint, seconds=_SECONDS_A_SAVE, resume=job.resume)
    fitted = de.fit(seed=job.seed, steps=job.steps, callbacks=[Progress(job.progress)], checkpoint=checkpoint)
    return cast(FitResult, fitted.result)


def _genes(question: Question, table: Any) -> list[GeneFit]:
    """Return the surest genes of each contrast."""
    de, name = question.de, question.de.settings["offset"]
    offset = None if name is None else column(question.cells.obs, name, "offset").to_numpy()
    found: list[GeneFit] = []
    most = max(2, _GENES_DRAWN // len(question.contrasts))
    for contrast in question.contrasts:
        of_it = table[(table["contrast"] == contrast.name) & (table["status"] != "all_zero")]
        if len(of_it):
            found += gene_fits(de, of_it["variable"].head(most).tolist(), contrast, offset=offset)
    return found


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - start


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what users are warned of, each once; what is meant for programmers is left out."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield said
    said.extend(dict.fromkeys(" ".join(str(w.message).split()) for w in caught))
