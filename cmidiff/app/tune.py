"""A search from the command line: its progress, its table, and the preset it writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cmidiff import __version__, load_prior
from cmidiff.app.errors import BadInput, bad_input
from cmidiff.app.show import err
from cmidiff.prior.base import Denoiser
from cmidiff.registry import SOLVERS
from cmidiff.statistics import estimate
from cmidiff.tuning import METRICS, Outcome, Preset, Report, Search, Space, open_study, read_images, tune


def searched(
    images: Path,
    *,
    count: int,
    offset: int,
    side: int | None,
    task: str,
    parameters: Mapping[str, Any],
    solver: str,
    most_eta: float,
    prior: str,
    **options: Any,
) -> tuple[Search, Denoiser]:
    """The search that the options describe, and its prior.

    Args:
        options: the other fields of `cmidiff.tuning.Search`.

    Raises:
        BadInput: what cannot be used.
    """
    try:
        pictures = read_images(images, count=count, offset=offset, size=side)
        space = Space(SOLVERS.make(solver), most_eta)
        network = load_prior(prior, device=options["device"])
        search = Search(
            pictures, task, dict(parameters), space, f"{network.name}, weights {network.fingerprint[:16]}", **options
        )
        search.problems(held_out=False)
    except (ValueError, TypeError, OSError) as error:
        raise bad_input(error) from error
    return search, network


def run(search: Search, prior: Denoiser, study: Path) -> Outcome:
    """Run the search with a line of progress on standard error.

    Raises:
        BadInput: the study is of another search, or Optuna or the weights of the metric are not there.
    """
    try:
        open_study(search, study)
    except (ValueError, ModuleNotFoundError) as error:
        raise BadInput(str(error)) from error
    columns = (TextColumn("trial"), MofNCompleteColumn(), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=err) as bar:
        line = bar.add_task("loading", total=search.trials)

        def show(report: Report) -> None:
            best = "" if report.best is None else f"best {search.metric} {report.best:.4f}; "
            bar.update(line, completed=report.number - 1, description=best + report.doing)

        return tune(search, prior, study, show)


def described(search: Search, images: Path, prior: str) -> dict[str, Any]:
    """What is searched, for the record."""
    where = {"images": images.name, "offset": search.images.index[0], "count": len(search.images)}
    names = ("steps", "metric", "trials", "group", "seed")
    task = {"task": search.task, "parameters": dict(search.parameters)}
    weights = {"prior": prior, "prior_weights": search.prior_name, "base": str(search.space.base)}
    return {"cmidiff": __version__} | weights | task | where | {name: getattr(search, name) for name in names}


def preset_of(search: Search, outcome: Outcome, record: Mapping[str, Any], command: str) -> Preset:
    """The preset of an outcome, with the figures it was chosen by."""
    figures = {
        row.name: {"setting": str(row.setting), "tuning": _mean(row.tuning)}
        | {f"hold_out_{metric}": _mean(values) for metric, values in row.held_out.items()}
        for row in outcome.rows
    }
    provenance = dict(record) | {"verdict": outcome.verdict, "figures": figures, "command": command}
    return Preset(outcome.chosen.solver, outcome.chosen.cmi, steps=search.steps, provenance=provenance)


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 4)


def table(outcome: Outcome) -> Table:
    """The settings compared, each difference paired with the solver alone and with its 95% interval."""
    listing = Table(
        title=f"{outcome.trials} trials, {outcome.pruned} given up early",
        caption="differences to the solver alone, image by image, with 95% intervals",
    )
    alone = outcome.rows[0]
    n_tuning, n_held_out = len(alone.tuning), len(alone.held_out[outcome.metric])
    listing.add_column("", overflow="fold")
    listing.add_column(f"{outcome.metric}, {n_tuning} tuning images", justify="right")
    for metric in sorted(alone.held_out, key=lambda name: name != outcome.metric):
        listing.add_column(f"{metric}, {n_held_out} hold-out images", justify="right")
    for row in outcome.rows:
        cells = [_cell(outcome.metric, row.tuning, None if row is alone else alone.tuning)]
        for metric in sorted(alone.held_out, key=lambda name: name != outcome.metric):
            cells.append(_cell(metric, row.held_out[metric], None if row is alone else alone.held_out[metric]))
        listing.add_row(f"{row.name}\n  {row.setting}", *cells)
    return listing


def _cell(metric: str, values: list[float], base: list[float] | None) -> str:
    digits = {"psnr": 2, "crps": 4}.get(metric, 3)
    text = f"{sum(values) / len(values):.{digits}f}"
    if base is None:
        return text
    difference = estimate(values, base)
    return f"{text}\n{difference.mean:+.{digits}f} ± {difference.half:.{digits}f}"


def checked_metric(metric: str) -> str:
    """The metric, if its weights are at hand where it needs any.

    Raises:
        BadInput: an unknown one, or one that lacks its weights.
    """
    if metric not in METRICS:
        raise BadInput(f"--metric must be one of {', '.join(METRICS)}, received {metric!r}")
    if metric == "lpips":
        import torch

        flat = torch.zeros(1, 3, 64, 64)
        try:
            METRICS[metric][0](flat, flat)
        except FileNotFoundError as error:
            raise BadInput(str(error)) from error
    return metric
