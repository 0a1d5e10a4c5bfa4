"""Sentences of the pages, docstrings and messages, for the tests of their language."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^ *(```|~~~).*?^ *\1", re.MULTILINE | re.DOTALL)
DISPLAY = re.compile(r"\$\$.*?\$\$", re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
INLINE = re.compile(r"``.+?``|`[^`]+`|\$[^$\n]+\$", re.DOTALL)
LINK = re.compile(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", re.DOTALL)
ADDRESS = re.compile(r"https?://[^\s)]+")
CITATION = re.compile(r"\s*\([^()]*\baddress\b[^()]*\)")
COLUMNS = re.compile(r"\S {2,}\S")
LIST = re.compile(r"^\s*(?:[-*+]|\d+\.) +")
HEADING = re.compile(r"^#+ +")
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|et al|etc|vs|cf|approx|no|Fig|Eq|Sec|Dr)\.", re.IGNORECASE)
END = re.compile(r"(?<=[.!?])[\"')*_]*\s+(?=\S)")
SECTION = re.compile(
    r"(Args|Attributes|Returns|Raises|Yields|References|Shapes|Sources?|Note|Example|Tables|Shape|Settings)::?\s*$"
)
WORD = re.compile(r"[^\W_][\w'/.,%+-]*")


class Sentence(NamedTuple):
    """A sentence, with inline code and formulas as they stand.

    Attributes:
        where: file and line of the block that holds it.
        text: in one line.
    """

    where: str
    text: str

    @property
    def words(self) -> int:
        """How many words it has; inline code, a formula or a number counts as one."""
        plain = INLINE.sub(" code ", self.text)
        return len(WORD.findall(plain))


def split(text: str, where: str) -> Iterator[Sentence]:
    """Split a paragraph into its sentences."""
    text = " ".join(LINK.sub(r"\1", text).split())
    codes = INLINE.findall(text)
    held = CITATION.sub("", INLINE.sub("\x00", ADDRESS.sub("address", text)))
    held = ABBREVIATION.sub(lambda found: found[0].replace(".", ""), held)
    for part in (one for piece in held.split(" · ") for one in END.split(piece)):
        while "\x00" in part:
            part = part.replace("\x00", codes.pop(0), 1)
        if part.strip():
            yield Sentence(where, part.strip())


def _blank(found: re.Match[str]) -> str:
    return "\n" * found[0].count("\n")


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """The paragraphs and list items of a page with the number of their first line; no code, tables or formulas."""
    for pattern in (FENCE, DISPLAY, COMMENT):
        text = pattern.sub(_blank, text)
    block: list[str] = []
    first, listed, last = 0, False, ""
    for number, line in enumerate([*text.split("\n"), ""], 1):
        item = LIST.match(line) is not None
        if line.strip() and not line.startswith(" "):
            listed = item
        code = line.startswith("    ") and not block and not listed
        other = not line.strip() or line.lstrip().startswith(("|", ":::", "!!!", "---", "<")) or code
        if block and (other or item or HEADING.match(line) or HEADING.match(last)):
            yield first, "\n".join(block)
            block = []
        if not other:
            first = first if block else number
            block.append(LIST.sub("", HEADING.sub("", line)))
        last = line


def page_sentences(path: Path, root: Path) -> Iterator[Sentence]:
    """Sentences of a page in Markdown."""
    for number, block in paragraphs(path.read_text(encoding="utf-8")):
        yield from split(block, f"{path.relative_to(root)}:{number}")


def docstring_sentences(path: Path, root: Path) -> Iterator[Sentence]:
    """Sentences of the docstrings of a module; no literal blocks, formulas or tables."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                line = getattr(node, "lineno", 1)
                for block in _blocks(text):
                    yield from split(block, f"{path.relative_to(root)}:{line}")


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs of a docstring; each entry of a section is one."""
    section = False
    literal: int | None = None
    block: list[str] = []
    references = False
    for line in [*text.split("\n"), ""]:
        indent = len(line) - len(line.lstrip())
        references = bool(line.strip()) and (references or line.lstrip().startswith(("Source: ", "Sources: ")))
        if references:
            line = ""
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        heading = SECTION.match(line.strip()) is not None
        entry = section and indent == 4
        if block and (not line.strip() or heading or entry or LIST.match(line) or literal is not None):
            yield "\n".join(block)
            block = []
        if heading:
            section = True
        elif line.strip() and indent == 0:
            section = False
        if (
            literal is not None
            or not line.strip()
            or heading
            or COLUMNS.search(line.strip())
            or line.lstrip().startswith("|")
        ):
            continue
        if not section and indent >= 4 and not block:  # a formula or a command on lines of its own
            continue
        body = re.sub(r"^[\w*, ./`-]+?(?: \([^)]*\))?: +", "", line.strip()) if entry else LIST.sub("", line.strip())
        block.append(body)
        if line.rstrip().endswith("::") or line.lstrip().startswith(".. "):
            literal = indent


def message_sentences(path: Path, root: Path) -> Iterator[Sentence]:
    """Sentences of error messages, warnings and texts of help; what is filled in counts as one word."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Raise | ast.Call):
            continue
        texts: list[ast.expr] = []
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            texts = [*node.exc.args]
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts = [*node.args[:1]] if name in ("warn", "echo", "print", "Markdown", "Warning", "Info") else []
            texts += [k.value for k in node.keywords if k.arg in ("help", "info", "label", "placeholder", "epilog")]
        for text in texts:
            if (found := _literal(text)) is not None:
                for part in re.split(r"(?<=[:;])\s+", found):
                    yield from split(part, f"{path.relative_to(root)}:{node.lineno}")


def _literal(node: ast.expr) -> str | None:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_literal(v) or "`x`" for v in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (_literal(left) or "`x`") + (_literal(right) or "`x`")
    return None
