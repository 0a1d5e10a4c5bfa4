r"""The table of the paper: rows are solvers with and without CMI, columns tasks times metrics.

Hamidi and Yang, Enhancing Diffusion Models for Inverse Problems with Covariance-Aware Posterior Sampling and
Conditional Mutual Information, 2025, https://arxiv.org/abs/2501.02880, Table I. There every better figure is green and
every worse one red; here only those whose difference is significant.
"""

from __future__ import annotations

from cmidiff.evaluate.comparison import DASH, MINUS, Comparison, Line, Quality
from cmidiff.statistics import ALPHA, LEVEL

PAPER = ("fid", "kid", "lpips", "ssim", "psnr")  # the paper's columns in its order, with KID, and PSNR
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after the end of a row these would be its options
    "]": "{]}",
    "*": "{*}",
    "η": r"$\eta$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    MINUS: "$-$",
    DASH: "--",
    **{sign: f"\\{sign}" for sign in "{}$&#%_"},
}


def escape(text: str) -> str:
    """Text that LaTeX prints as it is; line breaks and control characters become spaces."""
    printable = "".join(sign if sign.isprintable() else " " for sign in text)
    return "".join(_SPECIAL.get(sign, sign) for sign in printable)


TABLE = r"""% Needs \usepackage{{booktabs,graphicx,xcolor}}
\providecommand{{\cmibetter}}[1]{{\textcolor{{green!45!black}}{{#1}}}}
\providecommand{{\cmiworse}}[1]{{\textcolor{{red!75!black}}{{#1}}}}
\begin{{table*}}[t]
\centering
\caption{{{caption}}}
\medskip
{body}
\end{{table*}}
"""
BODY = r"""\resizebox{{\textwidth}}{{!}}{{%
\begin{{tabular}}{{l{columns}}}
\toprule
{head}
{rows}
\bottomrule
\end{{tabular}}}}"""


def render(comparison: Comparison) -> str:
    r"""A ``table*`` to be ``\input`` into a paper."""
    present = {quality.name: quality for quality in comparison.present}
    columns, tasks = [present[name] for name in PAPER if name in present], comparison.tasks
    if not columns:
        return TABLE.format(caption=_caption(comparison), body="No unit has finished.")
    count = len(columns)
    titles = [rf"\multicolumn{{{count}}}{{c}}{{{escape(task)}}}" for task in tasks]
    rules = (rf"\cmidrule(lr){{{2 + count * i}-{1 + count * (i + 1)}}}" for i in range(len(tasks)))
    names = [escape(f"{q.title} {q.arrow}") for q in columns] * len(tasks)
    head = [" & ".join(["", *titles]) + r" \\", "".join(rules), " & ".join(["", *names]) + r" \\"]
    rows, above = [], None
    for line in comparison.lines:
        if (line.solver, line.steps) != above:
            rows.append(r"\midrule")
            above = (line.solver, line.steps)
        figures = [_figure(comparison, line, task, quality) for task in tasks for quality in columns]
        rows.append(" & ".join([escape(comparison.label(line)), *figures]) + r" \\")
    body = BODY.format(columns="c" * count * len(tasks), head="\n".join(head), rows="\n".join(rows))
    return TABLE.format(caption=_caption(comparison), body=body)


def _figure(comparison: Comparison, line: Line, task: str, quality: Quality) -> str:
    entry = comparison.entry(line, task, quality)
    if entry.value is None:
        return "--"
    mean = escape(quality.text(entry.value.mean))
    command = {"better": r"\cmibetter", "worse": r"\cmiworse"}.get(entry.verdict(quality))
    shown = f"{command}{{{mean}}}" if command else mean
    half = "" if entry.value.half is None else rf" {{\scriptsize$\pm$ {escape(quality.text(entry.value.half))}}}"
    return shown + half + (r"$^\dagger$" if entry.value.n != comparison.usable else "")


def _caption(comparison: Comparison) -> str:
    images = f"{comparison.usable} image" + ("s" if comparison.usable != 1 else "")
    text = (
        f"Solvers with and without CMI, mean over {images} and its {LEVEL:.0%} interval, prior "
        f"{comparison.about['prior']['name']}. "
        f"Green: better with CMI, red: worse, only where the paired test (signed ranks; of FID and KID a bootstrap) "
        f"gives p < {ALPHA:g} after Holm's correction for {comparison.tests} cells."
    )
    if missing := [q.title for q in comparison.absent if q.name in PAPER]:
        text += f" Absent for want of their network's weights: {', '.join(missing)}."
    if pending := comparison.total("pending"):
        text += f" Unfinished: {pending} units are missing."
    caption = escape(text)
    if any(entry.value and entry.value.n != comparison.usable for entry in comparison.entries.values()):
        caption += r" $^\dagger$: of fewer images, as units diverged, failed or are missing."
    return caption
