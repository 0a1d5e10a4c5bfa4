"""Every solver on Lévy processes, whose posteriors are sampled by Gibbs: an independent benchmark.

`cmidiff.laboratory.levy_problems` has the problems, `cmidiff.laboratory.levy_prior` the exact denoiser,
`cmidiff.laboratory.levy_gibbs` the references and `cmidiff.laboratory.levy_scores` the scores.

All solvers are those of the registry, run by `cmidiff.restore` with their defaults. Set by hand are the number of steps
(`SHARE`) and what suits it (`OPTIONS`). One free step size each (`FREE`) is chosen on other signals by the distance,
among the same multiples of its default. The search goes on beyond them while the best one is at an end (`search`). A
step size in units of the signal follows its scale. Samples with CMI share all random numbers with those without.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from cmidiff.laboratory.findings import Cell, Findings, Table
from cmidiff.laboratory.jobs import compute_all, compute_once
from cmidiff.laboratory.levy_gibbs import Reference
from cmidiff.laboratory.levy_problems import D, Problems, problems_of
from cmidiff.laboratory.levy_scores import SAMPLES, score
from cmidiff.laboratory.settings import Settings, make_seed
from cmidiff.registry import SOLVERS, configure
from cmidiff.restoration import restore
from cmidiff.result import RestorationWarning, Status
from cmidiff.samplers import ProbabilityFlow
from cmidiff.solvers import Solver
from cmidiff.step import Sampler

CELLS = tuple(
    (task, family)
    for family in ("gauss", "laplace", "student-3", "bernoulli-laplace")
    for task in ("imputation", "blur", "fourier")
)
FREE: Mapping[str, str] = {
    "dps": "scale",
    "mcg": "scale",
    "cadps-released": "scale",
    "dsg": "rate",
    "diffpir": "strength",
    "sitcom": "rate",
    "red-diff": "rate",
    "resample": "rate",
}
"""Solvers with a step size that their formula leaves open, and its name."""
SHARE: Mapping[str, float] = {"sitcom": 0.2, "daps": 0.5, "pnp-dm": 2.0, "red-diff": 2.0}
"""Steps over those of the others: fewer of solvers that evaluate the denoiser several times at each, more of solvers
that need no gradient and many steps."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "pnp-dm": {"inner_steps": 5},
    "repaint": {"length": 5, "repeat": 4},
    "resample": {"every": 2},
}
"""Options of solvers whose defaults are for runs of many more steps: a chain needs moves, and jumps must fit in."""
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
RATIO, FURTHER = 3.0, 5  # of one step size to the next beyond an end of these, and how often at most
GAIN = 0.05  # relative fall of the loss below which a step size no longer matters
GUIDED = ("dps", "pigdm", "cadps", "cadps-exact")  # solvers that CMI is tried on
PARTICLES = 2  # times as many particles as samples
FLOOR = "exact samples"
COLUMNS = (
    "task", "increments", "solver", "step size", "signal", "distance", "excess", "coverage 50", "coverage 90",
    "diverged", "misfit", "refused",
)  # fmt: skip


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        solver: name in the registry.
        options: as `cmidiff.registry.configure` takes them.
        sampler: the reverse process; None: that of the solver.
        finer: how many times the steps of the others.
        cmi: whether CMI corrects it, with its defaults.
    """

    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sampler: Sampler | None = None
    finer: int = 1
    cmi: bool = False

    def make(self, free: float | None = None) -> Solver:
        """The solver, with its free step size if it has one."""
        options = dict(self.options) | ({} if free is None else {FREE[self.solver]: free})
        return configure(SOLVERS.make(self.solver), options, self.solver)

    def accepts(self, free: float) -> bool:
        """Whether the solver takes this value of the free step size."""
        try:
            self.make(free)
        except (ValueError, TypeError):
            return False
        return True

    def candidates(self) -> list[float]:
        """Values of the free step size: multiples of the default that the solver accepts; none without one."""
        if self.solver not in FREE:
            return []
        default = getattr(SOLVERS.make(self.solver), FREE[self.solver])
        return [factor * default for factor in FACTORS if self.accepts(factor * default)]


def search(loss: Callable[[float], float], values: Sequence[float], accepts: Callable[[float], bool]) -> float:
    """The value of the smallest loss; while it is at an end, the next one beyond is tried, too, until that gains less
    than `GAIN`."""
    losses = {value: loss(value) for value in values}
    for _ in range(FURTHER):
        best = min(losses, key=losses.__getitem__)
        further = best * RATIO if best == max(losses) else best / RATIO
        if min(losses) < best < max(losses) or not accepts(further):
            break
        losses[further] = loss(further)
        if losses[further] > losses[best] - GAIN * abs(losses[best]):
            break
    return min(losses, key=losses.__getitem__)


def methods(steps: int) -> dict[str, Method]:
    """All solvers of the registry by name, and variants of the exact covariance."""
    exact = {"covariance": "exact"}  # at every level: the denoisers of this laboratory are exact
    complete = exact | {"complete": True}
    plain = {name: Method(name, OPTIONS.get(name, {})) for name in SOLVERS} | {"cadps-exact": Method("cadps", exact)}
    guided = {f"{name}, CMI": replace(plain[name], cmi=True) for name in GUIDED}
    return (
        plain
        | {
            "cadps-exact, probability flow": Method("cadps", exact, ProbabilityFlow()),
            "cadps-exact, complete": Method("cadps", complete),
            "cadps-exact, complete, churned": Method(
                "cadps", complete, ProbabilityFlow(order=1, churn=0.4 * 3 * steps), finer=3
            ),
        }
        | guided
    )


@dataclass(frozen=True)
class Size:
    """How much is run: signals, steps and samples of the reference. The choice of a step size has its own signals and
    samples."""

    signals: int
    steps: int
    reference: int
    tuning_signals: int
    tuning_samples: int


FULL = Size(4, 50, 1000, 2, 6)
SHORT = Size(2, 20, 400, 1, 3)  # of processes that are not Gaussian: their denoiser costs ten to fifty times as much
QUICK = Size(2, 6, 200, 1, 3)
QUICK_CELLS = (("imputation", "gauss"),)


@dataclass(frozen=True)
class Run:
    """Samples (P, S, d) of P signals, the share that diverged, and the median misfit; shapes (P,)."""

    x: Tensor
    diverged: Tensor
    misfit: Tensor


def run(problems: Problems, method: Method, samples: int, steps: int, seed: int, free: float | None = None) -> Run:
    """Draw samples with a method, all signals in one batch."""
    solver, count = method.make(free), len(problems.x)
    common: dict[str, Any] = {"solver": solver, "cmi": method.cmi, "sampler": method.sampler, "value_range": None}
    common |= {"steps": round(method.finer * SHARE.get(method.solver, 1.0) * steps), "seed": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RestorationWarning)
        if solver.point or solver.together:
            particles = 1 if solver.point else PARTICLES * samples
            found = restore(problems.y, problems.physics, problems.prior, samples=particles, **common)
            if solver.point:
                return _run(found.estimate, found.estimate_status, count)
            every = slice(0, None, PARTICLES)  # neighbours descend from one particle
            return _run(found.samples[:, every], [s for row in found.status for s in row[every]], count)
        y = problems.y.repeat_interleave(samples, 0)  # samples as images of one batch: the noise of each row is its own
        found = restore(y, problems.physics, problems.prior, samples=1, **common)
    return _run(found.samples, [row[0] for row in found.status], count)


def _run(x: Tensor, status: Sequence[Status], count: int) -> Run:
    misfit = torch.tensor([s.misfit for s in status], dtype=torch.float64).reshape(count, -1)
    diverged = torch.tensor([not s.ok for s in status], dtype=torch.float64).reshape(count, -1)
    return Run(x.reshape(count, -1, D), diverged.mean(1), misfit.median(1).values)


@dataclass(frozen=True)
class Job:
    """All methods on one task and one process."""

    task: str
    family: str
    settings: Settings

    @property
    def size(self) -> Size:
        if self.settings.quick:
            return QUICK
        return FULL if self.family == "gauss" else SHORT

    def draw(self, purpose: str, signals: int) -> tuple[Problems, Reference]:
        """Problems and reference samples of their posteriors."""
        g = self.settings.generator("levy", purpose, self.task, self.family)
        problems = problems_of(self.family, self.task, signals, g)
        return problems, problems.reference(self.size.reference, g)

    @cached_property
    def test(self) -> tuple[Problems, Reference]:
        return self.draw("test", self.size.signals)

    @cached_property
    def tuning(self) -> tuple[Problems, Reference]:
        return self.draw("tuning", self.size.tuning_signals)

    def tuned(self, method: Method) -> float | None:
        """The free step size of the smallest distance on the signals for tuning; a sample that diverged counts 10."""
        if not (candidates := method.candidates()):
            return None
        (problems, reference), seed = self.tuning, make_seed(self.settings.seed, "levy tuning")

        def loss(free: float) -> float:
            found = run(problems, method, self.size.tuning_samples, self.size.steps, seed, free)
            return float((score(found.x, reference.x).distance + 10 * found.diverged).nan_to_num(1e3).mean())

        return search(loss, candidates, method.accepts)

    def rows(self, name: str) -> list[list[Cell]]:
        """The rows of a method, as `COLUMNS`."""
        problems, reference = self.test
        head: list[Cell] = [self.task, self.family, name]
        if name == FLOOR:
            g = self.settings.generator("levy", FLOOR, self.task, self.family)
            x = problems.reference(2 * SAMPLES, g).x[:, ::2]
            found, free = Run(x, torch.zeros(len(x)), torch.ones(len(x))), None
        else:
            method = methods(self.size.steps)[name]
            try:
                free = self.tuned(method)
                seed = make_seed(self.settings.seed, "levy test")
                found = run(problems, method, SAMPLES, self.size.steps, seed, free)
            except (ValueError, TypeError) as error:
                return [[*head, *[None] * (len(COLUMNS) - 4), str(error)]]
        scores = score(found.x, reference.x)
        values = (scores.distance, scores.excess, scores.coverage_50, scores.coverage_90, found.diverged, found.misfit)
        columns = zip(*(value.tolist() for value in values), strict=True)
        return [
            [*head, free, number, *(None if math.isnan(value) else value for value in signal), None]
            for number, signal in enumerate(columns)
        ]

    def perform(self) -> tuple[list[list[Cell]], float]:
        """The rows of all methods, those that an interrupted run has left read again; and the largest R-hat."""
        rows: list[list[Cell]] = []
        for name in (FLOOR, *methods(self.size.steps)):
            rows += self._kept(name, lambda name=name: self.rows(name))
        return rows, self._kept("R-hat", lambda: float(self.test[1].r_hat.max()))

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        words = (self.task, self.family, name, self.settings.seed, self.settings.quick)
        return compute_once(self.settings, "-".join(map(str, words)), make)


def perform(job: Job) -> tuple[list[list[Cell]], float]:
    """`Job.perform` in a process of its own."""
    if job.settings.workers > 1:
        torch.set_num_threads(1)
    return job.perform()


def measure(settings: Settings) -> Findings:
    """All cells, several at once."""
    work = [Job(task, family, settings) for task, family in (QUICK_CELLS if settings.quick else CELLS)]
    found = compute_all(perform, work, settings.workers)
    every = Table("Every signal", COLUMNS, [row for rows, _ in found for row in rows], shown=False)
    sizes = {job.family: f"{job.size.signals} signals and {job.size.steps} steps" for job in work}
    note = (
        f"Signals of 64 numbers, {SAMPLES} samples each. "
        + "; ".join(f"{family}: {size}" for family, size in sizes.items())
        + ". Mean and standard error over the signals. -: refused, or not defined."
    )
    return Findings(
        {
            "distance": _table(
                every, "Energy distance of the marginals to the reference, 0 for exact samples", note, _distance
            ),
            "gap": _table(every, "Loss of the mean of the samples to the best estimate, dB", note, _gap),
            "coverage": _table(
                every, "Probability of the intervals that hold 50 / 90% of exact samples", note, _coverage
            ),
            "cmi": _corrections(every),
            "diverged": _table(every, "Share of the samples that diverged / median misfit", note, _diverged),
            "step-sizes": _table(every, "Step sizes that were chosen", note, _step_size, [*FREE]),
            "references": Table(
                "References: largest split R-hat of two chains",
                ("task", "increments", "R-hat"),
                [[job.task, job.family, r_hat] for job, (_, r_hat) in zip(work, found, strict=True)],
                "1 for independent samples.",
            ),
            "signals": every,
        }
    )


def draw(found: Findings) -> dict[str, Figure]:
    """None: the tables say it."""
    return {}


Record = dict[str, Any]


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1) / len(values))


def _distance(records: Sequence[Record]) -> str:
    if diverged := _mean([r["diverged"] for r in records])[0]:
        return f"diverged ({diverged:.0%})"
    return "{:.3f} ± {:.3f}".format(*_mean([r["distance"] for r in records]))


def _gap(records: Sequence[Record]) -> str:
    if any(r["diverged"] for r in records):
        return "diverged"
    mean, error = _mean([r["excess"] for r in records])
    decibels = [10 * math.log10(max(1 + mean + sign * error, 1e-3)) for sign in (0, -1, 1)]
    return f"{decibels[0]:.2f} ± {(decibels[2] - decibels[1]) / 2:.2f}"


def _coverage(records: Sequence[Record]) -> str:
    if records[0]["coverage 90"] is None or any(r["diverged"] for r in records):
        return "-"
    return " / ".join(f"{_mean([r[name] for r in records])[0]:.2f}" for name in ("coverage 50", "coverage 90"))


def _diverged(records: Sequence[Record]) -> str:
    return " / ".join(f"{_mean([r[name] for r in records])[0]:.2g}" for name in ("diverged", "misfit"))


def _step_size(records: Sequence[Record]) -> str:
    return f"{records[0]['step size']:.3g}"


def _table(
    every: Table, title: str, note: str, show: Callable[[Sequence[Record]], str], solvers: Sequence[str] = ()
) -> Table:
    """One line a solver, one column a cell."""
    cells = list(dict.fromkeys((r["task"], r["increments"]) for r in every.records()))
    rows: list[list[Cell]] = []
    for name in solvers or dict.fromkeys(r["solver"] for r in every.records()):
        row: list[Cell] = [name]
        for task, family in cells:
            records = list(every.records(task=task, increments=family, solver=name))
            row.append("-" if not records or records[0]["refused"] is not None else show(records))
        rows.append(row)
    return Table(title, ("solver", *(f"{task}, {family}" for task, family in cells)), rows, note)


def _corrections(every: Table) -> Table:
    """What CMI changes, signal by signal."""
    paired: list[Sequence[Cell]] = []
    for record in every.records():
        base = str(record["solver"]).removesuffix(", CMI")
        if base != record["solver"] and record["refused"] is None:
            cell = {name: record[name] for name in ("task", "increments", "signal")}
            plain = next(iter(every.records(**cell, solver=base)))
            difference = {**record, "solver": base, "distance": record["distance"] - plain["distance"]}
            paired.append([difference[name] for name in COLUMNS])
    return _table(
        Table("", COLUMNS, paired),
        "What CMI with its defaults adds to the distance",
        "Paired, signal by signal.",
        _distance,
    )
