"""Figures with one look, drawn without a screen."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#e09f3e", "#6a4c93", "#444444", "#17a2a2", "#a0522d")


def panels(
    titles: Sequence[str], *, columns: int = 3, width: float = 4.2, height: float = 3.4
) -> tuple[Figure, list[Axes]]:
    """A figure with one titled panel for each of ``titles``."""
    columns = min(columns, len(titles))
    lines = -(-len(titles) // columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title, fontsize=10)
        axis.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(titles) :]:
        axis.remove()
    return figure, axes[: len(titles)]
