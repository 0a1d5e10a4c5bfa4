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
from cmidiff.evaluate import latex, render
from cmidiff.evaluate.cases import list_cases
from cmidiff.evaluate.comparison import Comparison, compare
from cmidiff.evaluate.database import FILE, Results
from cmidiff.evaluate.plots import draw_plots
from cmidiff.evaluate.records import UnitRow

COMMAND = "report"


def write_report(
    run: Path, output: Path | None = None, *, overwrite: bool = False
) -> tuple[Comparison, dict[Path, str]]:
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
        cases = list_cases(results, comparison)
    folder = run / "report" if output is None else output
    name = f"{comparison.about['config']['name']} ({run.resolve().name})"
    plots = draw_plots(comparison)
    figures = {
        f"figures/{comparison.tasks.index(p.task) + 1}-{re.sub('[^A-Za-z0-9-]+', '-', p.task)[:60]}-{p.name}.svg": p
        for p in plots
    }
    written = {
        "report.html": (render.render_page(comparison, name, plots, cases), "everything on one page, for a browser"),
        "report.md": (render.render_markdown(comparison, name, list(figures.items())), "the tables as Markdown"),
        "table.tex": (latex.render(comparison), "the paper's table, for LaTeX"),
        "cells.csv": (_to_csv(_cells(comparison)), "every figure, difference and test"),
        "units.csv": (_to_csv(_units(units)), "every unit with its scores"),
    }
    contents = {file: text.encode() for file, (text, _) in written.items()} | {
        path: p.light for path, p in figures.items()
    }
    files.check_outputs([folder / file for file in contents], [run / FILE], command=COMMAND, overwrite=overwrite)
    for file, content in contents.items():
        files.write(folder / file, content, COMMAND)
    return comparison, {folder / file: meaning for file, (_, meaning) in written.items()}


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
            **{name: getattr(value, name, None) for name in ("mean", "low", "high")},
            "pairs": getattr(difference, "n", None),
            "difference": getattr(difference, "mean", None),
            "difference_low": getattr(difference, "low", None),
            "difference_high": getattr(difference, "high", None),
            "p": getattr(tested, "p", None),
            "p_corrected": entry.corrected,
            **{name: getattr(tested, name, None) for name in ("better", "worse", "same")},
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


def _to_csv(rows: Iterable[dict[str, Any]]) -> str:
    rows, file = list(rows), io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]) if rows else ["task"])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
