"""The language of pages, docstrings and messages: short sentences in the words of the field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.prose import Sentence, docstring_sentences, message_sentences, page_sentences, split

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
MODULES = sorted((ROOT / "cmidiff").rglob("*.py"))
LONGEST = 25  # words
CODE = re.compile(r"``.+?``|`[^`]+`|\$[^$\n]+\$|\"[^\"]+\"")
PHRASES = [
    (line.rpartition(" | ")[0].strip(), line.rpartition(" | ")[2].strip())
    for line in (ROOT / "tests" / "phrases.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def sentences(kind: str) -> Iterator[Sentence]:
    """Every sentence of the pages, the docstrings or the messages."""
    read = {"pages": page_sentences, "docstrings": docstring_sentences, "messages": message_sentences}[kind]
    for path in PAGES if kind == "pages" else MODULES:
        yield from read(path, ROOT)


def found(text: str) -> list[str]:
    """The phrases of the list in a text, each with what to write instead; not in code, formulas and quotations."""
    plain = CODE.sub("", text)
    return [
        f"{match[0]} -> {instead}"
        for phrase, instead in PHRASES
        if (match := re.search(rf"(?<![\w-])(?:{phrase})(?![\w-])", plain, re.IGNORECASE))
    ]


@pytest.mark.parametrize("kind", ["pages", "docstrings", "messages"])
def test_sentences_are_short(kind: str) -> None:
    every = list(sentences(kind))
    assert len(every) > 500
    long = [f"{one.where}: {one.words} words: {one.text}" for one in every if one.words > LONGEST]
    assert not long, "\n".join(["split these sentences", *long])


@pytest.mark.parametrize("kind", ["pages", "docstrings", "messages"])
def test_no_phrase_of_the_list_is_used(kind: str) -> None:
    wrong = [
        f"{one.where}: {', '.join(phrases)}: {one.text}" for one in sentences(kind) if (phrases := found(one.text))
    ]
    assert not wrong, "\n".join(["write in the words of tests/phrases.txt", *wrong])


def test_phrases_and_long_sentences_are_found(tmp_path: Path) -> None:
    (long,) = split(" ".join(["word"] * 20) + " `one code` and $a + b$ and three more.", "here")
    assert long.words == 26
    assert found("Whoever wants derivatives that this prior has not.") == [
        "Whoever -> for ..., disable ...",
        "has not -> does not have, does not support",
    ]
    assert not found('A result that has not diverged; `kept`, and the "picture" of a quotation.')
    page = "# Title\nA `b`. C\nd.\n\n    code a. b.\n\n- one; two\n- three\n\n| a. b | c |\n\n```\nx.\n```\n"
    (tmp_path / "page.md").write_text(page)
    assert [one.text for one in page_sentences(tmp_path / "page.md", tmp_path)] == [
        *("Title", "A `b`.", "C d.", "one; two", "three"),
    ]
    (tmp_path / "code.py").write_text(
        'def f(a):\n    """Do it. Well::\n\n        literal. block.\n\n    Args:\n        a (int): one thing.\n'
        '            Two.\n\n    Source: A, B. 2020. C.\n    """\n'
        '    raise ValueError(f"a must be {a}: do this; do that")\n'
    )
    assert [one.text for one in docstring_sentences(tmp_path / "code.py", tmp_path)] == [
        *("Do it.", "Well::", "one thing.", "Two."),
    ]
    assert [one.text for one in message_sentences(tmp_path / "code.py", tmp_path)] == [
        *("a must be `x`:", "do this;", "do that"),
    ]
