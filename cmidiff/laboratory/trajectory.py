"""The information ``I(x_0; y | x_t)`` along a run, for every solver with and without CMI.

Problems of the 25-component mixture with d = 8 and m = 2, the exact value of `cmidiff.information.exact` in nats at
25 states. While little is decided the information is large: ``y`` contains much of it. It falls as ``x_t``
commits itself. The run with nothing approximated (``exact posterior``) shows how fast it should.
"""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure

from cmidiff.information import exact
from cmidiff.laboratory.chains import METHODS, list_levels, make_cmi, run_chains
from cmidiff.laboratory.findings import Cell, Findings, Table
from cmidiff.laboratory.plots import COLOURS, panels
from cmidiff.laboratory.posterior import Job
from cmidiff.laboratory.settings import Settings, make_seed

PROBLEMS, CHAINS, POINTS = 4, 64, 25


def measure(settings: Settings) -> Findings:
    """Mean and band of the information over chains and problems."""
    rows: list[list[Cell]] = []
    for name in METHODS:
        if name == "unconditional" or METHODS[name].own:
            continue
        job = Job("mixture-25", 8, name, settings)
        scale, eta = job.tune()
        for used in dict.fromkeys((0.0, eta)):
            rows += [[name, used, *point] for point in _along(job, scale, used)]
    curves = Table(
        "Information along the run",
        ("solver", "eta", "t", "sigma/alpha", "mean [nats]", "10%", "90%"),
        rows,
        shown=False,
    )
    return Findings({"summary": _summarise(curves), "curves": curves})


def _along(job: Job, scale: float, eta: float) -> list[list[Cell]]:
    problems = job.problems("test", 2).take(slice(PROBLEMS))
    chains = 16 if job.settings.quick else CHAINS
    measurement, prior = problems.measurement(chains), problems.prior
    solver, count = METHODS[job.solver], job.size.steps * METHODS[job.solver].finer
    built = solver.build(problems, scale)
    seed = make_seed(job.settings.seed, "trajectory")
    points: list[list[Cell]] = []
    options: dict[str, Any] = {"chains": chains, "steps": count, "seed": seed, "sampler": solver.sampler(count)}
    steps = run_chains(problems, built, make_cmi(eta), **options)
    times, every = list_levels(prior.schedule, count), max(1, count // POINTS)
    for trace in steps:
        if trace.index % every == every - 1 and trace.index + 1 < len(times):
            t = times[trace.index + 1]
            value = exact(prior, measurement, trace.x_s, t)[0]
            low, high = torch.quantile(value, torch.tensor([0.1, 0.9], dtype=value.dtype)).tolist()
            alpha_t, sigma_t = prior.schedule(t)
            points.append([t, sigma_t / alpha_t, float(value.mean()), low, high])
    return points


def _summarise(curves: Table) -> Table:
    """The curves at a few noise levels."""
    levels = (5.0, 1.0, 0.5, 0.2, 0.1)
    rows: list[list[Cell]] = []
    for (name, eta), points in curves.frame.groupby(["solver", "eta"], sort=False):
        nearest = [(points["sigma/alpha"] - level).abs().idxmin() for level in levels]
        rows.append([name, eta or "-", *points["mean [nats]"][nearest]])
    return Table(
        "Mean information I(x_0; y | x_t) along the run, in nats (25 components, d = 8, m = 2)",
        ("solver", "eta", *(f"at sigma/alpha = {level:g}" for level in levels)),
        rows,
        "Above the exact posterior's: the run is undecided for longer than it should be; below: it commits too early.",
    )


def draw(found: Findings) -> dict[str, Figure]:
    """One panel a solver: base, with CMI, and the exact posterior."""
    frame = found.tables["curves"].frame
    is_exact = frame["solver"] == "exact posterior"
    groups = frame[~is_exact].groupby("solver", sort=False)
    figure, axes = panels([name for name, _ in groups], columns=4, width=3.4, height=2.8)
    for axis, (_, rows) in zip(axes, groups, strict=True):
        axis.semilogx(frame["sigma/alpha"][is_exact], frame["mean [nats]"][is_exact], "k:", label="exact")
        for colour, (eta, line) in zip(COLOURS, rows.groupby("eta", sort=False), strict=False):
            label = f"CMI, eta = {eta:g}" if eta else "base"
            axis.semilogx(line["sigma/alpha"], line["mean [nats]"], color=colour, label=label)
            axis.fill_between(line["sigma/alpha"], line["10%"], line["90%"], color=colour, alpha=0.12)
        axis.invert_xaxis()
        axis.set_xlabel("noise level sigma_t / alpha_t (the run goes right)", fontsize=8)
        axis.legend(fontsize=7, frameon=False)
    axes[0].set_ylabel("I(x_0; y | x_t) [nats]")
    return {"information": figure}
