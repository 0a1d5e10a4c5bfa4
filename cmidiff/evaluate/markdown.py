"""The report as Markdown: tables that read as text, too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from cmidiff.evaluate import summary
from cmidiff.evaluate.comparison import Comparison, Quality
from cmidiff.evaluate.plots import Plot


def render(comparison: Comparison, name: str, plots: Sequence[tuple[str, Plot]]) -> str:
    """The whole report.

    Args:
        name: of the run.
        plots: (path relative to the report, figure).
    """
    return "\n".join(_blocks(comparison, name, plots))


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in a table, too."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&$])", r"\\\1", " ".join(text.split()))


def _blocks(comparison: Comparison, name: str, plots: Sequence[tuple[str, Plot]]) -> Iterator[str]:
    yield f"# {escaped(name)}\n\n{summary.verdict(comparison)}\n"
    yield from (f"- {escaped(key)}: {escaped(value)}" for key, value in summary.facts(comparison))
    if caveats := summary.caveats(comparison):
        yield "\n**What these figures do not show**\n"
        yield from (f"- {escaped(text)}" for text in caveats)
    yield f"\n{escaped(summary.rule(comparison))}\n"
    for quality in comparison.present:
        yield _figures(comparison, quality)
    yield f"## CMI minus base, pair by pair\n\n{summary.PAIRS}\n"
    for task in comparison.tasks:
        yield _differences(comparison, task)
    yield _endings(comparison)
    yield f"## Quality against cost\n\n{summary.BARS}\n"
    yield from (f"![{escaped(plot.alt)}]({path})\n" for path, plot in plots)
    yield "## Configuration\n"
    yield from (f"    {line}" for line in json.dumps(comparison.about["config"], indent=2).split("\n"))


def _figures(comparison: Comparison, quality: Quality) -> str:
    rows = []
    for line in comparison.lines:
        row = [escaped(comparison.label(line))]
        for task in comparison.tasks:
            entry = comparison.entry(line, task, quality)
            text = summary.figure(quality, entry, comparison.usable)
            text = ", ".join(filter(None, (text, summary.delta(quality, entry))))
            mark = summary.MARKS[entry.verdict(quality)]
            row.append(f"**{text} {mark}**" if mark else text)
        rows.append(row)
    units = f"{quality.metric.units}, " if quality.metric.units else ""
    title = (
        f"## {quality.title} ({units}{quality.direction})\n\n{escaped(summary.description(comparison, quality))}\n\n"
    )
    return title + _table(["", *map(escaped, comparison.tasks)], rows)


def _differences(comparison: Comparison, task: str) -> str:
    header = [
        "",
        "metric",
        "difference [95% interval]",
        "p",
        "p corrected",
        "better : worse : same",
        "images",
        "pairs short",
    ]
    rows = []
    for line in (line for line in comparison.lines if line.cmi):
        for quality in (q for q in comparison.present if comparison.entry(line, task, q).paired):
            entry = comparison.entry(line, task, quality)
            if (pair := entry.paired) is None:
                continue
            mark = summary.MARKS[entry.verdict(quality)]
            tested = [summary.probability(p) if quality.tested else "" for p in (pair.p, entry.corrected)]
            wins = f"{pair.better} : {pair.worse} : {pair.same}" if quality.tested else ""
            difference = f"{summary.difference(quality, entry)} {mark}".strip()
            short = str(entry.incomplete or "")
            rows.append(
                [
                    escaped(comparison.label(line, task)),
                    summary.compared(quality),
                    difference,
                    *tested,
                    wins,
                    str(pair.difference.n),
                    short,
                ]
            )
    return f"### {escaped(task)}\n\n" + _table(header, rows)


def _endings(comparison: Comparison) -> str:
    header = ["", "task", "finished", "diverged", "failed", "missing", "single samples diverged", "passes", "seconds"]
    rows = []
    for line in comparison.lines:
        for task in comparison.tasks:
            if (tally := comparison.tally(line, task)) is None:
                continue
            counts = (tally.ok, tally.diverged, tally.failed, tally.pending, tally.samples_diverged)
            cost = summary.cost(tally.passes, 0), summary.cost(tally.seconds, 2)
            rows.append([escaped(comparison.label(line, task)), escaped(task), *map(str, counts), *cost])
    return f"## How the units ended, and what they cost\n\n{summary.COST}\n\n" + _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
