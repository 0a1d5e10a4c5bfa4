"""What the pages name exists: functions of the library, and tests; and every public name is in the reference."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
SECTIONS = ["The", "Settings", "Against", "Cost"]  # first words of what each page of a solver has, in this order
TEST = re.compile(r"(test_\w+\.py)::(test_\w+)")
NAME = re.compile(r"`(cmidiff(?:\.\w+)+)`")
REFERENCE = re.compile(r"^::: (cmidiff[\w.]*)$", re.MULTILINE)


def named(pattern: re.Pattern[str]) -> list[str]:
    """What the pages name, each once."""
    return sorted({match[0].strip("`") for page in PAGES for match in pattern.finditer(page.read_text())})


def resolve(dotted: str) -> object:
    """The module or attribute of this name."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(dotted)


def test_the_theory_names_tests_and_functions() -> None:
    theory = (ROOT / "docs" / "theory.md").read_text()
    assert len(TEST.findall(theory)) > 20
    assert len(NAME.findall(theory)) > 12


def test_every_formula_of_the_theory_has_its_function_and_its_test() -> None:
    theory = (ROOT / "docs" / "theory.md").read_text()
    parts = [part for part in re.split(r"^#+ ", theory, flags=re.MULTILINE) if "$" in part]
    words = ("Letters\n", "What it should do", "Theory\n")  # these define and discuss, and compute nothing
    for part in parts:
        if not part.startswith(words):
            assert TEST.search(part), part
            assert NAME.search(part), part


def test_every_solver_has_a_page_with_its_update_source_differences_and_cost() -> None:
    from cmidiff.registry import SOLVERS

    pages = {path.stem: path.read_text() for path in (ROOT / "docs" / "solvers").glob("*.md") if path.stem != "index"}
    for name in set(SOLVERS) - {"unconditional"}:
        own = name.replace("-", "") in pages
        assert own or any(f"{name}-".startswith(f"{page}-") for page in pages), f"{name} has no page"
    for name, text in pages.items():
        titles = [line.removeprefix("## ").split()[0] for line in text.splitlines() if line.startswith("## ")]
        assert [title for title in titles if title in SECTIONS] == SECTIONS, name
        assert "arxiv.org/abs" in text or "openreview.net" in text, name
        assert "../cost.md" in text, name
        assert "$$" in text, name
        assert TEST.search(text), name


@pytest.mark.parametrize("name", named(TEST))
def test_a_named_test_exists(name: str) -> None:
    file, function = name.split("::")
    assert f"def {function}(" in (ROOT / "tests" / file).read_text()


def test_named_functions_exist() -> None:
    from cmidiff import registry

    groups = {value.group for value in vars(registry).values() if isinstance(value, registry.Registry)}
    for name in [*named(NAME), *(line.removeprefix("::: ") for line in named(REFERENCE))]:
        if name not in groups:
            resolve(name)


def test_every_public_name_is_in_the_reference() -> None:
    import cmidiff

    documented = [resolve(line.removeprefix("::: ")) for line in named(REFERENCE)]
    missing = [name for name in cmidiff.__all__ if name != "__version__" and getattr(cmidiff, name) not in documented]
    assert not missing
