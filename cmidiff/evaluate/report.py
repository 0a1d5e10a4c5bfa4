"""The report of a run, in the four forms people ask for: a page, Markdown, the paper's LaTeX table, and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cmidiff import files
from cmidiff.evaluate import html, latex, markdown
from cmidiff.evaluate.cases import cases
from cmidiff.evaluate.comparison import Comparison, compare
from cmidiff.evaluate.database import FILE, Results, UnitRow
from cmidiff.evaluate.plots import Plot, plots

COMMAND = "report"
PAGE, TEXT, TABLE, CELLS, UNITS, FIGURES = "report.html", "report.md", "table.tex", "cells.csv", "units.csv", "figures"


def report(run: Path, output: Path | None = None, *, overwrite: bool = False) -> tuple[Comparison, dict[Path, str]]:
    """Write the report of a run, finished or not; an earlier report in the folder is replaced.

    Args:
        run: folder that ``cmidiff evaluate --out`` wrote.
        output: folder of the report; ``run / "report"`` without it.
        overwrite: whether files of another origin are replaced, too.

    Returns:
        The figures, and what was written with what it is.

    Raises:
        RunError: if there is no run in the folder, or one of another schema.
        ValueError: if it would replace a file of another origin.
        OSError: if the report cannot be written.
    """
    with Results(run) as results:
        comparison, units = compare(results), results.units()
        shown = cases(results, comparison)
    folder = run / "report" if output is None else output
    name = f"{comparison.about['config']['name']} ({run.resolve().name})"
    drawn = plots(comparison)
    figures = _paths(drawn)
    written = {
        PAGE: (html.render(comparison, name, drawn, shown), "everything on one page, for a browser"),
        TEXT: (markdown.render(comparison, name, figures), "the tables as Markdown"),
        TABLE: (latex.render(comparison), "the paper's table, for LaTeX"),
    }
    contents = {file: text.encode() for file, (text, _) in written.items()} | {path: p.light for path, p in figures}
    contents |= {CELLS: _csv(_cells(comparison)), UNITS: _csv(_units(units))}
    files.check_outputs([folder / file for file in contents], [run / FILE], command=COMMAND, overwrite=overwrite)
    for file, content in contents.items():
        files.write(folder / file, content, COMMAND)
    meanings = {file: meaning for file, (_, meaning) in written.items()}
    meanings |= {CELLS: "every figure, difference and test", UNITS: "every unit with its scores"}
    return comparison, {folder / file: meaning for file, meaning in meanings.items()}


def _paths(drawn: Sequence[Plot]) -> list[tuple[str, Plot]]:
    """(path relative to the report, figure)."""
    tasks = list(dict.fromkeys(plot.task for plot in drawn))
    named = []
    for plot in drawn:
        task = re.sub(r"[^A-Za-z0-9-]+", "-", plot.task)[:60]
        path = f"{FIGURES}/{tasks.index(plot.task) + 1}-{task}-{plot.name}.svg"
        named.append((path, plot))
    return named


def _cells(comparison: Comparison) -> Iterable[dict[str, Any]]:
    for (cell, metric), entry in comparison.entries.items():
        quality = next(q for q in comparison.qualities if q.name == metric)
        value, pair = entry.value, entry.paired
        difference = pair.difference if pair else None
        tested = pair if quality.tested else None
        yield {
            **cell._asdict(),
            "metric": metric,
            "direction": quality.direction,
            "images": value.n if value else 0,
            "mean": value.mean if value else None,
            "low": value.low if value else None,
            "high": value.high if value else None,
            "pairs": difference.n if difference else None,
            "difference": difference.mean if difference else None,
            "difference_low": difference.low if difference else None,
            "difference_high": difference.high if difference else None,
            "p": tested.p if tested else None,
            "p_corrected": entry.corrected,
            "better": tested.better if tested else None,
            "worse": tested.worse if tested else None,
            "same": tested.same if tested else None,
            "incomplete_pairs": entry.incomplete if cell.cmi else None,
            "verdict": entry.verdict(quality),
            "network": entry.network,
        }


def _units(units: Sequence[UnitRow]) -> Iterable[dict[str, Any]]:
    metrics = list(dict.fromkeys(name for row in units for name in row.scores))
    for row in units:
        yield {
            **row.unit._asdict(),
            "status": row.status,
            "error": row.error,
            "samples_diverged": row.diverged,
            **{name: _known(getattr(row, name)) for name in ("evaluations", "gradients", "seconds")},
            **{name: _known(row.scores.get(name, math.nan)) for name in metrics},
        }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _csv(rows: Iterable[dict[str, Any]]) -> bytes:
    rows, file = list(rows), io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]) if rows else ["task"])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()
