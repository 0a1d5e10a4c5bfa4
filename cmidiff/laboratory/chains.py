"""Runs of a solver on problems with a known posterior, and how far they end from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cmidiff.covariance import Exact
from cmidiff.information import CMI
from cmidiff.laboratory.mixtures import ExactPosterior, Problems, sliced_wasserstein
from cmidiff.laboratory.settings import make_seed
from cmidiff.loop import Trace, sample
from cmidiff.samplers import Ancestral, ProbabilityFlow
from cmidiff.schedule import Schedule
from cmidiff.solvers import (
    CADPS,
    DAPS,
    DDNM,
    DDRM,
    DPS,
    DSG,
    MCG,
    MMPS,
    SITCOM,
    TMPD,
    DiffPIR,
    PiGDM,
    PnPDM,
    REDDiff,
    RePaint,
    Solver,
    Unconditional,
)
from cmidiff.statistics import estimate
from cmidiff.step import Problem, Sampler

SLICES = 256
CHURN = 0.4  # of a level: noise that a churned sampler adds before each step


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        build: the solver for given problems and scale.
        scales: step sizes among which tuning chooses; one for a solver without a step size.
        guided: whether CMI is tried on it.
        finer: how many times the steps of the others. Above 1 the sampler is churned, so that a state forgets what was
            decided while ``p(x_0 | x_t)`` was far from Gaussian.
        own: whether it takes the times and the sampler of the solver, in the place of those of the table.
    """

    build: Callable[[Problems, float], Solver]
    scales: Sequence[float] = (1.0,)
    guided: bool = True
    finer: int = 1
    own: bool = False

    def sampler(self, steps: int) -> Sampler:
        """The sampler for so many steps."""
        return Ancestral() if self.finer == 1 else ProbabilityFlow(order=1, churn=CHURN * steps)


EXACT = Exact(iterations=10)
METHODS: dict[str, Method] = {
    "exact posterior": Method(lambda problems, _: ExactPosterior(problems), guided=False),
    "unconditional": Method(lambda *_: Unconditional(), guided=False),
    "DPS": Method(lambda _, scale: DPS(scale), (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)),
    "PiGDM = CADPS isotropic": Method(lambda *_: PiGDM()),  # one formula, where coordinates have unit variance
    "MCG": Method(lambda _, scale: MCG(scale), (0.003, 0.01, 0.03, 0.1, 0.3)),
    "DSG": Method(lambda _, rate: DSG(rate), (0.02, 0.05, 0.1, 0.2, 0.4)),
    "CADPS diagonal": Method(lambda *_: CADPS("diagonal")),
    "CADPS exact": Method(lambda *_: CADPS(EXACT)),
    "CADPS complete": Method(lambda *_: CADPS(EXACT, complete=True)),
    "CADPS complete, churned": Method(lambda *_: CADPS(EXACT, complete=True), guided=False, finer=3),
    "MMPS": Method(lambda *_: MMPS(iterations=4), guided=False),
    "TMPD": Method(lambda *_: TMPD(), guided=False),
    "Free Hunch": Method(lambda *_: CADPS("free-hunch"), guided=False),
    "DiffPIR": Method(lambda _, scale: DiffPIR(scale), (0.1, 0.3, 1.0, 3.0, 10.0), guided=False, own=True),
    "DDNM": Method(lambda *_: DDNM(), guided=False),
    "SITCOM": Method(lambda _, rate: SITCOM(rate=rate), (0.01, 0.03, 0.1, 0.3), guided=False, own=True),
    "DAPS": Method(lambda *_: DAPS(), guided=False, own=True),
    "DAPS gaussian": Method(lambda *_: DAPS("gaussian"), guided=False, own=True),
    "PnP-DM": Method(lambda *_: PnPDM(inner_steps=10), guided=False, own=True),
    "DDRM": Method(lambda *_: DDRM(), guided=False),
    "RePaint": Method(lambda *_: RePaint(10, 3), guided=False, own=True),
    "RED-diff": Method(lambda _, scale: REDDiff(data_weight=scale), (0.1, 1.0, 10.0, 100.0), guided=False),
}
"""The one table of solvers on known posteriors: a line more is a row more."""

ETAS = (-1.0, -0.3, -0.1, 0.1, 0.3, 1.0, 3.0)


def make_cmi(eta: float) -> CMI | None:
    """CMI as it is measured here: with the exact covariance inside ``S`` and the weight that tilts the target by
    ``exp(eta I)``. The cap is large, since no network errs here."""
    return CMI(eta, weight="reverse-sde", covariance=Exact(iterations=20), cap=0.5) if eta != 0 else None


