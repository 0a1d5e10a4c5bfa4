"""CMI against its base solver, cell by cell: the figures that every form of the report shows.

A *pair* is one image and seed, restored with CMI and without from the same measurement and random numbers. Figures of
an image are averaged over its seeds; a difference is taken over complete pairs alone, and those that lack a side are
counted. The p-values of all cells (task x solver x CMI x metric with a direction) are corrected together.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal, NamedTuple

from cmidiff.evaluate.database import Results
from cmidiff.evaluate.records import Cell, ImageRow, Metric, UnitRow
from cmidiff.statistics import ALPHA, Estimate, Paired, compare_pairs, compare_sets, estimate, holm, least_p

DIGITS = {"psnr": 2, "mean_psnr": 2, "misfit": 2, "crps": 4, "fid": 1, "kid": 4}  # decimals; 3 for all others
TITLES = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "crps": "CRPS",
    "lpips": "LPIPS",
    "fid": "FID",
    "kid": "KID",
    "mean_psnr": "PSNR of the mean",
    "mean_ssim": "SSIM of the mean",
}
ARROWS = {"higher": "↑", "lower": "↓", "none": ""}
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
    def direction(self) -> str:
        """In words."""
        if self.target is not None:
            return f"nearest to {self.target:.3g} is better"
        return "no direction, not tested" if self.metric.better == "none" else f"{self.metric.better} is better"

    @property
    def arrow(self) -> str:
        """In one sign."""
        return f"→ {self.target:.3g}" if self.target is not None else ARROWS[self.metric.better]

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
        digits = DIGITS.get(self.name, 3)
        value = round(value, digits) + 0.0  # no minus before zero
        return f"{value:{'+' if sign and value else ''}.{digits}f}".replace("-", MINUS)


@dataclass(frozen=True)
class Entry:
    """What is known of one metric in one cell.

    Attributes:
        value: over images; None where no finished unit has a figure.
        paired: against the base, for cells with CMI.
        corrected: Holm's p over all cells of the report.
        incomplete: pairs that lack a side.
        network: by which features a figure of the whole cell (FID) was computed.
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

    @property
    def images_needed(self) -> int:
        """The least number of complete pairs with which any cell could be significant."""
        return next(n for n in count(2) if self.tests * least_p(n) < ALPHA)

    @property
    def most_pairs(self) -> int:
        """Images of the cell that has most of them."""
        return max((e.paired.difference.n for e in self.entries.values() if e.paired), default=0)

    def total(self, status: str) -> int:
        """Units, or diverged samples, of all cells."""
        return sum(getattr(tally, status) for tally in self.tallies.values())

    def sides(self, task: str) -> list[tuple[Line, Line | None]]:
        """(base, CMI) of each solver where one pair has to stand for it: most steps, the first eta of the grid."""
        found = []
        for solver in dict.fromkeys(line.solver for line in self.lines):
            mine = [line for line in self.lines if line.solver == solver and line.cell(task)]
            steps = max((line.steps for line in mine), default=0)
            base, cmi = (next((o for o in mine if (o.steps, o.cmi) == (steps, on)), None) for on in (False, True))
            if base is not None:
                found.append((base, cmi))
        return found

    def entry(self, line: Line, task: str, quality: Quality) -> Entry:
        cell = line.cell(task)
        return Entry(None) if cell is None else self.entries.get((cell, quality.name), Entry(None))

    def tally(self, line: Line, task: str) -> Tally | None:
        cell = line.cell(task)
        return None if cell is None else self.tallies.get(cell)

    def label(self, line: Line, task: str | None = None) -> str:
        """The name of a row: steps only where they differ between rows, eta only where it differs at all.

        Args:
            line: the row.
            task: where the row is of one task alone, for which eta is known.
        """
        mine = {eta for name, eta in line.etas if task in (None, name)}
        details = []
        if line.cmi and len(self.strengths) > 1:
            details.append(f"η = {mine.pop():g}" if len(mine) == 1 else "η by task")
        if len({other.steps for other in self.lines}) > 1:
            details.append(f"{line.steps} steps")
        return ", ".join([line.solver + (" + CMI" if line.cmi else ""), *details])


