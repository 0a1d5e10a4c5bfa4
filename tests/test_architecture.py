"""Imports point one way: the folder listing read from left to right."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "cmidiff"
LAYERS = (
    ("files", "colour", "config"),
    ("images",),
    ("schedule", "krylov", "forward", "draws", "dct", "sources", "registry", "result"),
    ("physics",),
    ("metrics", "whitening", "moments", "statistics"),
    ("prior",),
    ("canvas", "loading"),
    ("measurement",),
    ("step",),
    ("covariance", "samplers", "intake"),
    ("information",),
    ("solvers",),
    ("loop",),
    ("restoration",),
    ("train", "tuning", "laboratory", "interop"),
    ("evaluate",),
    ("app",),
    ("__main__",),
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Rooms of this package that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module] if node.module != "cmidiff" else [f"cmidiff.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("cmidiff.")}
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    assert room in RANK, f"{room} has no place in the order of rooms"
    public = {"__version__": 0, "restore": RANK["restoration"]}  # names of the public door that are no rooms
    for other in imports(path) - {room}:
        rank = RANK.get(other, public.get(other))
        if rank is None:  # a class or function taken from the public door counts as the highest room behind it
            rank = RANK["restoration"]
        assert rank < RANK[room], f"{path.relative_to(PACKAGE)} imports {other}, which is not below {room}"


def test_import_is_light() -> None:
    """``import cmidiff`` costs nothing, ``restore`` little beyond deepinv, and a command's help has no torch."""
    for code, heavy in (
        ("import cmidiff", "torch deepinv diffusers numpy typer"),
        ("import cmidiff.app.cli", "torch deepinv diffusers scipy"),
        ("from cmidiff import restore", "scipy.stats pandas matplotlib diffusers torchmetrics typer rich"),
    ):
        check = f"import sys; {code}; print([m for m in '{heavy}'.split() if m in sys.modules])"
        assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "[]", code


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "cmidiff", "--version"]
    assert subprocess.check_output(command, text=True).strip() == importlib.import_module("cmidiff").__version__
    wrong = subprocess.run([*command[:3], "restor"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "restor" in wrong.stderr


def test_every_public_name_loads() -> None:
    import cmidiff

    for name in cmidiff.__all__:
        assert getattr(cmidiff, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        cmidiff.nothing_of_the_kind  # noqa: B018


def test_the_drawing_shows_every_module_and_points_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PACKAGE.parent / "docs")
    drawing = importlib.import_module("drawing")
    graph, levels = drawing.edges(), drawing.levels(drawing.edges())
    assert set(graph) == {room_of(path) for path in FILES}
    for path in FILES:
        assert imports(path) & set(graph) - {room_of(path)} <= graph[room_of(path)]
    assert all(levels[below] < levels[room] for room in graph for below in graph[room])
    assert "step" in graph["loop"] - drawing.reduced(graph)["loop"], "it follows from that of the solvers"
    drawn = xml.etree.ElementTree.fromstring(drawing.svg())
    texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert sorted(filter(None, texts)) == sorted(graph)
    assert all(f"| `{room}` |" in drawing.table() for room in graph)
