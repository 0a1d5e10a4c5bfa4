"""Quality against cost, and against the strength of CMI: small figures, as SVG, for a light page and for a dark one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.style import context
from matplotlib.ticker import LogLocator, NullLocator

from cmidiff.evaluate.comparison import Comparison, Entry, Quality
from cmidiff.evaluate.records import Cell

# After Okabe and Ito: they differ for all kinds of sight; shades that are seen on a light page and on a dark one.
COLOURS = ("#2B87C8", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#8A6FD1", "#999999")
MARKERS = "os^Dv<>"
KINDS = {
    "passes": "network passes per sample, forward and backward",
    "seconds": "seconds per image",
    "eta": "strength of CMI, η (0: the base solver)",
}
SIZE = (4.4, 3.7)  # inches: readable on a telephone without zooming
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "cmidiff", "font.size": 9, "font.family": "sans-serif"}


class Point(NamedTuple):
    """A cell: its cost or strength, its figure, and half the interval of its paired difference to the base.

    The interval of a mean would show how unlike the images are, not how sure the gain is.
    """

    x: float
    y: float
    half: float  # NaN: none is drawn


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


def draw_plots(comparison: Comparison) -> list[Plot]:
    """All figures of a run: per task and metric, against passes, seconds, and eta where there are several."""
    present = {quality.name: quality for quality in comparison.present}
    perceived = next((name for name in ("lpips", "ssim") if name in present), None)
    shown = [present[name] for name in ("psnr", perceived) if name in present]
    found = []
    for task, quality, (kind, x_label) in product(comparison.tasks, shown, KINDS.items()):
        curves = _list_curves(comparison, task, quality, kind)
        if any(curve.points for curve in curves):
            title = f"{task}: {quality.title} {quality.arrow}"
            light, dark = (_draw_page(title, kind, quality, curves, dark=dark) for dark in (False, True))
            alt = _describe(title, quality, curves, x_label)
            found.append(Plot(task, f"{quality.name}-{kind}", title, alt, light, dark))
    return found


def _list_curves(comparison: Comparison, task: str, quality: Quality, kind: str) -> list[Curve]:
    """Against a cost: base and CMI of each solver over its steps. Against eta: each solver at its most steps, the base
    at 0, where there are at least two strengths."""
    curves = []
    for rank, (base, cmi) in enumerate(comparison.sides(task)):
        cells = [cell for line in comparison.lines if line.solver == base.solver and (cell := line.cell(task))]
        if kind == "eta":
            mine = [cell for cell in cells if cell.steps == base.steps]
            points = sorted(point for cell in mine for point in _place(comparison, cell, quality, cell.eta))
            curves += [Curve(base.solver, rank, True, points)] if sum(cell.cmi for cell in mine) > 1 else []
            continue
        for side in (side.cell(task) for side in (base, cmi) if side is not None):
            mine = [cell for cell in cells if side is not None and cell._replace(steps=side.steps) == side]
            costs = [(cell, getattr(comparison.tallies[cell], kind)) for cell in mine]
            points = [point for cell, cost in costs for point in _place(comparison, cell, quality, cost)]
            curves.append(Curve(base.solver, rank, bool(side and side.cmi), points))
    return curves


def _place(comparison: Comparison, cell: Cell, quality: Quality, x: float) -> Iterator[Point]:
    """One point, or none where there is no figure.

    With CMI it lies at the base's mean plus the paired difference: where pairs are incomplete, the two means are of
    different images.
    """
    entry, base = (comparison.entries.get((one, quality.name), Entry(None)) for one in (cell, cell.base))
    if not math.isfinite(x):
        return
    if entry.paired is not None and base.value is not None:
        difference = entry.paired.difference
        yield Point(x, base.value.mean + difference.mean, math.nan if difference.half is None else difference.half)
    elif entry.value is not None:
        yield Point(x, entry.value.mean, math.nan)


def _describe(title: str, quality: Quality, curves: Sequence[Curve], x_label: str) -> str:
    texts = [
        f"{curve.solver}{' with CMI' if curve.cmi else ''}: "
        + ", ".join(f"{quality.text(point.y)} at {point.x:.3g}" for point in curve.points)
        for curve in curves
        if curve.points
    ]
    return f"{title} against {x_label}. {'; '.join(texts)}."


def _draw_page(title: str, kind: str, quality: Quality, curves: Sequence[Curve], *, dark: bool) -> bytes:
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
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel=KINDS[kind], ylabel=f"{quality.title} ({quality.direction})")
        axes.set_title(_plain(title), fontsize=10)
        axes.grid(alpha=0.25)
        figure.legend(handles=_legend(curves, kind), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        file = BytesIO()
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return file.getvalue()


def _draw(axes: Axes, curve: Curve) -> None:
    if not curve.points:
        return
    x, y, half = zip(*curve.points, strict=True)
    colour = COLOURS[curve.rank % len(COLOURS)]
    axes.errorbar(
        x,
        y,
        half,
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
            x, y, _ = zip(*base.points, *other.points, strict=True)
            axes.plot(x, y, ":", color=COLOURS[base.rank % len(COLOURS)], linewidth=1)


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
