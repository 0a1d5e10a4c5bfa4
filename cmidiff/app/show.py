"""What a run shows: a progress bar with the current misfit, and a summary table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from cmidiff.app.run import Row

out, err = Console(), Console(stderr=True)


class Line(Protocol):
    """One line of progress: how much is done, what is being done, and its data misfit."""

    def __call__(self, completed: float, doing: str, misfit: float) -> None: ...


@contextmanager
def progress(total: float) -> Iterator[Line]:
    """A progress bar on standard error."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[misfit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("loading", total=total, misfit="")

        def line(completed: float, doing: str, misfit: float) -> None:
            bar.update(task, completed=completed, description=doing, misfit=f"misfit {misfit:.2f}")

        yield line


def table(rows: Sequence[Row], title: str) -> Table:
    """The summary: status and data misfit, and quality where the truth is known."""
    with_truth = any(row.psnr is not None for row in rows)
    table = Table(title=title, caption="misfit: |y - A x| in units of the noise; 1 = explained down to the noise")
    for name in ("", "status", "misfit", *(("PSNR [dB]", "SSIM") if with_truth else ())):
        table.add_column(name, justify="left" if name in ("", "status") else "right")
    for row in rows:
        figures = [_number(row.misfit, 2)] + ([_number(row.psnr, 2), _number(row.ssim, 3)] if with_truth else [])
        table.add_row(row.name, row.status, *figures)
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
