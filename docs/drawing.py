"""The drawing of the modules and their list, made from the imports of the package.

A room is a file or a folder directly below ``cmidiff/``. It stands one row above the highest room that it imports, so
that all arrows point down. An arrow that follows from others is left out.

    python docs/drawing.py > architecture.svg
"""

from __future__ import annotations

import ast
import html
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "cmidiff"
WIDTH, BOX, HEIGHT, ROW = 1120, 98, 26, 62  # pixels


def rooms() -> dict[str, list[Path]]:
    """The files of each room."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found.setdefault(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(path)
    del found["__init__"]
    return found


def imports(paths: list[Path]) -> set[str]:
    """The rooms that files import, at any depth of their code; what comes from ``cmidiff`` itself comes from the room
    that defines it."""
    found: set[str] = set()
    for node in (node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            public = node.module == "cmidiff"
            found |= {_home(alias.name) for alias in node.names} if public else {node.module.removeprefix("cmidiff.")}
            found -= set() if public or node.module.startswith("cmidiff.") else {node.module}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("cmidiff.") for a in node.names if a.name.startswith("cmidiff.")}
    return {name.split(".")[0] for name in found}


def _home(name: str) -> str:
    """The room of a name that the package itself exports."""
    for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and any(a.name == name for a in node.names):
            return node.module.removeprefix("cmidiff.")
    return name


@cache
def edges() -> dict[str, set[str]]:
    """The rooms that each room imports."""
    known = rooms()
    return {room: (imports(paths) & set(known)) - {room} for room, paths in known.items()}


def levels(graph: dict[str, set[str]]) -> dict[str, int]:
    """The row of each room, 0 the lowest.

    Raises:
        RecursionError: the imports go round.
    """

    @cache
    def level(room: str) -> int:
        return 1 + max((level(below) for below in graph[room]), default=-1)

    return {room: level(room) for room in graph}


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The imports that do not follow from others."""

    @cache
    def reach(room: str) -> set[str]:
        return graph[room].union(*(reach(below) for below in graph[room]))

    return {room: below - set().union(*(reach(other) for other in below)) for room, below in graph.items()}


def summary(room: str) -> str:
    """The first sentence of a room's docstring."""
    path = PACKAGE / room / "__init__.py" if (PACKAGE / room).is_dir() else PACKAGE / f"{room}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def svg() -> str:
    """The drawing."""
    graph = edges()
    rows = levels(graph)
    top = max(rows.values())
    place: dict[str, tuple[float, float]] = {}
    for row in range(top + 1):
        inside = sorted(room for room in rows if rows[room] == row)
        gap = WIDTH / (len(inside) + 1)
        shift = gap / 6 * (-1) ** row  # a long arrow does not run through the boxes of the rows between
        place |= {room: (gap * (k + 1) + shift, 20.0 + ROW * (top - row)) for k, room in enumerate(inside)}
    lines = [
        f'<line x1="{place[a][0]:.0f}" y1="{place[a][1] + HEIGHT:.0f}" x2="{place[b][0]:.0f}" y2="{place[b][1]:.0f}" '
        'stroke="#8a8f98" stroke-width="1" marker-end="url(#arrow)"/>'
        for a, below in sorted(reduced(graph).items())
        for b in sorted(below)
    ]
    boxes = [
        f"<g><title>{html.escape(summary(room))}</title>"
        f'<rect x="{x - BOX / 2:.0f}" y="{y:.0f}" width="{BOX}" height="{HEIGHT}" rx="4" fill="#f4f6fa" '
        f'stroke="#3949ab"/><text x="{x:.0f}" y="{y + 17:.0f}" text-anchor="middle">{room}</text></g>'
        for room, (x, y) in sorted(place.items())
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {ROW * (top + 1) + 10}" role="img" '
    head += (
        'aria-label="Modules of cmidiff; each imports only from rows below" font-family="sans-serif" font-size="13">'
    )
    arrow = '<marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    defs = f'<defs>{arrow}<path d="M0 0L8 4L0 8z" fill="#8a8f98"/></marker></defs><rect width="100%" height="100%" '
    return "\n".join([head, defs + 'fill="#ffffff"/>', *lines, *boxes, "</svg>\n"])


def table() -> str:
    """The rooms, highest first, as a table in Markdown."""
    rows, known = levels(edges()), rooms()
    lines = ["| room | files | what it holds |", "|---|---|---|"]
    for room in sorted(known, key=lambda name: (-rows[name], name)):
        lines.append(f"| `{room}` | {len(known[room])} | {summary(room).replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(svg(), end="")
