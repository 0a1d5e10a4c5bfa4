"""CMI against its base solver, cell by cell: the figures that every form of the report shows.

A *pair* is one image and seed, restored with CMI and without from the same measurement and random numbers. Figures of
an image are averaged over its seeds; a difference is taken over complete pairs alone, and those that lack a side are
counted. The p-values of all cells (task x solver x CMI x metric with a direction) are corrected together.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from cmidiff.evaluate.database import Cell, CellScore, ImageRow, Metric, Results, UnitRow
from cmidiff.statistics import ALPHA, Estimate, Paired, compare_pairs, estimate, holm, least_p

DIGITS = {"psnr": 2, "mean_psnr": 2, "misfit": 2, "crps": 4, "fid": 1}  # decimals; 3 for all others
TITLES = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "crps": "CRPS",
    "lpips": "LPIPS",
    "fid": "FID",
    "mean_psnr": "PSNR of the mean",
    "mean_ssim": "SSIM of the mean",
}
MINUS, DASH = "\u2212", "\u2013"

Verdict = Literal["better", "worse", "open", "untested"]


@dataclass(frozen=True)
class Quality:
    """A metric and what is good in it.

    Attributes:
        target: the best value where neither higher nor lower is better; None elsewhere.
    """

    metric: Metric
    target: float | None = None

    @property
    def name(self) -> str:
        return self.metric.name

    @property
    def title(self) -> str:
        return TITLES.get(self.name, self.name.replace("_", " ").capitalize())

    @property
    def description(self) -> str:
        """As a sentence."""
        text = self.metric.description
        return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")

    @property
    def digits(self) -> int:
        return DIGITS.get(self.name, 3)

    @property
    def direction(self) -> str:
        """In words."""
        if self.target is not None:
            return f"nearest to {self.target:.3g} is better"
        return "no direction, not tested" if self.metric.better == "none" else f"{self.metric.better} is better"

    @property
    def arrow(self) -> str:
        """In one sign."""
        if self.target is not None:
            return f"→ {self.target:.3g}"
        return {"higher": "↑", "lower": "↓", "none": ""}[self.metric.better]

    @property
    def tested(self) -> bool:
        return self.metric.better != "none" or self.target is not None

    def compared(self, value: float) -> float:
        """What differences are taken of: the value, or its distance to the target."""
        return value if self.target is None else abs(value - self.target)

    def text(self, value: float | None, *, sign: bool = False) -> str:
        """A figure with the metric's decimals."""
        if value is None:
            return DASH
        value = round(value, self.digits) + 0.0  # no minus before zero
        return f"{value:{'+' if sign and value else ''}.{self.digits}f}".replace("-", MINUS)


@dataclass(frozen=True)
class Entry:
    """What is known of one metric in one cell.

    Attributes:
        value: over images; None where no finished unit has a figure.
        paired: against the base, for cells with CMI.
        corrected: Holm's p over all cells of the report.
        incomplete: pairs that lack a side.
        network: what features a figure of the whole cell (FID) is of.
    """

    value: Estimate | None
    paired: Paired | None = None
    corrected: float | None = None
    incomplete: int = 0
    network: str = ""

    def verdict(self, quality: Quality) -> Verdict:
        """``better`` or ``worse`` only where the corrected p is below 0.05 and mean and ranks point the same way."""
        if self.paired is None or self.corrected is None or not quality.tested:
            return "untested"
        gain = self.paired.difference.mean * (1 if quality.metric.better == "higher" else -1)
        if self.corrected >= ALPHA or gain * self.paired.ranks <= 0:
            return "open"
        return "better" if gain > 0 else "worse"


@dataclass(frozen=True)
class Tally:
    """How the units of a cell ended, and what they cost.

    Attributes:
        ok, diverged, failed, pending: units; ``diverged`` means all samples of the unit did.
        samples_diverged: samples of the units that are ok, left out of their figures.
        passes: of the network, forward and backward, per sample; mean over finished units, NaN without any.
        seconds: per unit, mean over finished units, NaN without any.
    """

    ok: int
    diverged: int
    failed: int
    pending: int
    samples_diverged: int
    passes: float
    seconds: float

    @property
    def units(self) -> int:
        return self.ok + self.diverged + self.failed + self.pending


