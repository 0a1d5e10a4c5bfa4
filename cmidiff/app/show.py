"""What a command shows: progress on standard error, and the summary of a restoration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from cmidiff.app.folder import Row

out, err = Console(), Console(stderr=True)


@contextmanager
def progress(total: float | None = None) -> Iterator[Callable[..., None]]:
    """Show a progress bar once something is done, and yield what moves it: ``move(completed, doing, total=None)``."""
    columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=err, speed_estimate_period=600)
    task = bar.add_task("", total=total)

    def move(completed: float, doing: str, total: float | None = None) -> None:
        bar.start()
        bar.update(task, completed=completed, description=doing, total=total)

    try:
        yield move
    finally:
        bar.stop()


def table(rows: Sequence[Row], title: str) -> Table:
    """The summary: status and data misfit, and quality where the truth is known."""
    with_truth = any(row.psnr is not None for row in rows)
    table = Table(title=title, caption="misfit: |y - A x| in units of the noise; 1 = explained down to the noise")
    for name in ("", "status", "misfit", *(("PSNR [dB]", "SSIM") if with_truth else ())):
        table.add_column(name, justify="left" if name in ("", "status") else "right")
    for row in rows:
        table.add_row(row.name, row.status, *row.figures(with_truth))
    return table
