"""The one table of physics, solvers, samplers and covariances that feeds the tests, and the exact priors on which
formulas are checked.

What is registered in `cmidiff.registry`, exported by ``cmidiff.solvers`` or named by ``cmidiff.physics`` and missing
here fails the suite (`test_solvers`, `test_samplers`, `test_covariance`, `test_measurement`).
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from deepinv.physics import MRI, GaussianNoise, LinearPhysics, PhaseRetrieval, Physics, Tomography
from torch import Tensor

import cmidiff.solvers
from cmidiff import physics as named
from cmidiff.covariance import (
    Analytic,
    Covariance,
    Diagonal,
    Exact,
    FreeHunch,
    Hybrid,
    Isotropic,
    RowSum,
    SecondMoments,
    Wavelet,
)
from cmidiff.covariance.diagonal import of_paper
from cmidiff.draws import Draws, SeededDraws
from cmidiff.measurement import Measurement
from cmidiff.prior import GaussianMixture
from cmidiff.prior.base import Denoiser
from cmidiff.samplers import DDIM, Ancestral, DPMSolver, ProbabilityFlow, Renoise
from cmidiff.schedule import Schedule
from cmidiff.solvers import (
    CADPS,
    DAPS,
    DDNM,
    DDRM,
    DPIR,
    DPS,
    DSG,
    FPS,
    MCG,
    MMPS,
    PSLD,
    SITCOM,
    TDS,
    TMPD,
    CADPSReleased,
    DiffPIR,
    MCGDiff,
    PiGDM,
    PnPDM,
    REDDiff,
    RePaint,
    ReSample,
    Solver,
    Unconditional,
)
from cmidiff.step import Problem, Sampler, Step

F64 = torch.float64
Shape = tuple[int, ...]


def label(thing: object) -> str:
    """A text for the name of a test, without addresses of memory: parallel workers must agree on the names."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(thing))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=F64)


# physics


def matrix_physics(matrix: Tensor, shape: Shape | None = None, noise_std: float = 0.1) -> LinearPhysics:
    """A dense matrix (m, d) as a physics without a declared decomposition."""
    image = (matrix.shape[1],) if shape is None else shape
    noise: Any = GaussianNoise(noise_std)
    return LinearPhysics(
        A=lambda x: x.flatten(1) @ matrix.mT,
        A_adjoint=lambda y: (y @ matrix).reshape(len(y), *image),
        img_size=image,
        noise_model=noise,
    )


def _mri(noise_std: float) -> LinearPhysics:
    mask = torch.zeros(1, 1, 8, 8, dtype=F64)
    mask[..., ::2] = 1
    return MRI(mask=mask, img_size=(2, 8, 8), noise_model=GaussianNoise(noise_std))


def _tomography(noise_std: float) -> LinearPhysics:
    physics = Tomography(angles=6, img_width=8, normalize=False, dtype=F64)
    physics.noise_model = GaussianNoise(noise_std)
    return physics


@dataclass(frozen=True)
class PhysicsCase:
    """A physics built for small images, float64."""

    build: Callable[[float], LinearPhysics]
    shape: Shape = (3, 8, 8)


def _task(name: str, shape: Shape = (3, 8, 8), **options: Any) -> PhysicsCase:
    def build(noise: float) -> LinearPhysics:
        physics = named.TASKS[name](shape, noise_std=noise, dtype=F64, **options)
        assert isinstance(physics, LinearPhysics), f"{name} belongs to NONLINEAR"
        return physics

    return PhysicsCase(build, shape)


def _own(noise_std: float) -> LinearPhysics:
    """A user's own map: differences along the rows."""
    return named.from_callable(lambda x: x[..., 1:] - x[..., :-1], (3, 8, 8), noise_std=noise_std, dtype=F64)


def _matrix(noise_std: float) -> LinearPhysics:
    """A dense matrix, with its singular value decomposition."""
    return named.from_matrix(randn(60, 192, seed=43) / 8, (3, 8, 8), noise_std=noise_std, dtype=F64)