def compare(results: Results) -> Comparison:
    """All figures of a run, finished or not."""
    units, about = results.units(), results.about()
    by_cell: dict[Cell, list[UnitRow]] = defaultdict(list)
    for row in units:
        by_cell[row.unit.cell].append(row)
    qualities = [Quality(metric, _target(metric, about)) for metric in results.metrics()]
    entries = {(cell, q.name): _enter(by_cell, cell, q) for cell in by_cell for q in qualities}
    for score in results.cell_scores():
        value = Estimate(score.images, score.value) if math.isfinite(score.value) else None
        pair, known = None, math.isfinite(score.difference + score.error)
        if known:
            higher = any(q.name == score.metric and q.metric.better == "higher" for q in qualities)
            pair = compare_sets(score.difference, score.error, score.pairs, higher_is_better=higher)
        entries[score.cell, score.metric] = Entry(value, pair, network=score.network)
    return Comparison(
        about=about,
        images=results.images(),
        tasks=list(dict.fromkeys(row.unit.task for row in units)),
        lines=_list_lines(by_cell),
        qualities=qualities,
        entries=_correct(entries, {q.name for q in qualities if q.tested}),
        tallies={cell: _tally(rows) for cell, rows in by_cell.items()},
        faults=Counter(row.error or "no reason given" for row in units if row.status == "failed").most_common(),
    )


def _target(metric: Metric, about: Mapping[str, Any]) -> float | None:
    """The misfit of the truth is 1; a truth drawn like the K samples lies within them in (K - 1) of (K + 1) cases."""
    samples = about["config"]["samples"]
    targets = {"misfit": 1.0, "coverage": (samples - 1) / (samples + 1)}
    return targets.get(metric.name) if metric.better == "none" else None


def _list_lines(cells: Collection[Cell]) -> list[Line]:
    """Rows by solver and steps; the base first, then CMI: one row if each task has one eta, else one for each eta."""
    lines = []
    for solver in dict.fromkeys(cell.solver for cell in cells):
        for steps in sorted({cell.steps for cell in cells if cell.solver == solver}):
            for cmi in (False, True):
                etas = [(c.task, c.eta) for c in cells if (c.solver, c.steps, c.cmi) == (solver, steps, cmi)]
                rows = [[pair for pair in etas if pair[1] == eta] for eta in dict.fromkeys(eta for _, eta in etas)]
                if etas and len(dict(etas)) == len(etas):
                    rows = [etas]
                lines += [Line(solver, cmi, steps, tuple(row)) for row in rows]
    return lines


def _find(rows: Sequence[UnitRow], name: str) -> dict[tuple[str, int], float]:
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


def _enter(by_cell: Mapping[Cell, Sequence[UnitRow]], cell: Cell, quality: Quality) -> Entry:
    figures = _find(by_cell[cell], quality.name)
    value = estimate(_by_image(figures)) if figures else None
    if not cell.cmi or cell.base not in by_cell:
        return Entry(value)
    base = _find(by_cell[cell.base], quality.name)
    both = {key: quality.compared(figures[key]) - quality.compared(base[key]) for key in figures if key in base}
    pairs = compare_pairs(_by_image(both), higher_is_better=quality.metric.better == "higher") if both else None
    return Entry(value, pairs, incomplete=len(by_cell[cell]) - len(both) if figures or base else 0)


def _correct(entries: dict[tuple[Cell, str], Entry], tested: set[str]) -> dict[tuple[Cell, str], Entry]:
    p = {key: e.paired.p for key, e in entries.items() if key[1] in tested and e.paired and e.paired.p is not None}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    return {key: replace(entry, corrected=corrected.get(key)) for key, entry in entries.items()}


def _tally(rows: Sequence[UnitRow]) -> Tally:
    status, ok = Counter(row.status for row in rows), [row for row in rows if row.status == "ok"]
    return Tally(
        **{name: status[name] for name in ("ok", "diverged", "failed", "pending")},
        samples_diverged=sum(row.diverged for row in ok),
        passes=_mean([row.evaluations + row.gradients for row in ok]),
        seconds=_mean([row.seconds for row in ok]),
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan
