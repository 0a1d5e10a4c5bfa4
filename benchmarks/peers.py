"""cmidiff beside azula and deepinv: the same network, images, masks and noise, every method tuned by the same search.

A method has at most two free parameters. The search tries its package's own values first and then points of a Sobol
sequence, as many for every method, on images of their own. What is best there by the CRPS is run on the other images.
Each image is restored alone, since azula's DPS and deepinv's DDRM do not separate the images of a batch. The schedule
of the prior goes to azula as it is (`cmidiff.interop.azula.PriorSchedule`). To deepinv the network is a denoiser
``D(x, sigma)`` of images in [0, 1]; deepinv brings its own grid of noise levels.

    pip install 'cmidiff[peers]'
    python benchmarks/peers.py cats64/val.tar --prior cats-64 --out runs/peers.jsonl

It resumes: every finished image of a trial is a line of the file. Time is that of the process, over the time of one
evaluation of the network. A method that fails is reported with its error.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import typer
from azula.denoise import Denoiser as AzulaBase
from azula.denoise import DiracPosterior
from azula.guidance.diffpir import DiffPIRDenoiser
from azula.guidance.dps import DPSSampler
from azula.guidance.mmps import MMPSDenoiser
from azula.guidance.pgdm import PGDMSampler
from azula.guidance.tds import TDSSampler
from azula.guidance.tmpd import TMPDenoiser
from azula.linalg.covariance import IsotropicCovariance
from azula.sample import DDIMSampler, Sampler
from cells import TASKS, TITLES, Ledger, score
from deepinv.models import Denoiser as DeepinvBase
from deepinv.optim.data_fidelity import L2
from deepinv.physics import DecomposablePhysics
from deepinv.sampling import (
    DDRM,
    DPS,
    DDPMSolver,
    DiffPIR,
    PiGDMDataFidelity,
    PosteriorDiffusion,
    VariancePreservingDiffusion,
)
from torch import Tensor

from cmidiff import load_prior
from cmidiff.evaluate.work import Counted
from cmidiff.interop.azula import PriorSchedule
from cmidiff.prior.base import Denoiser
from cmidiff.registry import SOLVERS
from cmidiff.result import RestorationWarning
from cmidiff.tuning.problem import Images, Problem, measure_images, read_images, restore_problem

COLUMNS = ("psnr", "lpips", "crps")
Free = Mapping[str, tuple[float, float, float]]


class AzulaDenoiser(AzulaBase):
    """A prior as a denoiser of azula, on states that are flattened to (K, d)."""

    def __init__(self, prior: Denoiser, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.prior, self.shape = prior, shape
        self.schedule = self.times = PriorSchedule(prior.schedule)

    def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:  # pyright: ignore[reportIncompatibleMethodOverride]
        return DiracPosterior(self.prior(x_t.reshape(-1, *self.shape), self.times.time(t)).mean.flatten(1))


class DeepinvDenoiser(DeepinvBase):
    """A prior as a denoiser of deepinv: ``x`` in [0, 1] with noise of ``sigma`` in the same units."""

    def __init__(self, prior: Denoiser) -> None:
        super().__init__()
        self.prior, (self.low, self.high) = prior, prior.value_range or (0.0, 1.0)

    def forward(self, x: Tensor, sigma: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        level = float(torch.as_tensor(sigma).flatten()[0]) * (self.high - self.low)
        t = self.prior.schedule.time(min(max(level, self.prior.min_ratio), self.noisiest))
        alpha, _ = self.prior.schedule(t)
        mean = self.prior(alpha * (self.low + (self.high - self.low) * x), t).mean
        return (mean - self.low) / (self.high - self.low)

    @cached_property
    def noisiest(self) -> float:
        alpha, sigma = self.prior.schedule(self.prior.schedule.grid(1)[0])
        return sigma / alpha


@dataclass(frozen=True)
class Case:
    """One image to restore.

    Attributes:
        prior: the network, which counts its evaluations.
        problem: its measurement, a batch of one.
        evaluations: of the network, for each sample.
        samples: K.
    """

    prior: Counted
    problem: Problem
    evaluations: int
    samples: int

    @property
    def seed(self) -> int:
        return self.problem.images.index[0] + 1  # deepinv takes no seed 0

    @property
    def y(self) -> Tensor:
        return self.problem.y.expand(self.samples, *self.problem.y.shape[1:])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.problem.images.truth.shape[1:])

    @property
    def noise_std(self) -> float:
        return float(self.problem.physics.noise_model.sigma)  # pyright: ignore[reportArgumentType]


class Flat:
    """A case for azula: rows (K, d) and a physics of rows, in the prior's units ``x = low + range u``."""

    def __init__(self, case: Case) -> None:
        self.case, self.physics = case, case.problem.physics
        self.low, high = case.prior.value_range or (0.0, 1.0)
        self.range = high - self.low
        self.denoiser = AzulaDenoiser(case.prior, case.shape)
        self.shift = self.physics.A(torch.full((1, *case.shape), self.low)).flatten(1)
        self.y = self.range * case.y.flatten(1) + self.shift
        self.noise_std = self.range * case.noise_std

    def A(self, x: Tensor) -> Tensor:
        return self.physics.A(x.reshape(-1, *self.case.shape)).flatten(1)

    def A_inv(self, y: Tensor) -> Tensor:
        return self.physics.A_dagger(y.reshape(-1, *self.case.problem.y.shape[1:])).flatten(1)

    def draw(self, sampler: Sampler) -> Tensor:
        """Samples (K, C, H, W) in [0, 1]; each alone where a sampler couples the rows of a batch."""
        torch.manual_seed(self.case.seed)
        rows = 1 if isinstance(sampler, DPSSampler) else self.case.samples
        found = [sampler(torch.randn(rows, math.prod(self.case.shape))) for _ in range(self.case.samples // rows)]
        return (torch.cat(found).reshape(-1, *self.case.shape) - self.low) / self.range


def _steps(case: Case) -> dict[str, Any]:
    return {"steps": case.evaluations, "silent": True}


def _azula_dps(case: Case, zeta: float) -> Tensor:
    flat = Flat(case)
    return flat.draw(DPSSampler(flat.denoiser, flat.y[:1], flat.A, zeta, **_steps(case)))


def _azula_pgdm(case: Case, eta: float) -> Tensor:
    flat = Flat(case)
    return flat.draw(PGDMSampler(flat.denoiser, flat.y, flat.A, flat.A_inv, eta=eta, **_steps(case)))


def _azula_mmps(case: Case, eta: float, iterations: float) -> Tensor:
    flat = Flat(case)
    covariance = IsotropicCovariance(torch.tensor(flat.noise_std**2))
    guided = MMPSDenoiser(flat.denoiser, flat.y, flat.A, covariance, iterations=round(iterations))
    return flat.draw(DDIMSampler(guided, eta=eta, **_steps(case)))


def _azula_tmpd(case: Case, eta: float) -> Tensor:
    flat = Flat(case)
    guided = TMPDenoiser(flat.denoiser, flat.y, flat.A, flat.noise_std**2)
    return flat.draw(DDIMSampler(guided, eta=eta, **_steps(case)))


def _azula_diffpir(case: Case, eta: float, lmbda: float) -> Tensor:
    flat = Flat(case)
    guided = DiffPIRDenoiser(flat.denoiser, flat.y, flat.A, flat.noise_std**2, lmbda)
    return flat.draw(DDIMSampler(guided, eta=eta, **_steps(case)))


def _azula_tds(case: Case, widening: float) -> Tensor:
    flat = Flat(case)

    def twist(x_hat: Tensor, ratio: Tensor) -> Tensor:
        return -(flat.y - flat.A(x_hat)).square() / (2 * (flat.noise_std**2 + widening * ratio**2))

    return flat.draw(TDSSampler(flat.denoiser, twist, **_steps(case)))  # pyright: ignore[reportArgumentType]


def _deepinv_dps(case: Case, weight: float) -> Tensor:
    model = DPS(
        DeepinvDenoiser(case.prior),
        num_steps=case.evaluations + 1,
        weight=weight,
        dtype=torch.float32,
        rng=torch.Generator(),
    )
    return model(case.y, case.problem.physics, x_init=(case.samples, *case.shape), seed=case.seed)


def _deepinv_pigdm(case: Case, weight: float) -> Tensor:
    times = torch.linspace(1, 0, case.evaluations + 1)
    model = PosteriorDiffusion(
        data_fidelity=PiGDMDataFidelity(weight=weight),
        denoiser=DeepinvDenoiser(case.prior),
        sde=VariancePreservingDiffusion(alpha=1.0, dtype=torch.float32),
        solver=DDPMSolver(timesteps=times, rng=torch.Generator()),
        dtype=torch.float32,
    )
    return model(case.y, case.problem.physics, x_init=(case.samples, *case.shape), seed=case.seed)


def _deepinv_diffpir(case: Case, lambda_: float, zeta: float) -> Tensor:
    model = DiffPIR(
        DeepinvDenoiser(case.prior), L2(), case.noise_std, max_iter=case.evaluations, zeta=zeta, lambda_=lambda_
    )
    return model(case.y, case.problem.physics, seed=case.seed)


def _deepinv_ddrm(case: Case, eta: float, etab: float) -> Tensor:
    physics: Any = copy.deepcopy(case.problem.physics)
    if not isinstance(physics, DecomposablePhysics):
        raise TypeError("needs a singular value decomposition, which this physics does not have")
    coefficients = physics.U_adjoint(case.problem.y)  # DDRM needs the mask in their shape
    mask: Any = physics.mask
    physics.mask = mask.expand(1, *coefficients.shape[1:])
    levels = torch.linspace(1, 0, case.evaluations).numpy()
    model = DDRM(DeepinvDenoiser(case.prior), levels, eta, etab)
    return model(case.y.clone(), physics, seed=case.seed)


def _ours(name: str, **options: Any) -> Callable[..., Tensor]:
    def run(case: Case, **values: float) -> Tensor:
        solver = SOLVERS.make(name, options | values)
        found = restore_problem(
            case.problem, case.prior, solver, None, steps=case.evaluations, samples=case.samples, sampler=None
        )
        return found.samples[0]

    return run


@dataclass(frozen=True)
class Method:
    """A method and its free parameters: the package's own value, and the interval that is searched.

    The search is in the logarithm where the interval does not begin at 0.
    """

    package: str
    run: Callable[..., Tensor]
    free: Free = field(default_factory=dict)


UNIT = (0.0, 0.0, 1.0)
METHODS: dict[str, Method] = {
    "cmidiff cadps": Method("cmidiff", _ours("cadps"), {"scale": (1.0, 1 / 3, 3.0)}),
    "cmidiff cadps-exact": Method("cmidiff", _ours("cadps-exact"), {"scale": (1.0, 1 / 3, 3.0)}),
    "cmidiff pigdm": Method("cmidiff", _ours("pigdm"), {"scale": (1.0, 1 / 3, 3.0)}),
    "cmidiff dps": Method("cmidiff", _ours("dps"), {"scale": (0.3, 0.3 / 8, 2.4)}),
    "cmidiff mmps": Method("cmidiff", _ours("mmps")),
    "azula DPS": Method("azula", _azula_dps, {"zeta": (1.0, 1 / 30, 30.0)}),
    "azula PGDM": Method("azula", _azula_pgdm, {"eta": UNIT}),
    "azula MMPS": Method("azula", _azula_mmps, {"eta": UNIT, "iterations": (1.0, 1.0, 5.0)}),
    "azula TMPD": Method("azula", _azula_tmpd, {"eta": UNIT}),
    "azula DiffPIR": Method("azula", _azula_diffpir, {"eta": UNIT, "lmbda": (10.0, 0.01, 100.0)}),
    "azula TDS": Method("azula", _azula_tds, {"widening": (1.0, 0.01, 10.0)}),
    "deepinv DPS": Method("deepinv", _deepinv_dps, {"weight": (1.0, 1 / 30, 100.0)}),
    "deepinv PiGDM": Method("deepinv", _deepinv_pigdm, {"weight": (1.0, 1 / 10, 10.0)}),
    "deepinv DiffPIR": Method("deepinv", _deepinv_diffpir, {"lambda_": (7.0, 0.01, 100.0), "zeta": (0.1, 0.0, 1.0)}),
    "deepinv DDRM": Method("deepinv", _deepinv_ddrm, {"eta": (0.85, 0.0, 1.0), "etab": (1.0, 0.0, 1.0)}),
}


def propose(free: Free, trials: int) -> list[dict[str, float]]:
    """The package's own values, then points of a Sobol sequence; the first alone where nothing is free."""
    own = {name: start for name, (start, _, _) in free.items()}
    if not free or trials < 2:
        return [own]
    engine = torch.quasirandom.SobolEngine(len(free), scramble=True, seed=0)
    points = engine.draw(trials - 1).tolist()
    return [own, *({name: _at(u, *free[name][1:]) for name, u in zip(free, point, strict=True)} for point in points)]


def _at(u: float, low: float, high: float) -> float:
    value = low + u * (high - low) if low == 0 else low * (high / low) ** u
    return float(f"{value:.4g}")


def run(method: Method, prior: Denoiser, problem: Problem, evaluations: int, samples: int, **values: float) -> Any:
    """Scores of one image, or the error in words; with the evaluations of the network a sample and the seconds."""
    case = Case(Counted(prior), problem, evaluations, samples)
    began = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RestorationWarning)
            warnings.simplefilter("ignore", UserWarning)
            found = method.run(case, **values)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
    cost = {"seconds": time.process_time() - began, "evaluations": case.prior.forwards / samples}
    return score(found.detach().float(), problem.images.truth[0]) | cost


def one_evaluation(prior: Denoiser, shape: tuple[int, ...], samples: int) -> float:
    """Seconds of one evaluation of the network for K images, of the process, without a gradient."""
    x, t = torch.zeros(samples, *shape), prior.schedule.grid(2)[1]
    spent = []
    for _ in range(4):
        began = time.process_time()
        with torch.no_grad():
            prior(x, t)
        spent.append(time.process_time() - began)
    return min(spent[1:])


@dataclass(frozen=True)
class Bench:
    """The cells of the benchmark: a task, a method, a budget, and values on an image."""

    ledger: Ledger
    prior: Denoiser
    images: Images
    noise_std: float
    samples: int

    def cell(self, task: str, name: str, evaluations: int, values: Mapping[str, float], i: int) -> Any:
        key = {"task": task, "method": name, "evaluations": evaluations, "values": dict(values)}
        key |= {"image": self.images.names[i], "noise_std": self.noise_std, "samples": self.samples}
        key |= {"prior": self.prior.fingerprint[:16]}

        def compute() -> Any:
            parameters = TASKS[task] | {"noise_std": self.noise_std}
            problem = measure_images(self.images.part(i, i + 1), task, parameters)
            return run(METHODS[name], self.prior, problem, evaluations, self.samples, **values)

        return self.ledger.once(key, compute)

    def figures(self, task: str, name: str, evaluations: int, values: Mapping[str, float], rows: range) -> Any:
        """Means over images; the first error instead."""
        cells = []
        for i in rows:
            cells.append(self.cell(task, name, evaluations, values, i))
            if "error" in cells[-1]:
                return cells[-1]
        return {metric: fmean(cell[metric] for cell in cells) for metric in cells[0]}

    def best(self, task: str, name: str, evaluations: int, trials: int, tuning: range) -> dict[str, float]:
        """The values of the least CRPS on the tuning images; the package's own where every trial fails."""
        tried = propose(METHODS[name].free, trials)
        scores = [self.figures(task, name, evaluations, values, tuning) for values in tried]
        return min(zip(scores, tried, strict=True), key=lambda pair: pair[0].get("crps", math.inf))[1]


def lines(bench: Bench, task: str, budget: int, trials: int, tuned: int, unit: float) -> Iterator[str]:
    """The rows of a task and a budget, best CRPS first; each method at its package's own values and tuned."""
    tuning, rest = range(tuned), range(tuned, len(bench.images))
    rows = []
    for name, method in METHODS.items():
        values = bench.best(task, name, budget, trials, tuning)
        found = bench.figures(task, name, budget, values, rest)
        own = bench.figures(task, name, budget, propose(method.free, 1)[0], rest)
        rows.append((found.get("crps", math.inf), name, values, found, own))
    for _, name, values, found, own in sorted(rows, key=lambda row: row[:2]):
        if "error" in found:
            yield f"| {task} | {budget} | {name} | {found['error']} |" + " |" * (len(COLUMNS) + 2)
            continue
        cells = [f"{found[m]:.{2 if m == 'psnr' else 4}f}" if m in found else "-" for m in COLUMNS]
        chosen = ", ".join(f"{key} {value:g}" for key, value in values.items()) or "nothing free"
        untuned = f"{own['crps']:.4f}" if "crps" in own else "-"
        cost = f"{found['evaluations']:.0f} | {found['seconds'] / unit / bench.samples:.0f}"
        yield f"| {task} | {budget} | {name} | {' | '.join(cells)} | {untuned} | {cost} | {chosen} |"


def main(
    images: Annotated[Path, typer.Argument(help="A folder or a tar archive of images.")],
    prior: Annotated[str, typer.Option(help="Name or folder of the prior.")] = "natural-64",
    out: Annotated[Path, typer.Option(help="File of the finished cells.")] = Path("runs/peers.jsonl"),
    tasks: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(TASKS),
    budgets: Annotated[str, typer.Option(help="Network evaluations a sample.")] = "20,50,100",
    trials: Annotated[int, typer.Option(help="Settings of each method that are tried.")] = 8,
    tuned: Annotated[int, typer.Option(help="Images of the search.")] = 8,
    count: Annotated[int, typer.Option(help="Images of the table.")] = 32,
    offset: Annotated[int, typer.Option(help="First image of the search; those of the table follow.")] = 0,
    size: Annotated[int | None, typer.Option(help="Crop and shrink images to this side.")] = None,
    samples: Annotated[int, typer.Option(help="Samples of each image.")] = 2,
    noise_std: Annotated[float, typer.Option(help="Noise, for images in [0, 1].")] = 0.05,
) -> None:
    """Print the table: a row for each task, budget and method."""
    network = load_prior(prior)
    clean = read_images(images, count=tuned + count, offset=offset, size=size)
    bench = Bench(Ledger(out), network, clean, noise_std, samples)
    unit = one_evaluation(network, tuple(clean.truth.shape[1:]), 1)
    heads = " | ".join(TITLES[name] for name in COLUMNS)
    print(f"| task | budget | method | {heads} | CRPS, own values | evaluations | time | chosen |")
    print("|" + "---|" * (len(COLUMNS) + 7))
    for task in tasks.split(","):
        for budget in budgets.split(","):
            for line in lines(bench, task, int(budget), trials, tuned, unit):
                print(line, flush=True)


if __name__ == "__main__":
    typer.run(main)
