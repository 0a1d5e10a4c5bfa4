"""List every figure and table of figures in the README and the docs, with its command, commit and age (`make results`).

A table of figures has a decimal number; those of options, under "Settings", are left out. Its command is the nearest
one in its section of the page, above it first, and else the first one of the sections around that. Commands are code
that begins with `python benchmarks/`, `make demo`, or `cmidiff` and a word that measures something. The commit of a
table is the last one that changed one of its lines, by `git blame`; that of an image the last one of its file.

    python benchmarks/list_results.py            # or make results; --missing lists those without a command alone
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent
MEASURES = "evaluate|validate|demo|restore|train"
COMMAND = re.compile(rf"(?:^ {{4,}}|^|`)((?:cmidiff (?:{MEASURES})\b|python benchmarks/|make demo)[^`#]*)")
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)")
FIGURE = re.compile(r"\d\.\d")


@dataclass(frozen=True)
class Result:
    """A table or an image of a page.

    Attributes:
        first, last: its lines, from 1.
        title: heading above it, or what the image shows.
        image: path of the image as the page spells it; empty for a table.
        command: that reproduces it; empty if the page has none.
    """

    first: int
    last: int
    title: str
    image: str
    command: str


def find_results(text: str) -> list[Result]:
    """The tables of figures and the images of a page."""
    lines = text.splitlines()
    headings = [
        (i, len(found[1]), found[2].strip()) for i, line in enumerate(lines) if (found := re.match(r"(#+) (.*)", line))
    ]
    commands = [(i, found[1].strip()) for i, line in enumerate(lines) if (found := COMMAND.search(line))]
    spans = [(first, last, "") for first, last in _tables(lines)]
    spans += [(i, i, found[2]) for i, line in enumerate(lines) for found in IMAGE.finditer(line)]
    results = []
    for first, last, image in sorted(spans):
        start, level, title = max((h for h in headings if h[0] <= first), default=(0, 0, ""))
        end = min((i for i, *_ in headings if i > first), default=len(lines))
        if title == "Settings":
            continue
        above = [c for c in commands if start <= c[0] < first]
        below = [c for c in commands if last <= c[0] < end]
        around = []
        for i, outer, _ in reversed([h for h in headings if h[0] < start]):
            if outer < level:
                level, stop = outer, min(j for j, *_ in headings if j > i)
                around += [c for c in commands if i <= c[0] < stop][:1]
        near = (above[-1:] or below[:1] or around[:1] or [(0, "")])[0]
        results.append(Result(first + 1, last + 1, title, image, near[1]))
    return results


def _tables(lines: list[str]) -> Iterator[tuple[int, int]]:
    """First and last line of each table with a decimal number."""
    first = None
    for i, line in enumerate([*lines, ""]):
        if line.startswith("|"):
            first = i if first is None else first
        elif first is not None:
            if FIGURE.search("\n".join(lines[first + 2 : i])):
                yield first, i - 1
            first = None


def find_commit(page: Path, result: Result, root: Path = ROOT) -> tuple[str, datetime | None]:
    """Commit and time of a result; no time where it is not committed."""
    if result.image:
        file = (page.parent / result.image).resolve()
        answer = _git(root, "log", "-1", "--format=%h %ct", "--", str(file)).split()
        return (answer[0], datetime.fromtimestamp(int(answer[1]), UTC)) if answer else ("not committed", None)
    span = f"{result.first},{result.last}"
    blame = _git(root, "blame", "--line-porcelain", "-L", span, "--", str(page))
    commits = re.findall(r"^([0-9a-f]{40}) ", blame, re.MULTILINE)
    times = [int(t) for t in re.findall(r"^committer-time (\d+)", blame, re.MULTILINE)]
    if not commits or any(set(commit) == {"0"} for commit in commits):
        return "not committed", None
    newest = max(range(len(commits)), key=times.__getitem__)
    return commits[newest][:7], datetime.fromtimestamp(times[newest], UTC)


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout


def main(
    missing: Annotated[bool, typer.Option("--missing", help="Only results without a command.")] = False,
) -> None:
    """Print a line for each result: page and line, what it is, commit, age in days, command."""
    now = datetime.now(UTC)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for result in find_results(page.read_text()):
            if missing and result.command:
                continue
            commit, when = find_commit(page, result)
            age = "" if when is None else f"{(now - when).days} d"
            where = f"{page.relative_to(ROOT)}:{result.first}"
            name = result.image or result.title
            print(f"{where}\t{name}\t{commit}\t{age}\t{result.command or 'NO COMMAND'}", file=sys.stdout)


if __name__ == "__main__":
    typer.run(main)
