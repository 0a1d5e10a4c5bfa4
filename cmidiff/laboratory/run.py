"""The sections in order; a finished one is read again instead of run."""

from __future__ import annotations

import io
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from cmidiff import __version__, files
from cmidiff.laboratory import difference, gradient, levy, particles, posterior, symmetry, trajectory
from cmidiff.laboratory.findings import Findings
from cmidiff.laboratory.settings import Settings

COMMAND = "validate"


@dataclass(frozen=True)
class Section:
    """A section: what it measures, and how it shows it."""

    title: str
    measure: Callable[[Settings], Findings]
    draw: Callable[[Findings], dict[str, Figure]]
    depends: tuple[str, ...] = ("seed", "quick")

    def key(self, settings: Settings) -> dict[str, str]:
        """What its figures depend on: settings, and the version."""
        return {name: str(getattr(settings, name)) for name in self.depends} | {"cmidiff": __version__}


SECTIONS: dict[str, Section] = {
    "gradient": Section("CMI gradient: error and bias against exact", gradient.measure, gradient.draw),
    "difference": Section(
        "Finite differences: error against step", difference.measure, difference.draw, ("seed", "quick", "images")
    ),
    "symmetry": Section(
        "Symmetry of the third derivative", symmetry.measure, symmetry.draw, ("seed", "quick", "images")
    ),
    "posterior": Section("Known posteriors", posterior.measure, posterior.draw),
    "particles": Section("Particles on known posteriors", particles.measure, particles.draw),
    "levy": Section("Lévy processes", levy.measure, levy.draw),
    "trajectory": Section("Information along the run", trajectory.measure, trajectory.draw),
}


def validate(
    folder: Path, settings: Settings, only: Sequence[str] = (), *, overwrite: bool = False
) -> Iterator[tuple[str, Findings, bool]]:
    """Run the sections and write into ``folder``: ``NAME.json``, ``NAME.md``, a CSV a table, a PNG a figure.

    Args:
        folder: made if it is not there.
        settings: see `Settings`.
        only: names of `SECTIONS`; all without.
        overwrite: whether files of another origin are replaced.

    Yields:
        name, findings, and whether they were read from a finished run of the same settings and version.
    """
    for name in only:
        if name not in SECTIONS:
            raise ValueError(f"section must be one of {', '.join(SECTIONS)}, received {name!r}")
    written = re.compile(rf"({'|'.join(only or SECTIONS)})(-.*\.(csv|png)|\.json|\.md)")
    there = [path for path in sorted(folder.glob("*")) if written.fullmatch(path.name)]
    outputs = [folder / f"{name}.json" for name in only or SECTIONS]
    files.check_outputs([*there, *outputs], [settings.images], command=COMMAND, overwrite=overwrite)
    for name in only or SECTIONS:
        section, path = SECTIONS[name], folder / f"{name}.json"
        found = _finished(path, section.key(settings))
        kept = found is not None
        if found is None:
            start, cpu = time.perf_counter(), _processor()
            parts = folder / f".{name}-parts"
            parts.mkdir(exist_ok=True)
            found = section.measure(replace(settings, scratch=parts))
            taken = {"seconds": time.perf_counter() - start, "cpu_seconds": _processor() - cpu}
            found = replace(found, settings=section.key(settings), **taken)
        _write(folder, name, section, found)
        files.write(path, found.to_json(), COMMAND)  # last: its presence says that the section is finished
        shutil.rmtree(folder / f".{name}-parts", ignore_errors=True)
        yield name, found, kept


def _processor() -> float:
    """Seconds on the processor, of this process and of those it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _finished(path: Path, key: dict[str, str]) -> Findings | None:
    if not path.is_file():
        return None
    found = Findings.read(path)
    return found if found.settings == key else None


def _write(folder: Path, name: str, section: Section, found: Findings) -> None:
    for table_name, table in found.tables.items():
        files.write(folder / f"{name}-{table_name}.csv", table.to_csv(), COMMAND)
    shown = [table.markdown() for table in found.tables.values() if table.shown]
    files.write(folder / f"{name}.md", "\n".join([f"# {section.title}\n", *shown]).encode(), COMMAND)
    for figure_name, figure in section.draw(found).items():
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=110, format="png")
        files.write(folder / f"{name}-{figure_name}.png", drawn.getvalue(), COMMAND)
