"""The report as one page: everything is in the file, nothing is fetched, no script runs."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from cmidiff.evaluate import summary
from cmidiff.evaluate.cases import LOSSLESS, Case, encoded
from cmidiff.evaluate.comparison import Comparison
from cmidiff.evaluate.plots import SIZE, Plot

TEMPLATE = "report.html.jinja"


def render(comparison: Comparison, name: str, plots: Sequence[Plot], cases: Sequence[Case]) -> str:
    """The whole page; every text in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        name=name,
        c=comparison,
        summary=summary,
        plots=plots,
        cases=cases,
        plot_size=[round(72 * inches) for inches in SIZE],
        lossless=LOSSLESS,
        configuration=json.dumps(comparison.about["config"], indent=2),
        picture=_picture,
        svg=lambda content: _data("image/svg+xml", content),
    )


def _picture(image: Image.Image) -> str:
    return _data(*encoded(image))


def _data(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{b64encode(content).decode()}"
