"""What the site makes of the pages: formulas in MathML, which browsers draw without a script; pages and files from
outside of docs/ taken in; notebooks as pages; the drawing of the modules."""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path

import drawing  # pyright: ignore[reportMissingImports]  # beside this file
import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
LINK = re.compile(r"(?<=\]\()((?:\.\./)+[^)#\s]+)(?=[)#])")
NOTEBOOK = re.compile(r"(?<=\w)\.ipynb(?=\))")
MODULES = "<!-- table of the modules -->"
PAGES = {"model-card.md": "cmidiff/weights/natural-64/README.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Takes in the model card, the notebooks as pages, and every file outside of docs/ that a page links to."""
    outside: set[str] = set(PAGES.values())
    files.append(File.generated(config, "architecture.svg", content=drawing.svg()))
    for uri, path in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text()))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.append(File.generated(config, file.src_uri.removesuffix(".ipynb") + ".md", content=_page_of(file)))
    for file in [file for file in files if file.src_uri.endswith(".md")]:
        for target in LINK.findall(file.content_string):
            path = _in_repository(file.src_uri, target)
            if path is not None and path not in outside:
                outside.add(path)
                files.append(File.generated(config, f"files/{_flat(path)}", content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of docs/ lead to what was taken in, links to notebooks to their pages."""

    def inside(link: re.Match[str]) -> str:
        path = _in_repository(page.file.src_uri, link[1])
        if path is None:
            return link[1]
        target = next((uri for uri, taken in PAGES.items() if taken == path), f"files/{_flat(path)}")
        return posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    markdown = markdown.replace(MODULES, drawing.table())
    if not page.file.src_uri.startswith("notebooks/"):
        markdown = NOTEBOOK.sub(".md", markdown)
    return LINK.sub(inside, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas in MathML."""

    def drawn(formula: re.Match[str]) -> str:
        block = formula[2] == "["
        math = convert(html.unescape(formula[3]).strip(), display="block" if block else "inline")
        return f'<div class="formula" tabindex="0">{math}</div>' if block else math

    return FORMULA.sub(drawn, content)


def _in_repository(uri: str, target: str) -> str | None:
    """The path in the repository of what lies outside of docs/ and exists; None for anything else."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(uri), target))
    return path if not path.startswith(("docs/", "..")) and (ROOT / path).is_file() else None


def _flat(path: str) -> str:
    """A name for a copy; a page that is copied is shown as text."""
    return path.replace("/", "-") + (".txt" if path.endswith((".md", ".py")) else "")


def _page_of(file: File) -> str:
    """The text and the code of a notebook, and a link to it."""
    notebook = nbformat.reads(file.content_string, as_version=4)
    cells = [
        cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```" for cell in notebook.cells
    ]
    return "\n\n".join([*cells, f"[This page as a notebook]({posixpath.basename(file.src_uri)})"])
