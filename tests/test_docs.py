"""The code in the documentation runs as it stands: every ```python block of the README and of docs/, in order, the
blocks of one page sharing their names. A block after ``<!-- not run -->`` is shown and not run."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cmidiff import solvers
from cmidiff.covariance import FreeHunch

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- not run -->\s*)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code(page: str) -> str:
    """What a page runs, each block on the lines where it stands on the page."""
    lines = [""] * (page.count("\n") + 1)
    for block in BLOCK.finditer(page):
        if block[1] is None:
            first = page[: block.start(2)].count("\n")
            body = block[2].splitlines()
            lines[first : first + len(body)] = body
    return "\n".join(lines).rstrip()


def test_blocks_are_found() -> None:
    page = "a\n```python\nx = 1\n```\n<!-- not run -->\n\n```python\nx = 2\n```\n```sh\nls\n```\n"
    page += "```python\nx = 3\n```\n"
    assert code(page).split("\n") == ["", "", "x = 1", *[""] * 10, "x = 3"]


RUN = [page for page in PAGES if code(page.read_text())]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    with Image.open(ROOT / "cmidiff" / "assets" / "plane.png") as image:
        image.convert("RGB").resize((64, 64)).save(tmp_path / "photo.png")  # what pages call photo.png
    (tmp_path / page.name).with_suffix(".py").write_text(code(page.read_text()))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    command = [sys.executable, "-W", "ignore", f"{page.stem}.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


SOLVER_PAGES = sorted(path for path in (ROOT / "docs" / "solvers").glob("*.md") if path.stem not in ("index", "cmi"))


@pytest.mark.parametrize("page", SOLVER_PAGES, ids=lambda path: path.stem)
def test_the_settings_of_a_solver_are_its_signature(page: Path) -> None:
    """Every option and default of a page's table are those of the class, and none is missing."""
    text = page.read_text()
    made: Any = next(iter(re.findall(r"^\[`(\w+)`\]\[cmidiff", text, re.MULTILINE)))
    made = {"FreeHunch": FreeHunch}.get(made) or getattr(solvers, made)
    table = text.split("| option | default | meaning |\n")[1].split("\n\n")[0]
    stated: dict[str, str] = {}
    for row in table.split("\n")[1:]:
        names, defaults = (re.findall(r"`([^`]+)`", cell) for cell in row.split(" | ")[:2])
        stated |= dict(zip(names, defaults, strict=True))
    fields = {f.name: f.default for f in dataclasses.fields(made)}
    assert stated.keys() == fields.keys()
    for name, default in fields.items():
        known = getattr(default, "__name__", default)
        assert stated[name] == str(known), name
    if issubclass(made, solvers.Solver):
        assert f"\n{made.default_steps} steps by default" in text
    for heading in ("## The ", "## Settings", "## Against", "## When to use it, and when not"):
        assert heading in text, heading
