"""What a section has found: tables of numbers, stored as JSON (to go on from) and CSV (to read)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

try:
    from pandas import DataFrame
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("cmidiff validate needs the package pandas: pip install 'cmidiff[validate]'") from error

Cell = str | float | int | None
Frame = Any  # a DataFrame of pandas, whose types cannot be checked


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: one line.
        columns: their names, with units.
        rows: as long as ``columns``.
        note: how to read it.
        shown: whether it is printed; the others are the data of the figures.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    shown: bool = True

    @property
    def frame(self) -> Frame:
        """The rows, to be grouped and averaged."""
        return DataFrame(list(self.rows), columns=list(self.columns))

    def records(self, **wanted: Cell) -> Iterator[dict[str, Any]]:
        """Rows as dictionaries, those that have the ``wanted`` values."""
        for row in self.rows:
            record = dict(zip(self.columns, row, strict=True))
            if all(record[name] == value for name, value in wanted.items()):
                yield record

    def text(self) -> list[list[str]]:
        """The rows as they are printed: numbers to three digits."""
        return [[write_cell(cell) for cell in row] for row in self.rows]

    def markdown(self) -> str:
        """As a table of a document."""
        lines = [list(self.columns), ["---"] * len(self.columns), *self.text()]
        rows = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
        return f"**{self.title}**\n\n{rows}\n\n{self.note}\n"

    def to_csv(self) -> bytes:
        """As a CSV file."""
        return self.frame.to_csv(index=False).encode()


@dataclass(frozen=True)
class Findings:
    """All tables of a section by name, the settings, and the time: seconds on the clock, and of all processes on the
    processor."""

    tables: dict[str, Table]
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def to_json(self) -> bytes:
        """As a JSON file, which `read` reads."""
        return json.dumps(asdict(self), indent=1, default=lambda number: number.item()).encode()

    @classmethod
    def read(cls, path: Path) -> Findings:
        stored = json.loads(path.read_text())
        tables = {name: Table(**table) for name, table in stored["tables"].items()}
        return cls(tables, stored["settings"], stored["seconds"], stored["cpu_seconds"])


def write_cell(cell: Cell) -> str:
    """A cell as text."""
    return "-" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell)
