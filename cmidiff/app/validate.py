"""The laboratory from the command line: its tables, as soon as a section is finished."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from cmidiff.app.errors import say
from cmidiff.app.show import out
from cmidiff.config import unknown
from cmidiff.laboratory import SECTIONS, Settings, Table, validate

WIDTH = 170  # of tables in a file


def run(folder: Path, settings: Settings, only: list[str], *, overwrite: bool = False) -> None:
    """Run the sections and print their tables."""
    for name in only:
        if name not in SECTIONS:
            raise ValueError(unknown("section", name, SECTIONS))
    if settings.images is not None and not settings.images.exists():
        raise ValueError(f"--images {settings.images} does not exist: give a folder or a tar file")
    screen = out if out.is_terminal else Console(width=WIDTH)
    say(f"sections: {', '.join(only or SECTIONS)}")
    for name, found, kept in validate(folder, settings, only, overwrite=overwrite):
        screen.rule(f"{name}: {SECTIONS[name].title}")
        for shown in found.tables.values():
            if shown.shown:
                screen.print(rich_table(shown))
        taken = f"{found.seconds:.0f} s, {found.cpu_seconds:.0f} s of processor time"
        say(f"{name}: {taken}{', kept from a finished run' if kept else ''}; tables and figures in {folder}")


def rich_table(table: Table) -> RichTable:
    """A table of the laboratory as it is printed."""
    shown = RichTable(title=table.title, caption=table.note, title_justify="left", caption_justify="left")
    numeric = [all(not isinstance(row[k], str) for row in table.rows) for k in range(len(table.columns))]
    for name, right in zip(table.columns, numeric, strict=True):
        shown.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in table.text():
        shown.add_row(*row)
    return shown
