"""Quality against cost, and against the strength of CMI: small figures, as SVG, for a light page and for a dark one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.style import context

from cmidiff.evaluate.comparison import Comparison, Line, Quality, Tally
from cmidiff.evaluate.database import Cell
from cmidiff.evaluate.statistics import Estimate

# Okabe and Ito's colours, which differ for all kinds of sight; black left out, as it is not seen on a dark page.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MARKERS = "os^Dv<>"
SIZE = (4.4, 3.7)  # inches: readable on a telephone without zooming
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "cmidiff", "font.size": 9, "font.family": "sans-serif"}

Point = tuple[float, Estimate]


@dataclass(frozen=True)
class Curve:
    """One line of a figure: its solver's rank (colour and marker), and whether it is with CMI (dashed and filled)."""

    solver: str
    rank: int
    cmi: bool
    points: list[Point]


@dataclass(frozen=True)
class Plot:
    """A figure for a light and a dark page, and what it shows in words."""

    task: str
    name: str
    title: str
    alt: str
    light: bytes
    dark: bytes


def plots(comparison: Comparison) -> list[Plot]:
    """All figures of a run: per task and metric, against passes, seconds, and eta where there are several."""
    return [
        _plot(task, kind, quality, curves, x_label)
        for task in comparison.tasks
        for quality in _shown(comparison)
        for kind, x_label, curves in _kinds(comparison, task, quality)
        if any(curve.points for curve in curves)
    ]


def _shown(comparison: Comparison) -> list[Quality]:
    """PSNR, and the best measure of perception there is."""
    present = {quality.name: quality for quality in comparison.present}
    perceived = next((present[name] for name in ("lpips", "ssim") if name in present), None)
    return [quality for quality in (present.get("psnr"), perceived) if quality is not None]


def _kinds(comparison: Comparison, task: str, quality: Quality) -> Iterator[tuple[str, str, list[Curve]]]:
    cost = "network passes per sample, forward and backward"
    yield "passes", cost, _cost_curves(comparison, task, quality, lambda tally: tally.passes)
    yield "seconds", "seconds per image", _cost_curves(comparison, task, quality, lambda tally: tally.seconds)
    sweep = _eta_curves(comparison, task, quality)
    if sweep:
        yield "eta", "strength of CMI, η (0: the base solver)", sweep


def _cost_curves(comparison: Comparison, task: str, quality: Quality, cost: Callable[[Tally], float]) -> list[Curve]:
    """Base and CMI of each solver over its steps."""
    curves = []
    for rank, pair in enumerate(comparison.sides(task)):
        for side in pair:
            if side is None:
                continue
            lines = [line for line in comparison.lines if _same_but_steps(line.cell(task), side.cell(task))]
            points = list(_points(comparison, task, quality, lines, cost))
            curves.append(Curve(side.solver, rank, side.cmi, points))
    return curves


def _same_but_steps(one: Cell | None, other: Cell | None) -> bool:
    return one is not None and other is not None and one._replace(steps=other.steps) == other


def _points(
    comparison: Comparison, task: str, quality: Quality, lines: Sequence[Line], cost: Callable[[Tally], float]
) -> Iterator[Point]:
    for line in lines:
        tally, value = comparison.tally(line, task), comparison.entry(line, task, quality).value
        if tally is not None and value is not None and math.isfinite(cost(tally)):
            yield cost(tally), value


def _eta_curves(comparison: Comparison, task: str, quality: Quality) -> list[Curve]:
    """Each solver at its most steps over eta, the base at 0; of the solvers with at least two strengths."""
    curves = []
    for rank, (base, _) in enumerate(comparison.sides(task)):
        lines = [line for line in comparison.lines if (line.solver, line.steps) == (base.solver, base.steps)]
        cells = {cell: comparison.entry(line, task, quality).value for line in lines if (cell := line.cell(task))}
        points = [(cell.eta, value) for cell, value in cells.items() if value is not None]
        points.sort(key=lambda point: point[0])
        if sum(cell.cmi for cell in cells) > 1:
            curves.append(Curve(base.solver, rank, True, points))
    return curves


def _plot(task: str, kind: str, quality: Quality, curves: Sequence[Curve], x_label: str) -> Plot:
    title = f"{task}: {quality.title} {quality.arrow}"
    pages = [_drawn(title, kind, quality, curves, x_label, dark=dark) for dark in (False, True)]
    return Plot(task, f"{quality.name}-{kind}", title, _alt(title, quality, curves, x_label), *pages)


def _alt(title: str, quality: Quality, curves: Sequence[Curve], x_label: str) -> str:
    said = [
        f"{curve.solver}{' with CMI' if curve.cmi else ''}: "
        + ", ".join(f"{quality.text(value.mean)} at {x:.3g}" for x, value in curve.points)
        for curve in curves
        if curve.points
    ]
    return f"{title} against {x_label}. {'; '.join(said)}."


def _drawn(title: str, kind: str, quality: Quality, curves: Sequence[Curve], x_label: str, *, dark: bool) -> bytes:
    with context(["dark_background" if dark else "default", _STYLE]):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        if dark:  # the page's own shade shows through; a light figure keeps its paper, wherever the file goes
            figure.patch.set_alpha(0.0)
            axes.patch.set_alpha(0.0)
        for curve in curves:
            _draw(axes, curve)
        if kind != "eta":
            _join_single_points(axes, curves)
            axes.set_xscale("log")
        axes.set(xlabel=x_label, ylabel=f"{quality.title} ({quality.direction})")
        axes.set_title(_plain(title), fontsize=10)
        axes.grid(alpha=0.25)
        figure.legend(handles=_legend(curves, kind), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        file = BytesIO()
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return file.getvalue()


def _draw(axes: Axes, curve: Curve) -> None:
    if not curve.points:
        return
    x, means = zip(*((x, value.mean) for x, value in curve.points), strict=True)
    spread = [value.half or 0.0 for _, value in curve.points]
    colour = COLOURS[curve.rank % len(COLOURS)]
    axes.errorbar(
        x,
        means,
        spread,
        color=colour,
        marker=MARKERS[curve.rank % len(MARKERS)],
        markerfacecolor=colour if curve.cmi else "none",
        linestyle="--" if curve.cmi else "-",
        linewidth=1.3,
        markersize=5,
        elinewidth=0.8,
        capsize=2,
    )


def _join_single_points(axes: Axes, curves: Sequence[Curve]) -> None:
    """Where there are no lines over steps, a dotted one leads from the base to its CMI form."""
    single = [curve for curve in curves if len(curve.points) == 1]
    for base in (curve for curve in single if not curve.cmi):
        for other in (curve for curve in single if curve.cmi and curve.rank == base.rank):
            ends = [(x, value.mean) for x, value in (*base.points, *other.points)]
            axes.plot(*zip(*ends, strict=True), ":", color=COLOURS[base.rank % len(COLOURS)], linewidth=1)


def _legend(curves: Sequence[Curve], kind: str) -> list[Line2D]:
    """Colour and marker say the solver; the fill says CMI."""
    handles = []
    for rank, solver in dict.fromkeys((curve.rank, curve.solver) for curve in curves if curve.points):
        colour, marker = COLOURS[rank % len(COLOURS)], MARKERS[rank % len(MARKERS)]
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="none", label=_plain(solver)))
    if kind != "eta":
        grey = "#888888"
        handles.append(Line2D([], [], color=grey, marker="o", markerfacecolor="none", label="base"))
        handles.append(Line2D([], [], color=grey, marker="o", linestyle="--", label="with CMI"))
    return handles


def _plain(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")
