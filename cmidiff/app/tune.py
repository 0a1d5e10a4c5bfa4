"""A search at the command line: its progress, its table, and the preset it writes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from cmidiff import __version__
from cmidiff.app.show import progress
from cmidiff.loading import Loading
from cmidiff.prior.base import Denoiser
from cmidiff.statistics import estimate
from cmidiff.tuning import METRICS, Outcome, Preset, Report, Search, tune

DIGITS = {"psnr": 2, "crps": 4}


def run(search: Search, prior: Denoiser, study: Path) -> Outcome:
    """Run the search with a line of progress on standard error."""
    with progress(search.trials) as move:

        def show(report: Report) -> None:
            best = "" if report.best is None else f"best {search.metric} {report.best:.4f}; "
            move(report.number - 1, f"trial {report.number}/{search.trials}; {best}{report.doing}")

        return tune(search, prior, study, show)


def describe_search(search: Search, images: Path, prior: str, loading: Loading) -> dict[str, Any]:
    """Return what is searched, for the record."""
    where = {"images": images.name, "offset": search.images.index[0], "count": len(search.images)}
    names = ("steps", "metric", "trials", "group", "seed")
    task = {"task": search.task, "parameters": dict(search.parameters)}
    weights = {
        "prior": prior,
        "loading": loading.describe(),
        "prior_weights": search.prior_name,
        "base": str(search.space.base),
    }
    return {"cmidiff": __version__} | weights | task | where | {name: getattr(search, name) for name in names}


def make_preset(search: Search, outcome: Outcome, record: Mapping[str, Any]) -> Preset:
    """Return the preset of an outcome, with the figures it was chosen by and the command that makes it again."""
    figures = {
        row.name: {"setting": str(row.setting), "tuning": round(_mean(row.tuning), 4)}
        | {f"hold_out_{metric}": round(_mean(values), 4) for metric, values in row.held_out.items()}
        for row in outcome.rows
    }
    command = shlex.join(["cmidiff", *sys.argv[1:]])
    provenance = dict(record) | {"verdict": outcome.verdict, "figures": figures, "command": command}
    return Preset(outcome.chosen.solver, outcome.chosen.cmi, steps=search.steps, provenance=provenance)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def table(outcome: Outcome) -> Table:
    """The settings compared, each difference paired with the solver alone and with its 95% interval."""
    listing = Table(
        title=f"{outcome.trials} trials, {outcome.pruned} given up early",
        caption="differences to the solver alone, image by image, with 95% intervals",
    )
    alone = outcome.rows[0]
    metrics = sorted(alone.held_out, key=lambda name: name != outcome.metric)
    listing.add_column("", overflow="fold")
    listing.add_column(f"{outcome.metric}, {len(alone.tuning)} tuning images", justify="right")
    for metric in metrics:
        listing.add_column(f"{metric}, {len(alone.held_out[metric])} hold-out images", justify="right")
    for row in outcome.rows:
        base = None if row is alone else alone
        cells = [_cell(outcome.metric, row.tuning, base and base.tuning)]
        cells += [_cell(metric, row.held_out[metric], base and base.held_out[metric]) for metric in metrics]
        listing.add_row(f"{row.name}\n  {row.setting}", *cells)
    return listing


def _cell(metric: str, values: list[float], base: list[float] | None) -> str:
    digits = DIGITS.get(metric, 3)
    text = f"{_mean(values):.{digits}f}"
    if base is None:
        return text
    difference = estimate(values, base)
    return f"{text}\n{difference.mean:+.{digits}f} ± {difference.half:.{digits}f}"


def check_metric(metric: str) -> None:
    """Check that a metric is known and that its weights are available where it needs any."""
    if metric not in METRICS:
        raise ValueError(f"--metric must be one of {', '.join(METRICS)}, received {metric!r}")
    if metric == "lpips":
        METRICS[metric][0](torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))
