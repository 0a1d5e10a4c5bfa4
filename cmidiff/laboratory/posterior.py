"""Every solver against posteriors that are known, with and without CMI.

Priors (`cmidiff.laboratory.mixtures.make_prior`): one Gaussian, the 25-component mixture, one of well separated modes
and one of heavy tails. On the last two ``p(x_0 | x_t)`` is far from Gaussian, contrary to Assumption 1 of the paper.

The step sizes of DPS, MCG and DSG, and then eta of either sign, are chosen on other problems with other seeds
(`cmidiff.laboratory.chains.choose_strengths`). The choice is for each prior, d and solver, of all m together; eta is
never 0. The test problems have not been seen by that choice. A solver with CMI and the one without share all random
numbers, so that their difference is paired, problem by problem. Intervals are Student's, 95%, over problems. The noise
levels are even in log(sigma/alpha) (`cmidiff.laboratory.chains.list_levels`), where 100 steps are enough: the row
``exact posterior`` shows what the steps cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from cmidiff.information import CMI
from cmidiff.laboratory.chains import METHODS, Outcome, choose_strengths, draw_floor, run_solver
from cmidiff.laboratory.findings import Cell, Findings, Frame, Table
from cmidiff.laboratory.jobs import compute_all, compute_once
from cmidiff.laboratory.mixtures import NOISE_STD, Family, Problems, make_problems
from cmidiff.laboratory.plots import COLOURS, panels
from cmidiff.laboratory.settings import Settings, make_seed
from cmidiff.statistics import Estimate, estimate

FLOOR = "exact samples"
MARKS = {"better": "+", "no difference": "=", "worse": "-"}
BASE, TUNED, DEFAULT = "none", "tuned", "default"  # CMI: without, the chosen eta, the library's eta
LABELS = {BASE: "without CMI", TUNED: "CMI, tuned", DEFAULT: "CMI, default"}
MEASURED = (1, 2, 4)  # m
COLUMNS = (
    "prior", "d", "m", "solver", "scale", "cmi", "eta", "problem", "distance", "mode error", "alive", "mean error",
    "variance ratio",
)  # fmt: skip
SAME_ON_A_GAUSSIAN = ("CADPS complete, churned",)  # as CADPS exact: the derivative of the covariance is zero
CONDITIONALS: tuple[Family, ...] = ("two-modes", "heavy-tails")


@dataclass(frozen=True)
class Size:
    """How much is run for a d: problems, chains of each, steps, and the precision."""

    problems: int
    chains: int
    steps: int
    dtype: torch.dtype
    tuning_problems: int = 9
    tuning_chains: int = 96


SIZES = {
    8: Size(12, 512, 100, torch.float64),
    80: Size(12, 256, 100, torch.float32),
    800: Size(10, 64, 100, torch.float32, tuning_chains=32),
}
QUICK = Size(4, 64, 60, torch.float64, 3, 32)


@dataclass(frozen=True)
class Job:
    """One solver on one prior in one dimension: tuned, then run for every m."""

    family: Family
    d: int
    solver: str
    settings: Settings

    @property
    def size(self) -> Size:
        return QUICK if self.settings.quick else SIZES[self.d]

    @property
    def measured(self) -> Sequence[int]:
        narrow = self.settings.quick or self.family in CONDITIONALS
        return MEASURED[1:2] if narrow else MEASURED

    def problems(self, purpose: str, m: int) -> Problems:
        tuning = self.size.tuning_problems // len(self.measured)
        count = self.size.problems if purpose == "test" else tuning
        g = self.settings.generator(purpose, self.family, self.d, m)
        return make_problems(self.family, self.d, m, count, g).to(self.size.dtype)

    def tune(self) -> tuple[float, float]:
        """``(scale, eta)`` from other problems than those of the test."""
        size, solver = self.size, METHODS[self.solver]
        if self.family == "gaussian" and len(solver.scales) == 1:
            return solver.scales[0], 0.0
        if self.family == "gaussian":  # grad I vanishes: there is no eta to find
            solver = replace(solver, guided=False)
        several = [self.problems("tuning", m) for m in self.measured]
        seed = make_seed(self.settings.seed, "tuning", self.family, self.d)
        return choose_strengths(several, solver, chains=size.tuning_chains, steps=size.steps, seed=seed)


def list_jobs(settings: Settings) -> list[Job]:
    """All of them, the longest first."""
    dimensions = (8,) if settings.quick else (800, 80, 8)
    families: tuple[Family, ...] = ("mixture-25", "gaussian")
    names = (FLOOR, *METHODS)
    wide = [
        Job(family, d, name, settings)
        for d in dimensions
        for family in families
        for name in names
        if family != "gaussian" or name not in SAME_ON_A_GAUSSIAN
    ]
    return wide + [Job(family, 8, name, settings) for family in CONDITIONALS for name in names]


def run_job(job: Job) -> list[list[Cell]]:
    """Rows of a job, as `COLUMNS`."""
    torch.set_num_threads(1)
    size = job.size
    rows: list[list[Cell]] = []
    scale, eta = (1.0, 0.0) if job.solver == FLOOR else job.tune()
    for m in job.measured:
        problems = job.problems("test", m)
        seed = make_seed(job.settings.seed, "test", job.family, job.d, m)
        if job.solver == FLOOR:
            rows += _rows(job, m, 1.0, BASE, 0.0, problems, _floor(problems, size.chains, seed))
            continue
        strengths = {BASE: 0.0}
        if eta != 0:
            strengths |= {TUNED: eta, DEFAULT: CMI().eta}
        found: dict[float, Outcome] = {}
        for cmi, used in strengths.items():
            if used not in found:
                found[used] = run_solver(
                    problems, METHODS[job.solver], scale, used, chains=size.chains, steps=size.steps, seed=seed
                )
            rows += _rows(job, m, scale, cmi, used, problems, found[used])
    return rows


def _floor(problems: Problems, chains: int, seed: int) -> Outcome:
    """The mean of several draws."""
    several = [draw_floor(problems, chains=chains, seed=seed + k) for k in range(8)]
    distance, modes = (torch.stack([getattr(o, name) for o in several]).mean(0) for name in ("distance", "modes"))
    return Outcome(distance, modes, several[0].alive, several[0].x)


def _rows(job: Job, m: int, scale: float, cmi: str, eta: float, problems: Problems, found: Outcome) -> list[list[Cell]]:
    head: list[Cell] = [job.family, job.d, m, job.solver, scale, cmi, eta]
    errors: list[list[Cell]] = [[None, None]] * len(problems)
    if job.family == "gaussian":
        mean, ratio = gaussian_errors(problems, found.x)
        errors = [list(pair) for pair in zip(mean.tolist(), ratio.tolist(), strict=True)]
    lists = (found.distance.tolist(), found.modes.tolist(), found.alive.tolist(), errors)
    return [
        [*head, number, distance, mode, alive, *error]
        for number, (distance, mode, alive, error) in enumerate(zip(*lists, strict=True))
    ]


def gaussian_errors(problems: Problems, x: Tensor) -> tuple[Tensor, Tensor]:
    """Samples (P, C, d) of a Gaussian posterior, in the m measured directions (elsewhere it is nearly the prior).

    Returns:
        Root mean square over the directions of (sample mean - exact mean) in exact standard deviations, and mean of
        (sample variance / exact variance), each after whitening with the exact covariance; shapes (P,).
    """
    problems, x = problems.to(torch.float64), x.to(torch.float64)
    prior, a = problems.prior, problems.matrices
    directions = torch.linalg.svd(a, full_matrices=False)[2]
    variances, eye = prior.variances[0], torch.eye(a.shape[1], dtype=a.dtype)
    gain = variances * a  # (P, m, d), A C
    s = gain @ a.mT + problems.noise_std**2 * eye
    correction = gain.mT @ torch.linalg.inv(s)
    residual = problems.y - torch.einsum("pmd,d->pm", a, prior.means[0])
    mean = prior.means[0] + (correction @ residual[..., None])[..., 0]
    inside = directions @ (variances[:, None] * directions.mT) - directions @ correction @ gain @ directions.mT
    root = torch.linalg.cholesky(inside)
    z = torch.linalg.solve_triangular(root, ((x - mean[:, None]) @ directions.mT).mT, upper=False)
    return z.mean(2).square().mean(1).sqrt(), z.var(2).mean(1)


def measure(settings: Settings) -> Findings:
    """All jobs, several at once."""
    work = list_jobs(settings)
    rows = [row for part in compute_all(run_job_once, work, settings.workers) for row in part]
    every = Table("Every problem", COLUMNS, rows, shown=False)
    mixture, conditionals = _compare(every.frame, ("mixture-25",)), _compare(every.frame, CONDITIONALS)
    return Findings(
        {
            "overview": _overview(mixture, "25 components: distance to the exact posterior, over the floor"),
            "conditionals-overview": _overview(conditionals, "Non-Gaussian conditionals, the same"),
            "verdicts": _count_verdicts([mixture, conditionals]),
            "gaussian": _gaussian(every.frame),
            "mixture": mixture,
            "conditionals": conditionals,
            "problems": every,
        }
    )


def run_job_once(job: Job) -> list[list[Cell]]:
    """`run_job`, or what an interrupted run of the section has left of it."""
    name = f"{job.family}-{job.d}-{job.solver}-{job.settings.seed}-{job.settings.quick}"
    return compute_once(job.settings, name, lambda: run_job(job))


def _pm(found: Estimate) -> str:
    return f"{found.mean:.3g} ± {found.half:.2g}"


def _cells(frame: Frame, families: Sequence[Family]) -> Iterator[tuple[list[Cell], Frame]]:
    """Prior, d and m, and their rows."""
    chosen = frame[frame["prior"].isin(families)]
    return ((list(key), rows) for key, rows in chosen.groupby(["prior", "d", "m"]))


def _compare(every: Frame, families: Sequence[Family]) -> Table:
    rows: list[list[Cell]] = []
    for key, cell in _cells(every, families):
        lowest = cell[cell["solver"] == FLOOR]["distance"].mean()
        for (name, cmi), runs in cell.groupby(["solver", "cmi"], sort=False):
            base = cell[(cell["solver"] == name) & (cell["cmi"] == BASE)]["distance"].to_numpy()
            distance = estimate(runs["distance"])
            row = [*key, name, _scale_of(runs), cmi, runs["eta"].iloc[0] or "-", _pm(distance), distance.mean / lowest]
            row += [runs["mode error"].mean(), runs["alive"].min()]
            if runs["eta"].iloc[0] == 0:
                rows.append([*row, "-", "-"])
            else:
                gap = estimate(runs["distance"], base)
                rows.append([*row, _pm(gap), verdict(gap)])
    return Table(
        "Sliced Wasserstein distance to the exact posterior" + (" (25 components)" if len(families) == 1 else ""),
        (
            "prior", "d", "m", "solver", "scale", "cmi", "eta", "distance", "/ floor", "mode error", "alive",
            "CMI - base", "verdict",
        ),
        rows,
        f"Means and 95% intervals over problems; sigma_y = {NOISE_STD}, coordinates of unit variance. Floor: two exact "
        "samples. Mode error: total variation of the components' weights. Alive: smallest share of chains that did "
        "not diverge. Scale and tuned eta: chosen on other problems; default: the library's eta.",
        shown=False,
    )  # fmt: skip


def verdict(gap: Estimate) -> str:
    """Of a paired difference of distances, CMI minus base."""
    if gap.half is None or not abs(gap.mean) > gap.half:
        return "no difference"
    return "better" if gap.mean < 0 else "worse"


def _scale_of(runs: Frame) -> str:
    name = runs["solver"].iloc[0]
    return f"{runs['scale'].iloc[0]:g}" if name in METHODS and len(METHODS[name].scales) > 1 else "-"


def _overview(comparison: Table, title: str) -> Table:
    """One line a solver, one column a problem: distance over floor, and the verdicts on CMI."""
    frame = comparison.frame
    several = frame["prior"].nunique() > 1
    column = "d " + frame["d"].astype(str) + ", m " + frame["m"].astype(str)
    frame["column"] = frame["prior"] + ", " + column if several else column
    marks = frame["verdict"].map(MARKS).fillna("")
    frame["text"] = frame["/ floor"].map("{:.2f}".format).where(frame["cmi"] == BASE, "") + marks
    wide = frame.groupby(["solver", "column"], sort=False)["text"].agg(
        lambda t: f"{t.iloc[0]} {''.join(t[1:])}".strip()
    )
    wide = wide.unstack(sort=False)
    return Table(
        title,
        ("solver", *wide.columns),
        [[name, *row] for name, row in zip(wide.index, wide.to_numpy().tolist(), strict=True)],
        "Distance of the solver without CMI over that of two exact samples, and what CMI changes, first with the tuned "
        "eta, then with the default one: + nearer, - farther, = no difference beyond the 95% interval.",
    )


def _gaussian(every: Frame) -> Table:
    rows: list[list[Cell]] = []
    for (_, d, m), cell in _cells(every, ("gaussian",)):
        for name, runs in cell.groupby("solver", sort=False):
            errors = [_pm(estimate(runs[column])) for column in ("mean error", "variance ratio")]
            rows.append([d, m, name, _scale_of(runs), *errors, runs["alive"].min()])
    return Table(
        "Gaussian prior: the measured directions of the posterior",
        ("d", "m", "solver", "scale", "mean error [posterior std]", "variance ratio", "alive"),
        rows,
        "Means and 95% intervals over problems. An exact sampler has a mean error of 1 / sqrt(chains) and a ratio of "
        "1. CMI changes nothing here: the information does not depend on the state.",
    )


def _count_verdicts(tables: Sequence[Table]) -> Table:
    frame: Frame = pd.concat([table.frame for table in tables])
    guided = frame[frame["verdict"].isin(MARKS)]
    rows = []
    for key, found in guided.groupby(["prior", "solver", "cmi"], sort=False):
        etas = ", ".join(dict.fromkeys(f"{eta:g}" for eta in found["eta"]))
        rows.append([*key, etas, *((found["verdict"] == name).sum() for name in MARKS)])
    return Table(
        "Verdicts on CMI, over all d and m",
        ("prior", "solver", "cmi", "eta (by d)", *MARKS),
        rows,
        "Each is a 95% interval of its own: of 40 neutral cells about two would fall outside by chance, one a side.",
    )


def draw(found: Findings) -> dict[str, Figure]:
    """Distances over the floor, and what CMI changes."""
    every = found.tables["problems"].frame
    return {family: _draw(rows, family) for family, rows in every.groupby("prior") if family != "gaussian"}


def _draw(every: Frame, family: str) -> Figure:
    cells = list(every.groupby(["d", "m"]))
    figure, axes = panels([f"{family}: d = {d}, m = {m}" for (d, m), _ in cells], columns=3, height=3.0)
    styles = {BASE: (COLOURS[0], 0.2), TUNED: (COLOURS[1], 0.0), DEFAULT: (COLOURS[3], -0.2)}
    names = list(reversed(METHODS))
    for axis, (_, cell) in zip(axes, cells, strict=True):
        lowest = cell[cell["solver"] == FLOOR]["distance"].mean()
        axis.axvline(1.0, color="#444444", linewidth=1)
        for (name, cmi), runs in cell[cell["solver"].isin(names)].groupby(["solver", "cmi"], sort=False):
            ratio, (colour, shift) = estimate(runs["distance"] / lowest), styles[cmi]
            place: dict[str, Any] = {"x": ratio.mean, "y": names.index(name) + shift, "xerr": ratio.half}
            axis.errorbar(**place, label=LABELS[cmi], fmt="o", color=colour, markersize=4, capsize=2)
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.set_xlabel("distance / floor", fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    kinds = dict(zip(labels, handles, strict=True))
    figure.legend(kinds.values(), kinds.keys(), loc="outside lower center", ncols=len(kinds), fontsize=9, frameon=False)
    return figure
