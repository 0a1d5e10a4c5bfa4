"""Every solver against posteriors that are known, with and without CMI.

Priors (`cmidiff.laboratory.mixtures.prior_of`): one Gaussian; the 25-component mixture; and two on which ``p(x_0 |
x_t)`` is far from Gaussian, as CMI assumes it is not (the paper's Assumption 1): well separated modes, heavy tails.

The step sizes of DPS, MCG and DSG, and then eta of either sign, are chosen on other problems with other seeds, of all
m together, for each prior, d and solver (`cmidiff.laboratory.chains.tuned`); eta is never 0. The test
problems have not been seen by that choice. A solver with CMI and the one without share all random numbers, so that
their difference is paired, problem by problem; intervals are Student's, 95%, over problems. The noise levels are even
in log(sigma/alpha) (`cmidiff.laboratory.chains.levels`), where 100 steps are enough: the row ``exact posterior`` shows
what the steps cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from matplotlib.figure import Figure
from torch import Tensor

from cmidiff.laboratory.chains import SOLVERS, Outcome, floor, outcome, tuned
from cmidiff.laboratory.findings import Cell, Findings, Table
from cmidiff.laboratory.mixtures import NOISE_STD, Family, Problems, problems_of
from cmidiff.laboratory.paired import interval, verdict
from cmidiff.laboratory.plots import COLOURS, panels
from cmidiff.laboratory.settings import Settings, seed_of

FLOOR = "exact samples"
MEASURED = (1, 2, 4)  # m
COLUMNS = (
    "prior", "d", "m", "solver", "scale", "eta", "problem", "distance", "mode error", "alive", "mean error",
    "variance ratio",
)  # fmt: skip
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
    800: Size(10, 96, 100, torch.float32, tuning_chains=32),
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
        return problems_of(self.family, self.d, m, count, g).to(self.size.dtype)

    def tuned(self) -> tuple[float, float]:
        """``(scale, eta)`` from other problems than those of the test."""
        size, solver = self.size, SOLVERS[self.solver]
        if self.family == "gaussian" and len(solver.scales) == 1:
            return solver.scales[0], 0.0
        if self.family == "gaussian":  # grad I vanishes: there is no eta to find
            solver = type(solver)(solver.build, solver.scales, guided=False)
        several = [self.problems("tuning", m) for m in self.measured]
        seed = seed_of(self.settings.seed, "tuning", self.family, self.d)
        return tuned(several, solver, chains=size.tuning_chains, steps=size.steps, seed=seed)


def jobs(settings: Settings) -> list[Job]:
    """All of them, the longest first."""
    dimensions = (8,) if settings.quick else (800, 80, 8)
    families: tuple[Family, ...] = ("mixture-25", "gaussian")
    names = (FLOOR, *SOLVERS)
    wide = [Job(family, d, name, settings) for d in dimensions for family in families for name in names]
    return wide + [Job(family, 8, name, settings) for family in CONDITIONALS for name in names]


def perform(job: Job) -> list[list[Cell]]:
    """Rows of a job, as `COLUMNS`."""
    torch.set_num_threads(1)
    size = job.size
    rows: list[list[Cell]] = []
    scale, eta = (1.0, 0.0) if job.solver == FLOOR else job.tuned()
    for m in job.measured:
        problems = job.problems("test", m)
        seed = seed_of(job.settings.seed, "test", job.family, job.d, m)
        if job.solver == FLOOR:
            rows += _rows(job, m, 1.0, 0.0, problems, _floor(problems, size.chains, seed))
            continue
        for used in dict.fromkeys((0.0, eta)):
            found = outcome(problems, SOLVERS[job.solver], scale, used, chains=size.chains, steps=size.steps, seed=seed)
            rows += _rows(job, m, scale, used, problems, found)
    return rows


def _floor(problems: Problems, chains: int, seed: int) -> Outcome:
    """The mean of several draws."""
    several = [floor(problems, chains=chains, seed=seed + k) for k in range(8)]
    distance, modes = (torch.stack([getattr(o, name) for o in several]).mean(0) for name in ("distance", "modes"))
    return Outcome(distance, modes, several[0].alive, several[0].x)


def _rows(job: Job, m: int, scale: float, eta: float, problems: Problems, found: Outcome) -> list[list[Cell]]:
    head: list[Cell] = [job.family, job.d, m, job.solver, scale, eta]
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
    work = jobs(settings)
    if settings.workers > 1:
        with ProcessPoolExecutor(settings.workers, mp_context=get_context("spawn")) as pool:
            rows = [row for part in pool.map(perform, work) for row in part]
    else:
        rows = [row for job in work for row in perform(job)]
    every = Table("Every problem", COLUMNS, rows, shown=False)
    tables = {"gaussian": _gaussian(every), "mixture": _comparison(every, ("mixture-25",))}
    tables["conditionals"] = _comparison(every, CONDITIONALS)
    tables["verdicts"] = _verdicts([tables["mixture"], tables["conditionals"]])
    return Findings({**tables, "problems": every})


def _pm(mean: float, half: float) -> str:
    return f"{mean:.3g} ± {half:.2g}"


def _column(rows: Sequence[dict[str, float]], name: str) -> list[float]:
    return [row[name] for row in rows]


def _cells(every: Table, families: Sequence[Family]) -> Iterator[tuple[Family, int, int]]:
    seen = {(r["prior"], r["d"], r["m"]) for r in every.records()}
    return ((family, d, m) for family, d, m in sorted(seen) if family in families)


def _comparison(every: Table, families: Sequence[Family]) -> Table:
    rows: list[list[Cell]] = []
    for family, d, m in _cells(every, families):
        cell = {"prior": family, "d": d, "m": m}
        base_floor = interval(_column(list(every.records(**cell, solver=FLOOR)), "distance"))
        for name in (FLOOR, *SOLVERS):
            records = list(every.records(**cell, solver=name))
            base = [r for r in records if r["eta"] == 0]
            guided = [r for r in records if r["eta"] != 0]
            mean, half = interval(_column(base, "distance"))
            step = f"{base[0]['scale']:g}" if name in SOLVERS and len(SOLVERS[name].scales) > 1 else "-"
            row: list[Cell] = [family, d, m, name, step, _pm(mean, half), mean / base_floor[0]]
            row += [interval(_column(base, "mode error"))[0], min(_column(base, "alive"))]
            rows.append(row + _with_cmi(base, guided))
    return Table(
        "Sliced Wasserstein distance to the exact posterior" + (" (25 components)" if len(families) == 1 else ""),
        (
            "prior", "d", "m", "solver", "scale", "distance", "/ floor", "mode error", "alive", "eta",
            "distance with CMI", "mode error with CMI", "CMI - base", "verdict",
        ),
        rows,
        f"Means and 95% intervals over problems; sigma_y = {NOISE_STD}, coordinates of unit variance. Floor: two exact "
        "samples. Mode error: total variation of the components' weights. Alive: smallest share of chains that did "
        "not diverge. Scale and eta: chosen on other problems.",
    )  # fmt: skip


def _with_cmi(base: Sequence[dict[str, float]], guided: Sequence[dict[str, float]]) -> list[Cell]:
    if not guided:
        return [None] * 5
    differences = [g["distance"] - b["distance"] for g, b in zip(guided, base, strict=True)]
    mean, half = interval(differences)
    return [
        guided[0]["eta"],
        _pm(*interval(_column(guided, "distance"))),
        interval(_column(guided, "mode error"))[0],
        _pm(mean, half),
        verdict(mean, half),
    ]


def _gaussian(every: Table) -> Table:
    rows: list[list[Cell]] = []
    for family, d, m in _cells(every, ("gaussian",)):
        for name in (FLOOR, *SOLVERS):
            records = list(every.records(prior=family, d=d, m=m, solver=name))
            step = f"{records[0]['scale']:g}" if name in SOLVERS and len(SOLVERS[name].scales) > 1 else "-"
            values = [_pm(*interval(_column(records, column))) for column in ("mean error", "variance ratio")]
            rows.append([d, m, name, step, *values, min(_column(records, "alive"))])
    return Table(
        "Gaussian prior: the measured directions of the posterior",
        ("d", "m", "solver", "scale", "mean error [posterior std]", "variance ratio", "alive"),
        rows,
        "Means and 95% intervals over problems. An exact sampler has a mean error of 1 / sqrt(chains) and a ratio of "
        "1. CMI changes nothing here: the information does not depend on the state.",
    )


def _verdicts(tables: Sequence[Table]) -> Table:
    rows: list[list[Cell]] = []
    names = ("better", "no difference", "worse")
    for table in tables:
        for family in table.values("prior"):
            for solver, entry in SOLVERS.items():
                if entry.guided:
                    found = [r["verdict"] for r in table.records(prior=family, solver=solver)]
                    rows.append([family, solver, *(found.count(name) for name in names)])
    return Table(
        "Verdicts on CMI, over all d and m",
        ("prior", "solver", *names),
        rows,
        "Each is a 95% interval of its own: of 40 neutral cells about two would fall outside by chance, one a side.",
    )


def figures(found: Findings) -> dict[str, Figure]:
    """Distances over the floor, and what CMI changes."""
    every = found.tables["problems"]
    families = [f for f in every.values("prior") if f != "gaussian"]
    return {family: _figure(every, family) for family in families}


def _figure(every: Table, family: str) -> Figure:
    cells = sorted({(r["d"], r["m"]) for r in every.records(prior=family)})
    figure, axes = panels([f"{family}: d = {d}, m = {m}" for d, m in cells], columns=3, height=3.0)
    for axis, (d, m) in zip(axes, cells, strict=True):
        cell = {"prior": family, "d": d, "m": m}
        base = interval(_column(list(every.records(**cell, solver=FLOOR)), "distance"))[0]
        axis.axvline(1.0, color="#444444", linewidth=1)
        for position, name in enumerate(reversed(SOLVERS)):
            records = list(every.records(**cell, solver=name))
            kinds: list[tuple[Callable[[float], bool], str, float]] = [
                (lambda eta: eta == 0, COLOURS[0], 0.12),
                (lambda eta: eta != 0, COLOURS[1], -0.12),
            ]
            for wanted, colour, shift in kinds:
                values = [r["distance"] / base for r in records if wanted(r["eta"])]
                if values:
                    mean, half = interval(values)
                    axis.errorbar(mean, position + shift, xerr=half, fmt="o", color=colour, markersize=4, capsize=2)
        axis.set_xscale("log")
        axis.set_yticks(range(len(SOLVERS)), list(reversed(SOLVERS)), fontsize=7)
        axis.set_xlabel("distance / floor (blue: base, red: with CMI)", fontsize=8)
    return figure