class Line(NamedTuple):
    """A row of the table.

    Attributes:
        etas: (task, eta), for the tasks that have this row: eta may be chosen for each task.
    """

    solver: str
    cmi: bool
    steps: int
    etas: tuple[tuple[str, float], ...]

    def cell(self, task: str) -> Cell | None:
        eta = dict(self.etas).get(task)
        return None if eta is None else Cell(task, self.solver, self.cmi, eta, self.steps)


@dataclass(frozen=True)
class Comparison:
    """All figures of a run."""

    about: dict[str, Any]
    images: list[ImageRow]
    tasks: list[str]
    lines: list[Line]
    qualities: list[Quality]
    entries: Mapping[tuple[Cell, str], Entry]
    tallies: Mapping[Cell, Tally]
    faults: list[tuple[str, int]]

    @property
    def present(self) -> list[Quality]:
        """Metrics with a figure somewhere."""
        known = {name for (_, name), entry in self.entries.items() if entry.value is not None}
        return [quality for quality in self.qualities if quality.name in known]

    @property
    def absent(self) -> list[Quality]:
        """Metrics that say why they have none."""
        present = self.present
        return [q for q in self.qualities if q not in present and q.metric.absent]

    @property
    def usable(self) -> int:
        """Images that take part."""
        return sum(image.error is None for image in self.images)

    @property
    def seeds(self) -> bool:
        """Whether there is more than one seed per image."""
        return max((tally.units for tally in self.tallies.values()), default=0) > self.usable

    @property
    def strengths(self) -> list[float]:
        """Every eta of CMI in the run."""
        return sorted({eta for line in self.lines if line.cmi for _, eta in line.etas})

    @property
    def tests(self) -> int:
        """Cells whose p-values are corrected together."""
        return sum(entry.corrected is not None for entry in self.entries.values())

    @property
    def verdicts(self) -> Counter[Verdict]:
        quality = {q.name: q for q in self.qualities}
        return Counter(entry.verdict(quality[name]) for (_, name), entry in self.entries.items())

    def sides(self, task: str) -> list[tuple[Line, Line | None]]:
        """(base, CMI) of each solver where one pair has to stand for it: most steps, the first eta of the grid."""
        found = []
        for solver in dict.fromkeys(line.solver for line in self.lines):
            mine = [line for line in self.lines if line.solver == solver and line.cell(task)]
            steps = max((line.steps for line in mine), default=0)
            base = next((line for line in mine if line.steps == steps and not line.cmi), None)
            if base is not None:
                found.append((base, next((line for line in mine if line.steps == steps and line.cmi), None)))
        return found

    @property
    def images_needed(self) -> int:
        """The least number of complete pairs with which any cell could be significant."""
        n = 2
        while self.tests * least_p(n) >= ALPHA:
            n += 1
        return n

    @property
    def most_pairs(self) -> int:
        """Images of the cell that has most of them."""
        return max((e.paired.difference.n for e in self.entries.values() if e.paired), default=0)

    def total(self, status: str) -> int:
        """Units, or diverged samples, of all cells."""
        return sum(getattr(tally, status) for tally in self.tallies.values())

    def entry(self, line: Line, task: str, quality: Quality) -> Entry:
        cell = line.cell(task)
        return Entry(None) if cell is None else self.entries.get((cell, quality.name), Entry(None))

    def tally(self, line: Line, task: str) -> Tally | None:
        cell = line.cell(task)
        return None if cell is None else self.tallies.get(cell)

    def label(self, line: Line, task: str | None = None) -> str:
        """What a row is called: steps only where they differ between rows, eta only where it differs at all.

        Args:
            task: where the row is of one task alone, for which eta is known.
        """
        mine = {eta for name, eta in line.etas if task in (None, name)}
        text = line.solver + (" + CMI" if line.cmi else "")
        details = []
        if line.cmi and len(self.strengths) > 1:
            details.append(f"η = {mine.pop():g}" if len(mine) == 1 else "η by task")
        if len({other.steps for other in self.lines}) > 1:
            details.append(f"{line.steps} steps")
        return f"{text}, {', '.join(details)}" if details else text