@dataclass
class BlockDraws:
    """Random numbers for all rows at once, from (seed, stream, step). The streams do not disturb one another, so that a
    run with CMI and one without share their noise."""

    seed: int

    def normal(self, stream: str, index: int, like: Tensor, inner: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(make_seed(self.seed, stream, index, *[inner] * (inner > 0)))
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)


@dataclass(frozen=True)
class Outcome:
    """What one run says of each problem, shapes (P,).

    Attributes:
        distance: sliced Wasserstein to exact samples.
        modes: total variation between the shares of the components and their posterior weights.
        alive: share of the chains that did not diverge.
        x: the samples, shape (P, C, d).
    """

    distance: Tensor
    modes: Tensor
    alive: Tensor
    x: Tensor = field(repr=False)


def list_levels(schedule: Schedule, steps: int) -> list[float]:
    """Times whose noise levels ``sigma_t / alpha_t`` are even in the logarithm, from pure noise to a hundredth. They
    are fine where a posterior is narrow. The grid of the DDPM, which is even in t, is not."""
    alpha, sigma = schedule(schedule.grid(1)[0])
    ratios = torch.logspace(math.log10(sigma / alpha), -2, steps, dtype=torch.float64)
    return [schedule.time(ratio) for ratio in ratios.tolist()]


@torch.no_grad()
def run_chains(
    problems: Problems,
    solver: Solver,
    cmi: CMI | None,
    *,
    chains: int,
    steps: int,
    seed: int,
    sampler: Sampler,
    own: bool = False,
) -> Iterator[Trace]:
    """All chains of all problems in one batch, rows ``p C + c``; ``own`` as in `Method`."""
    images = tuple(p for p in range(len(problems)) for _ in range(chains))
    sampler = solver.sampler if own else sampler
    problem = Problem(problems.prior, problems.measurement(chains), sampler, BlockDraws(seed), images)
    times = solver.times(problem, steps) if own else list_levels(problems.prior.schedule, steps)
    return sample(problem, solver, times, cmi)


def run_solver(
    problems: Problems, method: Method, scale: float, eta: float, *, chains: int, steps: int, seed: int
) -> Outcome:
    """A run, compared with as many exact samples."""
    steps *= method.finer
    solver, sampler = method.build(problems, scale), method.sampler(steps)
    options: dict[str, Any] = {"chains": chains, "steps": steps, "seed": seed, "sampler": sampler, "own": method.own}
    *_, trace = run_chains(problems, solver, make_cmi(eta), **options)
    x = problems.grouped(trace.x_s)
    return judge(problems, x, problems.grouped(trace.alive).to(x).mean(1), seed)


def judge(problems: Problems, x: Tensor, alive: Tensor, seed: int) -> Outcome:
    """Samples (P, C, d) against exact ones."""
    generator = torch.Generator().manual_seed(make_seed(seed, "exact samples"))
    exact = problems.posterior_samples(x.shape[1], generator)
    distance = sliced_wasserstein(x, exact, slices=SLICES, generator=generator)
    modes = 0.5 * (problems.modes(x) - problems.mode_weights()).abs().sum(1)
    return Outcome(distance, modes, alive, x)


def draw_floor(problems: Problems, *, chains: int, seed: int) -> Outcome:
    """Exact samples against exact samples: what no solver can beat."""
    generator = torch.Generator().manual_seed(make_seed(seed, "floor"))
    x = problems.posterior_samples(chains, generator)
    return judge(problems, x, torch.ones(len(problems), dtype=x.dtype), seed)


def choose_strengths(
    several: Sequence[Problems], solver: Method, *, chains: int, steps: int, seed: int
) -> tuple[float, float]:
    """``(scale, eta)`` chosen on groups of problems that may differ in m.

    First the scale, without CMI: the smallest geometric mean of the distances. Then eta of either sign at that scale (0
    for a solver that CMI is not tried on). The choice has the smallest upper end of the 95% interval of the paired
    ratios of the distances, with CMI over without. A large eta is therefore chosen only if its gain is certain. CMI is
    always on: whether it helps is for other problems to say.
    """

    def logs(scale: float, eta: float) -> Tensor:
        found = [run_solver(p, solver, scale, eta, chains=chains, steps=steps, seed=seed) for p in several]
        # A chain that diverged counts as a distance of 1, that of a sample from nowhere.
        return torch.cat([(o.distance + 1 - o.alive).nan_to_num(1e3).log() for o in found])

    if len(solver.scales) == 1 and not solver.guided:
        return solver.scales[0], 0.0
    losses = {scale: logs(scale, 0.0) for scale in solver.scales}
    scale = min(losses, key=lambda s: float(losses[s].mean()))
    if not solver.guided:
        return scale, 0.0

    def upper(eta: float) -> float:
        found = estimate(logs(scale, eta).tolist(), losses[scale].tolist())
        return math.inf if found.high is None else found.high

    return scale, min(ETAS, key=upper)
