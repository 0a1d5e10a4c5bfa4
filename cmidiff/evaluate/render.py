"""The report as a page, in which everything is in the file and no script runs, and as Markdown."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cmidiff.evaluate import summary
from cmidiff.evaluate.cases import LOSSLESS, Case, encode
from cmidiff.evaluate.comparison import Comparison
from cmidiff.evaluate.plots import SIZE, Plot
from cmidiff.evaluate.tables import LEFT, Table, list_differences, list_endings, list_figures

TEMPLATE = "report.html.jinja"


def render_page(comparison: Comparison, name: str, plots: Sequence[Plot], cases: Sequence[Case]) -> str:
    """The whole page; every text in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def embed(content: bytes, media_type: str = "image/svg+xml") -> str:
        return f"data:{media_type};base64,{b64encode(content).decode()}"

    return environment.get_template(TEMPLATE).render(
        name=name,
        c=comparison,
        summary=summary,
        figures=list_figures(comparison),
        differences=list_differences(comparison),
        endings=list_endings(comparison),
        left=LEFT,
        plots=plots,
        cases=cases,
        plot_size=[round(72 * inches) for inches in SIZE],
        lossless=LOSSLESS,
        configuration=json.dumps(comparison.about["config"], indent=2),
        embed_image=lambda image: embed(*encode(image)),
        svg=embed,
    )


def escape(text: str) -> str:
    """Text that Markdown shows as it is, in a table, too."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&$])", r"\\\1", " ".join(text.split()))


def render_markdown(comparison: Comparison, name: str, plots: Sequence[tuple[str, Plot]]) -> str:
    """The report as Markdown.

    Args:
        comparison: all figures.
        name: of the run.
        plots: (path relative to the report, figure).
    """
    return "\n".join(_blocks(comparison, name, plots))


def _blocks(comparison: Comparison, name: str, plots: Sequence[tuple[str, Plot]]) -> Iterator[str]:
    yield f"# {escape(name)}\n\n{summary.state_verdict(comparison)}\n"
    yield from (f"- {escape(key)}: {escape(value)}" for key, value in summary.list_facts(comparison))
    if caveats := summary.list_caveats(comparison):
        yield "\n**What these figures do not show**\n"
        yield from (f"- {escape(text)}" for text in caveats)
    yield f"\n{escape(summary.state_rule(comparison))}\n"
    for table in list_figures(comparison):
        yield f"## {table.title}\n\n{escape(table.note)}\n\n{_tabulate(table)}"
    yield f"## CMI minus base, pair by pair\n\n{summary.PAIRS}\n"
    for table in list_differences(comparison):
        yield f"### {escape(table.title)}\n\n{_tabulate(table)}"
    yield f"## How the units ended, and what they cost\n\n{summary.COST}\n\n{_tabulate(list_endings(comparison))}"
    yield f"## Quality against cost\n\n{summary.BARS}\n"
    yield from (f"![{escape(plot.alt)}]({path})\n" for path, plot in plots)
    yield "## Configuration\n"
    yield from (f"    {line}" for line in json.dumps(comparison.about["config"], indent=2).split("\n"))


def _tabulate(table: Table) -> str:
    lines = [["", *map(escape, table.header)], [":--", *["--:"] * len(table.header)]]
    for name, fields in (row for group in table.groups for row in group):
        texts = ((", ".join(filter(None, (escape(f.text), escape(f.below)))), f.mark) for f in fields)
        lines.append([escape(name), *(f"**{text} {mark}**" if mark else text for text, mark in texts)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