def _masked_blur(noise_std: float) -> LinearPhysics:
    """A blur of which half of the pixels are seen."""
    blur = named.deblur_gaussian((3, 8, 8), kernel_size=5, std=0.6, padding="reflect", noise_std=0.0, dtype=F64)
    physics = named.inpaint_random((3, 8, 8), hidden=0.5, noise_std=noise_std, dtype=F64) * blur
    assert isinstance(physics, LinearPhysics)
    return physics


PHYSICS: dict[str, PhysicsCase] = {
    "denoise": _task("denoise"),
    "inpaint-box": _task("inpaint-box"),
    "inpaint-random": _task("inpaint-random", hidden=0.7),
    "inpaint-scratches": _task("inpaint-scratches", hidden=0.2),
    "deblur-gaussian": _task("deblur-gaussian", kernel_size=5, std=0.8),
    "deblur-motion": _task("deblur-motion", kernel_size=5),
    "super-resolution": _task("super-resolution"),
    "colorize": _task("colorize"),
    "compressed-sensing": _task("compressed-sensing"),
    "reflect-blur": _task("deblur-gaussian", kernel_size=5, std=0.6, padding="reflect"),
    "valid-blur": _task("deblur-gaussian", kernel_size=3, std=0.6, padding="valid"),
    "matrix": PhysicsCase(_matrix),
    "masked-blur": PhysicsCase(_masked_blur),
    "gray-super-resolution": _task("super-resolution", (1, 8, 8), factor=2),
    "gray-compressed-sensing": _task("compressed-sensing", (1, 8, 8)),
    "own": PhysicsCase(_own),
    "mri": PhysicsCase(_mri, (2, 8, 8)),
    "tomography": PhysicsCase(_tomography, (1, 8, 8)),
}


@dataclass(frozen=True)
class NonlinearCase:
    """A physics without an adjoint."""

    build: Callable[[float], Physics]
    shape: Shape = (3, 8, 8)


def _nonlinear(name: str, **options: Any) -> NonlinearCase:
    return NonlinearCase(lambda noise: named.TASKS[name]((3, 8, 8), noise_std=noise, dtype=F64, **options))


def _coded_phase(noise_std: float) -> Physics:
    """deepinv's phase retrieval, of intensities behind a complex matrix."""
    matrix = torch.complex(randn(90, 64, seed=41), randn(90, 64, seed=42)) / 8
    linear = LinearPhysics(
        A=lambda x: x.flatten(1).to(matrix.dtype) @ matrix.mT,
        A_adjoint=lambda y: (y @ matrix.conj()).reshape(-1, 1, 8, 8),
        img_size=(1, 8, 8),
    )
    noise: Any = GaussianNoise(noise_std)
    physics = PhaseRetrieval(linear, noise_model=noise)
    physics.img_size = (1, 8, 8)  # pyright: ignore[reportArgumentType]
    return physics


NONLINEAR: dict[str, NonlinearCase] = {
    "phase-retrieval": _nonlinear("phase-retrieval"),
    "hdr": _nonlinear("hdr"),
    "nonlinear-blur": _nonlinear("nonlinear-blur", kernel_size=5),
    "coded-phase": NonlinearCase(_coded_phase, (1, 8, 8)),
}

# solvers; the scale of DPS and MCG is that of a run of 1000 steps