def compare(results: Results) -> Comparison:
    """All figures of a run, finished or not."""
    units = results.units()
    by_cell: dict[Cell, list[UnitRow]] = defaultdict(list)
    for row in units:
        by_cell[row.unit.cell].append(row)
    about = results.about()
    qualities = [Quality(metric, _target(metric, about)) for metric in results.metrics()]
    entries = {(cell, q.name): _entry(by_cell, cell, q) for cell in by_cell for q in qualities}
    entries |= {(score.cell, score.metric): _whole(score) for score in results.cell_scores()}
    return Comparison(
        about=about,
        images=results.images(),
        tasks=list(dict.fromkeys(row.unit.task for row in units)),
        lines=_lines(by_cell),
        qualities=qualities,
        entries=_corrected(entries, {q.name for q in qualities if q.tested}),
        tallies={cell: _tally(rows) for cell, rows in by_cell.items()},
        faults=Counter(row.error or "no reason given" for row in units if row.status == "failed").most_common(),
    )


def _target(metric: Metric, about: Mapping[str, Any]) -> float | None:
    """The misfit of the truth is 1; a truth drawn like the K samples lies within them in (K - 1) of (K + 1) cases."""
    if metric.better != "none" or metric.name not in ("misfit", "coverage"):
        return None
    count = about["config"]["samples"]
    return 1.0 if metric.name == "misfit" else (count - 1) / (count + 1)


def _lines(cells: Iterable[Cell]) -> list[Line]:
    """Rows by solver and steps; the base first, then CMI: one row if each task has one eta, else one for each eta."""
    cells = list(cells)
    lines = []
    for solver in dict.fromkeys(cell.solver for cell in cells):
        for steps in sorted({cell.steps for cell in cells if cell.solver == solver}):
            mine = [cell for cell in cells if (cell.solver, cell.steps) == (solver, steps)]
            for cmi in (False, True):
                etas = [(cell.task, cell.eta) for cell in mine if cell.cmi == cmi]
                lines += [Line(solver, cmi, steps, row) for row in _rows(etas)]
    return lines


def _rows(etas: Sequence[tuple[str, float]]) -> list[tuple[tuple[str, float], ...]]:
    if len({task for task, _ in etas}) == len(etas):
        return [tuple(etas)] if etas else []
    return [tuple(pair for pair in etas if pair[1] == eta) for eta in dict.fromkeys(eta for _, eta in etas)]


def _figures(rows: Sequence[UnitRow], name: str) -> dict[tuple[str, int], float]:
    """(image, seed) -> value, of the units that have one."""
    return {
        (row.unit.image, row.unit.seed): row.scores[name]
        for row in rows
        if row.status == "ok" and math.isfinite(row.scores.get(name, math.nan))
    }


def _by_image(figures: Mapping[tuple[str, int], float]) -> list[float]:
    """The mean over the seeds of each image."""
    found: dict[str, list[float]] = defaultdict(list)
    for (image, _), value in figures.items():
        found[image].append(value)
    return [math.fsum(values) / len(values) for values in found.values()]


def _entry(by_cell: Mapping[Cell, Sequence[UnitRow]], cell: Cell, quality: Quality) -> Entry:
    rows = by_cell[cell]
    figures = _figures(rows, quality.name)
    value = estimate(_by_image(figures)) if figures else None
    if not cell.cmi or cell.base not in by_cell:
        return Entry(value)
    base = _figures(by_cell[cell.base], quality.name)
    both = {key: quality.compared(figures[key]) - quality.compared(base[key]) for key in figures if key in base}
    found = compare_pairs(_by_image(both), higher_is_better=quality.metric.better == "higher") if both else None
    return Entry(value, found, incomplete=len(rows) - len(both) if figures or base else 0)


def _whole(score: CellScore) -> Entry:
    value = Estimate(score.images, score.value) if math.isfinite(score.value) else None
    return Entry(value, network=score.network)


def _corrected(entries: dict[tuple[Cell, str], Entry], tested: set[str]) -> dict[tuple[Cell, str], Entry]:
    p = {key: e.paired.p for key, e in entries.items() if key[1] in tested and e.paired and e.paired.p is not None}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    return {key: replace(entry, corrected=corrected.get(key)) for key, entry in entries.items()}


def _tally(rows: Sequence[UnitRow]) -> Tally:
    status = Counter(row.status for row in rows)
    ok = [row for row in rows if row.status == "ok"]
    passes = [row.evaluations + row.gradients for row in ok]
    return Tally(
        **{name: status[name] for name in ("ok", "diverged", "failed", "pending")},
        samples_diverged=sum(row.diverged for row in ok),
        passes=_mean(passes),
        seconds=_mean([row.seconds for row in ok]),
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan
