"""Particle solvers against posteriors that are known: how near 256 particles come, and whether more come nearer.

The problems and the noise levels are those of `cmidiff.laboratory.posterior`. Particles of a problem are one cloud,
compared with as many exact samples; the floor is the distance of exact samples to exact samples. Several clouds of each
problem are run, each with a seed of its own. Nothing is tuned. One cloud is often off by a tenth of the floor, because
a few particles too many in a mode count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from cmidiff.covariance import Exact
from cmidiff.laboratory.chains import draw_floor, judge, run_chains
from cmidiff.laboratory.findings import Cell, Findings, Frame, Table
from cmidiff.laboratory.jobs import compute_all, compute_once
from cmidiff.laboratory.mixtures import Family, Problems, make_problems
from cmidiff.laboratory.plots import COLOURS, panels
from cmidiff.laboratory.posterior import CONDITIONALS, MEASURED, SIZES
from cmidiff.laboratory.settings import Settings, make_seed
from cmidiff.solvers import CADPS, FPS, TDS, MCGDiff, Solver
from cmidiff.statistics import estimate

EXACT_SAMPLES = "exact samples"
SOLVERS: dict[str, Callable[[int], Solver]] = {
    "TDS exact": lambda m: TDS(covariance=Exact(m)),  # S has m eigenvalues: conjugate gradients end after m iterations
    "TDS isotropic": lambda _: TDS(),
    "MCGDiff": lambda _: MCGDiff(),
    "FPS": lambda _: FPS(),
}
OTHERS: dict[str, Callable[[int], Solver]] = {
    "TDS exact, independent noise": lambda m: TDS(covariance=Exact(m), even=False),
    "CADPS exact": lambda m: CADPS(Exact(m)),
}
"""Solvers of the second table alone."""
CROWDS = (16, 64, 256, 1024)  # numbers of particles of the second table
ON: tuple[Family, int, int] = ("mixture-25", 8, 2)  # its problems
PARTICLES, STEPS, FLOORS = 256, 100, 8
CLOUDS = {8: 4, 80: 4, 800: 2}  # of each problem, by d; two in the second table
JUDGED, OF_JUDGED = "TDS exact", {8: 8, 80: 8, 800: 2}  # the solver that has a goal, and its clouds in the first table
KEYS = ["prior", "d", "m", "solver", "particles", "problem"]
COLUMNS = ("prior", "d", "m", "solver", "particles", "repetition", "problem", "distance", "mode error", "ess")


@dataclass(frozen=True)
class Job:
    """One solver on one kind of problem, with several numbers of particles."""

    solver: str
    family: Family
    d: int
    m: int
    crowds: Sequence[int]
    settings: Settings

    @property
    def name(self) -> str:
        parts = (self.solver, self.family, self.d, self.m, *self.crowds, self.settings.seed, self.settings.quick)
        return "-".join(map(str, parts))

    @property
    def clouds(self) -> int:
        """How many of each problem."""
        if self.solver == EXACT_SAMPLES:
            return FLOORS
        if self.settings.quick or len(self.crowds) > 1:
            return 2
        return (OF_JUDGED if self.solver == JUDGED else CLOUDS)[self.d]

    def problems(self) -> Problems:
        size = SIZES[self.d]
        g = self.settings.generator("test", self.family, self.d, self.m)
        return make_problems(self.family, self.d, self.m, 3 if self.settings.quick else size.problems, g).to(size.dtype)


def jobs(settings: Settings) -> list[Job]:
    """All of them, those of one solver after those of another."""
    crowds = CROWDS[:2] if settings.quick else CROWDS
    names = (*SOLVERS, EXACT_SAMPLES)
    dimensions, few = ((8,), CROWDS[1]) if settings.quick else ((800, 80, 8), PARTICLES)
    cells: list[tuple[Family, int, int]] = [("mixture-25", d, m) for d in dimensions for m in MEASURED]
    cells.extend((family, 8, 2) for family in CONDITIONALS)
    own = [Job(name, *cell, (few,), settings) for name in names for cell in cells]
    return [*own, *(Job(name, *ON, crowds, settings) for name in (*names, *OTHERS))]


def run_job(job: Job) -> list[list[Cell]]:
    """Rows of a job, as `COLUMNS`."""
    torch.set_num_threads(1)
    problems, rows = job.problems(), []
    steps = 30 if job.settings.quick else STEPS
    for crowd in job.crowds:
        for repetition in range(job.clouds):
            seed = make_seed(job.settings.seed, "particles", job.family, job.d, job.m, crowd, repetition)
            if job.solver == EXACT_SAMPLES:
                found, ess = draw_floor(problems, chains=crowd, seed=seed), torch.ones(len(problems))
            else:
                solver = (SOLVERS | OTHERS)[job.solver](job.m)
                options: dict[str, Any] = {"steps": steps, "seed": seed, "sampler": solver.sampler}
                *_, trace = run_chains(problems, solver, None, chains=crowd, **options)
                alive = problems.grouped(trace.alive).to(trace.x_s).mean(1)
                found = judge(problems, problems.grouped(trace.x_s), alive, seed)
                ess = problems.grouped(trace.own["ess"])[:, 0] if trace.own else torch.ones(len(problems))
            head: list[Cell] = [job.family, job.d, job.m, job.solver, crowd, repetition]
            values = zip(found.distance.tolist(), found.modes.tolist(), ess.tolist(), strict=True)
            rows += [[*head, p, distance, modes, share] for p, (distance, modes, share) in enumerate(values)]
    return rows


def run_job_once(job: Job) -> list[list[Cell]]:
    """`run_job`, or what an interrupted run has left of it."""
    return compute_once(job.settings, job.name, lambda: run_job(job))


def measure(settings: Settings) -> Findings:
    """All jobs, several at once."""
    work = jobs(settings)
    rows = [row for part in compute_all(run_job_once, work, settings.workers) for row in part]
    every = Table("Every problem", COLUMNS, rows, shown=False)
    few = CROWDS[1] if settings.quick else PARTICLES
    frame = every.frame.drop_duplicates([*KEYS, "repetition"])  # the second table has cells of the first
    return Findings({"overview": _overview(frame, few), "consistency": _consistency(frame), "problems": every})


def _overview(every: Frame, few: int) -> Table:
    found = every[(every["particles"] == few) & ~every["solver"].isin(OTHERS)]
    column = "d " + found["d"].astype(str) + ", m " + found["m"].astype(str)
    column = column.where(found["prior"] == "mixture-25", found["prior"] + ", " + column)
    problems = found.assign(column=column).groupby(["solver", "column", "problem"], sort=False)["distance"]
    parts = problems.agg(mean="mean", error=lambda d: d.var(ddof=1) / len(d)).groupby(["solver", "column"], sort=False)
    mean = parts["mean"].mean().unstack(sort=False)
    error = (parts["error"].sum() ** 0.5 / parts["error"].size()).unstack(sort=False)
    floor, names = mean.loc[EXACT_SAMPLES], (EXACT_SAMPLES, *SOLVERS)
    ratio, error = mean / floor, error / floor
    texts = [[f"{ratio.loc[n, c]:.2f} ± {error.loc[n, c]:.2f}" for c in mean.columns] for n in names]
    return Table(
        f"{few} particles: distance to the exact posterior, over the floor",
        ("solver", *mean.columns),
        [[name, *row] for name, row in zip(names, texts, strict=True)],
        "Sliced Wasserstein distance of one cloud to as many exact samples, over that of exact samples; means over "
        "problems and clouds, with the standard error of the clouds. Columns without a name: the mixture with 25 "
        "components.",
    )


def _consistency(every: Frame) -> Table:
    family, d, m = ON
    means = every.groupby(KEYS, sort=False)[["distance", "mode error"]].mean().reset_index()
    own = means[(means["prior"] == family) & (means["d"] == d) & (means["m"] == m)]
    rows: list[list[Cell]] = []
    for (name, crowd), found in own.groupby(["solver", "particles"], sort=False):
        distance, modes = estimate(found["distance"]), estimate(found["mode error"])
        rows.append([name, crowd, distance.mean, distance.half, modes.mean, modes.half])
    return Table(
        f"More particles: {family}, d = {d}, m = {m}",
        ("solver", "particles", "distance", "+-", "mode error", "+- of it"),
        sorted(rows, key=lambda row: (str(row[0]), row[1])),
        "Distance to as many exact samples, and total variation of the components' weights. A consistent solver falls "
        "with the exact samples; one that is not ends at its bias.",
    )


def draw(found: Findings) -> dict[str, Figure]:
    """Distance and mode error against the number of particles; intervals are in the table."""
    frame = found.tables["consistency"].frame
    figure, axes = panels(["distance to as many exact samples", "error of the components' weights"])
    for axis, column in zip(axes, ("distance", "mode error"), strict=True):
        for colour, (name, rows) in zip(COLOURS, frame.groupby("solver", sort=False), strict=False):
            line: dict[str, Any] = {"marker": "o", "markersize": 3, "color": colour, "label": name}
            axis.plot(rows["particles"], rows[column], **line, linestyle="--" if name == EXACT_SAMPLES else "-")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(sorted(set(frame["particles"])))
        axis.xaxis.set_major_formatter("{x:.0f}")
        for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
        axis.tick_params(labelsize=8, which="both")
        axis.set_xlabel("particles")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return {"consistency": figure}