SOLVERS: dict[str, Solver] = {
    "unconditional": Unconditional(),
    "dps": DPS(0.0075),
    "pigdm": PiGDM(),
    "pigdm-adaptive": PiGDM(weight="adaptive"),
    "pigdm-flow": PiGDM(weight="flow"),
    "pigdm-additive": PiGDM(weight="additive"),
    "pigdm-row-sum": PiGDM(covariance="row-sum"),
    "mcg": MCG(0.0075),
    "dsg": DSG(0.1),
    "dpir": DPIR(),
    "cadps": CADPS(Hybrid(high=SecondMoments(tolerance=1e-10), low=Exact(8))),
    "cadps-diagonal": CADPS("diagonal"),
    "cadps-paper": CADPS(of_paper(), guard=False),
    "cadps-isotropic": CADPS("isotropic"),
    "cadps-exact": CADPS(Exact(8)),
    "cadps-complete": CADPS(Exact(8), complete=True, contraction="double-backward"),
    "cadps-switch": CADPS(Hybrid(high=Isotropic(1.0), low=Exact(8), switch=1.0)),
    "cadps-released": CADPSReleased(0.0075),
    "psld": PSLD(0.0075, 0.001),
    "resample": ReSample(every=4, pixel_steps=50, latent_steps=200),
    "daps": DAPS(moves=20),
    "daps-gaussian": DAPS("gaussian"),
    "pnp-dm": PnPDM(inner_steps=6),
    "ddrm": DDRM(),
    "repaint": RePaint(5, 2),
    "red-diff": REDDiff(),
    "tds": TDS(),
    "tds-exact": TDS(covariance=Exact(8)),
    "mcgdiff": MCGDiff(),
    "fps": FPS(),
    "free-hunch": CADPS(FreeHunch(tolerance=1e-8)),
    "mmps": MMPS(),
    "tmpd": TMPD(),
    "diffpir": DiffPIR(),
    "ddnm": DDNM(),
    "sitcom": SITCOM(iterations=5),
}
SAMPLERS: dict[str, Sampler] = {
    "ancestral": Ancestral(),
    "ancestral-large": Ancestral("large"),
    "ddim": DDIM(),
    "ddim-noisy": DDIM(1.0),
    "probability-flow": ProbabilityFlow(),
    "euler": ProbabilityFlow(1),
    "churned": ProbabilityFlow(churn=4.0),
    "dpm-solver": DPMSolver(),
    "dpm-solver-sde": DPMSolver(sde=True),
    "renoise": Renoise(),
}
COVARIANCES: dict[str, Covariance] = {
    "isotropic": Isotropic(),
    "diagonal": Diagonal(),
    "diagonal-paper": of_paper(),
    "row-sum": RowSum(),
    "exact": Exact(20),
    "moments": SecondMoments(tolerance=1e-10),
    "hybrid": Hybrid(high=SecondMoments(tolerance=1e-10), low=Exact(20)),
    "analytic": Analytic(),
    "wavelet": Wavelet(),
    "free-hunch": FreeHunch(tolerance=1e-10),
}


def exported_solvers() -> set[type]:
    """Every solver class that ``cmidiff.solvers`` exports."""
    public = [value for name, value in vars(cmidiff.solvers).items() if not name.startswith("_")]
    return {v for v in public if inspect.isclass(v) and dataclasses.is_dataclass(v) and issubclass(v, Solver)}


# priors


def spd(d: int, *, seed: int, low: float = 0.2, high: float = 1.5) -> Tensor:
    """A symmetric positive matrix with spectrum in [low, high]."""
    q = torch.linalg.qr(randn(d, d, seed=seed))[0]
    return (q * torch.linspace(low, high, d, dtype=F64)) @ q.mT


def mixture(d: int = 12, k: int = 4, *, seed: int = 0, schedule: Schedule | None = None, spread: float = 1.0):
    """A mixture of ``k`` Gaussians with full covariances in ``d`` dimensions."""
    covariances = torch.stack([spd(d, seed=100 * seed + i, low=0.05, high=0.6) for i in range(k)])
    weights = torch.rand(k, generator=generator(seed), dtype=F64) + 0.5
    return GaussianMixture(weights, spread * randn(k, d, seed=seed), covariances, schedule)


def gaussian(d: int = 6, *, seed: int = 0, schedule: Schedule | None = None) -> GaussianMixture:
    """One Gaussian with a mean away from zero."""
    return GaussianMixture(torch.ones(1, dtype=F64), randn(1, d, seed=seed), spd(d, seed=seed + 1)[None], schedule)


def three_images(shape: Shape, *, seed: int = 0, schedule: Schedule | None = None) -> GaussianMixture:
    """Three smooth images in [0, 1], each with independent pixels of standard deviation 0.1 around them."""
    rows = torch.linspace(0, 1, shape[-2], dtype=F64)[:, None]
    columns = torch.linspace(0, 1, shape[-1], dtype=F64)
    bases = [rows * columns, 1 - rows + 0 * columns, 0.5 + 0.3 * torch.sin(6 * columns) + 0 * rows]
    tint = torch.linspace(0.7, 1.0, shape[0], dtype=F64).reshape(-1, 1, 1)
    means = torch.stack([tint * base for base in bases])
    return GaussianMixture(torch.full((3,), 1 / 3, dtype=F64), means, torch.full_like(means, 0.01), schedule)


