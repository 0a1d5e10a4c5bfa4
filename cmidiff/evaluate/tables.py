"""The tables of a report in every format: figures, paired differences, and how the units ended."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from cmidiff.evaluate.comparison import DASH, Comparison, Entry, Line, Quality, Verdict
from cmidiff.statistics import Estimate, Paired

MARKS: dict[Verdict, str] = {"better": "▲", "worse": "▼", "open": "", "untested": ""}
LEFT = ("metric", "task")  # columns of words


class Field(NamedTuple):
    """A cell of a table.

    Attributes:
        text: its figure.
        below: a second line.
        verdict: whether CMI is better or worse there.
    """

    text: str
    below: str = ""
    verdict: Verdict = "untested"

    @property
    def mark(self) -> str:
        return MARKS[self.verdict]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: its name.
        note: a sentence on how to read it.
        header: the names of the columns after the first, which names the row.
        groups: rows that belong together, those of a solver: (name, fields).
    """

    title: str
    note: str
    header: list[str]
    groups: list[list[tuple[str, list[Field]]]]


def list_figures(comparison: Comparison) -> list[Table]:
    """A table for each metric: solvers by tasks."""

    def fields(line: Line, quality: Quality) -> Iterator[Field]:
        for task in comparison.tasks:
            entry = comparison.entry(line, task, quality)
            delta = f"Δ {quality.text(entry.paired.difference.mean, sign=True)}" if entry.paired else ""
            yield Field(_figure(quality, entry, comparison.usable), delta, entry.verdict(quality))

    return [
        Table(
            f"{quality.title} ({quality.metric.units + ', ' if quality.metric.units else ''}{quality.direction})",
            _describe(comparison, quality),
            comparison.tasks,
            [
                [(comparison.label(line), list(fields(line, quality))) for line in lines]
                for lines in _groups(comparison)
            ],
        )
        for quality in comparison.present
    ]


def list_differences(comparison: Comparison) -> list[Table]:
    """A table for each task: CMI minus base, pair by pair."""
    header = ["metric", "difference [95% interval]", "p", "p corrected", "better : worse : same", "images"]
    header.append("pairs short")

    def fields(quality: Quality, entry: Entry, pair: Paired) -> Iterator[Field]:
        yield Field(quality.title if quality.target is None else f"distance of {quality.title} to {quality.target:.3g}")
        yield Field(_difference(quality, pair.difference), verdict=entry.verdict(quality))
        wins = "" if entry.network else f"{pair.better} : {pair.worse} : {pair.same}"
        for text in (_probability(pair.p), _probability(entry.corrected), wins):
            yield Field(text if quality.tested else "")
        yield Field(str(pair.difference.n))
        yield Field(str(entry.incomplete or ""))

    def rows(lines: list[Line], task: str) -> Iterator[tuple[str, list[Field]]]:
        for line in lines:
            for quality in comparison.present:
                entry = comparison.entry(line, task, quality)
                if entry.paired is not None:
                    yield comparison.label(line, task), list(fields(quality, entry, entry.paired))

    return [
        Table(task, "", header, [group for lines in _groups(comparison) if (group := list(rows(lines, task)))])
        for task in comparison.tasks
    ]


def list_endings(comparison: Comparison) -> Table:
    """How the units ended, and what they cost."""
    header = ["task", "finished", "diverged", "failed", "missing", "single samples diverged", "passes", "seconds"]

    def rows(lines: list[Line]) -> Iterator[tuple[str, list[Field]]]:
        for line in lines:
            for task in comparison.tasks:
                if (tally := comparison.tally(line, task)) is not None:
                    counts = (tally.ok, tally.diverged, tally.failed, tally.pending, tally.samples_diverged)
                    cost = (_cost(tally.passes, 0), _cost(tally.seconds, 2))
                    yield comparison.label(line, task), [Field(word) for word in (task, *map(str, counts), *cost)]

    return Table("", "", header, [list(rows(lines)) for lines in _groups(comparison)])


def _groups(comparison: Comparison) -> list[list[Line]]:
    """The lines of each solver."""
    solvers = dict.fromkeys(line.solver for line in comparison.lines)
    return [[line for line in comparison.lines if line.solver == solver] for solver in solvers]


def _describe(comparison: Comparison, quality: Quality) -> str:
    """What a metric is; for one figure of a whole cell, also of which features and how many images."""
    whole = [e for (_, name), e in comparison.entries.items() if name == quality.name and e.network and e.value]
    if not whole:
        return quality.description
    images = sorted({entry.value.n for entry in whole if entry.value})
    count = f"{images[0]}" if len(images) == 1 else f"{images[0]} to {images[-1]}"
    how = "tested by a bootstrap over images" if any(e.paired for e in whole) else "without interval or test"
    return (
        f"{quality.description} One figure of a whole cell, {how}; of {count} images, by the "
        f"features of {', '.join(sorted({entry.network for entry in whole}))}."
    )


def _figure(quality: Quality, entry: Entry, usable: int) -> str:
    """Mean, half interval, and the number of images where they are not all."""
    if entry.value is None:
        return DASH
    half = "" if entry.value.half is None else f" ± {quality.text(entry.value.half)}"
    some = "" if entry.value.n == usable else f" ({entry.value.n} of {usable})"
    return f"{quality.text(entry.value.mean)}{half}{some}"


def _difference(quality: Quality, found: Estimate) -> str:
    """Mean difference and its interval."""
    mean, low, high = (quality.text(value, sign=True) for value in (found.mean, found.low, found.high))
    return mean if found.half is None else f"{mean} [{low}, {high}]"


def _cost(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else DASH


def _probability(p: float | None) -> str:
    if p is None:
        return "none"
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"
