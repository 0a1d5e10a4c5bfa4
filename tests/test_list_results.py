"""The list of results: which tables and images it finds, and whose command and commit it names."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = """# Page

    cmidiff evaluate --out a      # a comment

| task | PSNR |
|---|---|
| box | 21.3 |

## Words

| name | meaning |
|---|---|
| cmidiff | restores images |

## Below

| x | CRPS |
|---|---|
| 1 | 0.05 |

`python benchmarks/spread.py IMAGES` prints it. ![A curve](curve.svg)

## Settings

| option | default |
|---|---|
| scale | 0.3 |

## Nothing of its own

![An image](other.png)
"""


@pytest.fixture
def tool(load_benchmark: Callable[[str], Any]) -> Any:
    return load_benchmark("list_results")


def test_results_and_their_commands(tool: Any) -> None:
    found = [(r.first, r.last, r.title, r.image, r.command) for r in tool.find_results(PAGE)]
    assert found == [
        (5, 7, "Page", "", "cmidiff evaluate --out a"),
        (17, 19, "Below", "", "python benchmarks/spread.py IMAGES"),
        (21, 21, "Below", "curve.svg", "python benchmarks/spread.py IMAGES"),
        (31, 31, "Nothing of its own", "other.png", "cmidiff evaluate --out a"),
    ]


def test_a_page_without_commands_says_so(tool: Any) -> None:
    assert [r.command for r in tool.find_results("| a |\n|---|\n| 1.5 |\n")] == [""]


def test_the_commit_is_the_last_that_changed_the_table(tool: Any, tmp_path: Path) -> None:
    dates = iter(range(10**9, 2 * 10**9, 10**6))

    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        when = {name: f"{next(dates)} +0000" for name in ("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE")}
        done = subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True, env=os.environ | when
        )
        return done.stdout

    page = tmp_path / "page.md"
    git("init", "-q")
    commits = []
    for text in (PAGE, PAGE.replace("21.3", "21.4"), PAGE.replace("21.3", "21.4") + "\nmore\n"):
        page.write_text(text)
        git("add", "page.md")
        git("commit", "-qm", "change")
        commits.append(git("rev-parse", "HEAD")[:7])
    results = tool.find_results(page.read_text())
    assert [tool.find_commit(page, r, tmp_path)[0] for r in results[:2]] == [commits[1], commits[0]]
    assert tool.find_commit(page, results[2], tmp_path) == ("not committed", None)
    page.write_text(page.read_text().replace("21.4", "21.5"))
    assert tool.find_commit(page, results[0], tmp_path) == ("not committed", None)