# a step, and random numbers


@dataclass
class Bulk:
    """Independent numbers for large batches: one generator, in the order of the calls."""

    seed: int = 0
    _generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._generator = generator(self.seed)

    def normal(self, stream: str, index: int, like: Tensor, inner: int = 0) -> Tensor:
        return torch.randn(like.shape, generator=self._generator, dtype=like.dtype)


def rows(count: int, seed: int = 0) -> SeededDraws:
    return SeededDraws([(seed, k) for k in range(count)])


def measured(matrix: Tensor, y: Tensor, noise_std: float, shape: Shape | None = None) -> Measurement:
    image = (matrix.shape[1],) if shape is None else shape
    return Measurement(y, matrix_physics(matrix, image, noise_std), noise_std, image, image)


def problem_of(
    prior: Denoiser,
    measurement: Measurement,
    *,
    sampler: Sampler | None = None,
    draws: Draws | None = None,
    clip: tuple[float, float] | None = None,
    initial: Tensor | None = None,
) -> Problem:
    """A run over the rows of a measurement."""
    count = len(measurement.y)
    own = rows(count) if draws is None else draws
    used = Ancestral() if sampler is None else sampler
    return Problem(prior, measurement, used, own, tuple(range(count)), clip, initial)


def step_at(
    prior: Denoiser,
    measurement: Measurement,
    x_t: Tensor,
    t: float,
    s: float,
    *,
    sampler: Sampler | None = None,
    draws: Draws | None = None,
    graph: bool = True,
    index: int = 0,
    steps: int = 1000,
    clip: tuple[float, float] | None = None,
) -> Step:
    """A step; with 1000 of them the scale of DPS and MCG is what one step takes."""
    problem = problem_of(prior, measurement, sampler=sampler, draws=draws or rows(len(x_t)), clip=clip)
    return Step.at(problem, x_t, t, s, graph=graph, index=index, steps=steps)


def with_measurement(step: Step, measurement: Measurement) -> Step:
    """The same step of another measurement."""
    return dataclasses.replace(step, problem=dataclasses.replace(step.problem, measurement=measurement))


# dense references, written from the formulas alone


def dense_denoiser(prior: GaussianMixture, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """``E[x_0 | x_t]`` (B, d) and its Jacobian (B, d, d), by differentiating the log-density written out here."""
    alpha, sigma = prior.schedule(t)
    means, weights, eye = prior.means, prior.weights, torch.eye(prior.d, dtype=F64)
    spectra = [alpha**2 * c + sigma**2 * eye for c in prior.covariance_matrices()]

    def log_p(x: Tensor) -> Tensor:
        terms = [
            w.log() - 0.5 * ((x - alpha * m) @ torch.linalg.solve(s, x - alpha * m) + torch.logdet(s))
            for w, m, s in zip(weights, means, spectra, strict=True)
        ]
        return torch.logsumexp(torch.stack(terms), 0) - 0.5 * prior.d * math.log(2 * math.pi)

    flat = x_t.detach().flatten(1)
    scores = torch.stack([torch.func.grad(log_p)(x) for x in flat])
    hessians = torch.stack([cast(Tensor, torch.func.hessian(log_p)(x)) for x in flat])
    return (flat + sigma**2 * scores) / alpha, (eye + sigma**2 * hessians) / alpha


def gaussian_posterior(mean: Tensor, cov: Tensor, matrix: Tensor, y: Tensor, noise_std: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of ``x | y`` for ``x ~ N(mean, cov)`` in the information form."""
    precision = torch.linalg.inv(cov) + matrix.mT @ matrix / noise_std**2
    posterior = torch.linalg.inv(precision)
    return posterior @ (torch.linalg.solve(cov, mean) + matrix.mT @ y / noise_std**2), posterior


def dense_matrix(physics: LinearPhysics, shape: Shape) -> Tensor:
    """The matrix (m, d) of a physics, one column at a time."""
    basis = torch.eye(math.prod(shape), dtype=F64).reshape(-1, 1, *shape)
    return torch.stack([physics.A(column).flatten() for column in basis], 1)
