"""One function: a measurement, its physics and a prior in, a restoration out.

Images at the door are in ``value_range``, [0, 1] by default, and ``noise_std`` in its units; inside, in the prior's own
range. The map between them is affine, so for a linear physics the measurement ``y = A x + n`` becomes ``y' = A x' +
n'`` with ``y' = (y - A offset) / gain`` and noise ``noise_std / gain``: the stated sigma is the real sigma. A physics
that is not linear is composed with the map.

The noise of photons, ``y = g Poisson(A x / g)``, has the variance ``g A x``, which ``y`` itself estimates. Inside,
``y`` and ``A`` are divided by its square root, entry by entry, so that one noise level is left: the weights of DPS for
Poisson noise (Chung et al. 2023, https://arxiv.org/abs/2209.14687). Two approximations: a Gaussian for the Poisson law,
and ``max(y, g)`` for its mean, so that no entry's noise is less than that of one photon.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from cmidiff.draws import SeededDraws
from cmidiff.guidance import CADPS, DPS, DSG, Guidance
from cmidiff.information import CMI, Contraction, contract
from cmidiff.measurement import Measurement, nonlinear
from cmidiff.physics import known_entries, noise_of
from cmidiff.prior import check_memory
from cmidiff.prior.base import Denoiser
from cmidiff.prior.tiles import fitted
from cmidiff.sampler import DDIM, Ancestral, ProbabilityFlow, Trace, sample, start
from cmidiff.step import Kernel, Step, evaluate

SMALL = 4 * 3 * 128**2  # numbers in a batch of states below which memory is not asked after


@dataclass(frozen=True)
class Status:
    """How one sample ended: ``step`` is the step (from 1) at which it diverged, None if it did not."""

    ok: bool
    step: int | None = None
    message: str = "finished"


@dataclass(frozen=True)
class Progress:
    """A step of a run, as a callback sees it.

    Attributes:
        step, steps: number of the step, from 1.
        sample: index of the first sample in this batch.
        x_hat: the estimate so far, shape (N, C, H, W), in ``value_range``: N samples of one image, or one sample of N
            images.
        misfit: ``|y - A x_hat| / (noise_std sqrt m)``, shape (N,).
    """

    step: int
    steps: int
    sample: int
    x_hat: Tensor
    misfit: Tensor


@dataclass(frozen=True)
class Restoration:
    """Samples of the posterior.

    Attributes:
        samples: shape (B, K, C, H, W), in ``value_range``, not clipped. A diverged sample is its last finite estimate.
        status: ``status[b][k]``.
        stats: per step, shape (steps, B, K): ``misfit`` in units of sigma, ``guidance`` and ``cmi`` (norms of the
            moves, in the prior's units).
    """

    samples: Tensor
    status: list[list[Status]]
    stats: dict[str, Tensor]

    @property
    def ok(self) -> Tensor:
        """Which samples finished, shape (B, K)."""
        return torch.tensor([[status.ok for status in row] for row in self.status], device=self.samples.device)

    @property
    def mean(self) -> Tensor:
        """Mean of the samples that finished, shape (B, C, H, W); NaN where none did."""
        weight = self._weight()
        return (self.samples * weight).sum(1) / weight.sum(1)

    @property
    def std(self) -> Tensor:
        """Standard deviation over the samples that finished (0 for a single one), shape (B, C, H, W); NaN where none
        did."""
        weight = self._weight()
        squares = ((self.samples - self.mean[:, None]) ** 2 * weight).sum(1)
        count = weight.sum(1)
        return torch.where(count > 0, (squares / (count - 1).clamp_min(1.0)).sqrt(), torch.nan)

    def _weight(self) -> Tensor:
        return self.ok.to(self.samples).reshape(*self.ok.shape, *[1] * (self.samples.ndim - 2))


@torch.no_grad()
def restore(
    y: Tensor,
    physics: Physics,
    prior: Denoiser,
    *,
    solver: Guidance | None = None,
    cmi: CMI | None = None,
    noise_std: float | None = None,
    kernel: Kernel | None = None,
    steps: int = 100,
    samples: int = 1,
    first_sample: int = 0,
    seed: int | Sequence[int] = 0,
    value_range: tuple[float, float] | None = (0.0, 1.0),
    tile: int | Literal["auto"] | None = "auto",
    callback: Callable[[Progress], None] | None = None,
) -> Restoration:
    """Sample the posterior ``p(x | y)`` of ``y = A x + n``, ``n ~ N(0, noise_std^2 I)`` or that of photons.

    Args:
        y: measurements, shape (B, ...); never changed.
        physics: the forward operator ``A``: any `deepinv.physics.LinearPhysics`; or another `deepinv.physics.Physics`,
            differentiable and with an ``img_size``, for solvers that need no adjoint (DPS, DSG).
        prior: the denoiser, e.g. ``load_prior("natural-64")``.
        solver: how the measurement guides; `DPS` by default.
        cmi: the CMI correction; None for the base solver.
        noise_std: sigma_y, in units of ``value_range``; by default that of ``physics.noise_model``, which may also be
            deepinv's ``PoissonNoise`` or ``PoissonGaussianNoise`` for images that are 0 where there is no light.
        kernel: reverse kernel; `Ancestral` by default.
        steps: sampling steps.
        samples: K, samples for each measurement.
        first_sample: index of the first one: sample k of a seed is the same however samples are grouped into calls.
        seed: of all random numbers, or one for each measurement.
        value_range: range of the images behind ``y``; None: ``y`` and the result are in the prior's own units.
        tile: side of overlapping tiles in which the prior sees the image (see `cmidiff.prior.tiles.Tiled`); None: the
            image as a whole; ``auto``: tiles where the image is far larger than those that the prior was trained on.
        callback: called after each step.

    Returns:
        The samples, with a status each: a diverged one never costs the others.

    Raises:
        ValueError, TypeError: for input that cannot be meant, before any work.
    """
    solver = DPS() if solver is None else solver
    kernel = Ancestral() if kernel is None else kernel
    door = _door(y, physics, prior, noise_std, value_range, samples, first_sample, seed)
    prior = fitted(prior, door.measurement.shape, tile)
    times = prior.schedule.grid(steps)
    _check_solver(solver, kernel, physics)
    for contraction in _contractions(solver, cmi):
        _check_contraction(contraction, prior, door, kernel, times[0])
    groups = [_rows(door.seeds, group) for group in _groups(len(y), samples, first_sample)]
    _check_memory(prior, door.measurement.shape, max(map(len, groups)), solver, cmi)
    parts = [_run(door, prior, solver, cmi, kernel, times, rows, callback) for rows in groups]
    return _collect(parts, len(y), samples)


def _check_solver(solver: Guidance, kernel: Kernel, physics: Physics) -> None:
    """Raise ``TypeError`` or ``ValueError`` for a solver that cannot work with this physics or this kernel."""
    if getattr(solver, "needs_linear", False) and not isinstance(physics, LinearPhysics):
        raise TypeError(nonlinear(type(solver).__name__, physics))
    silent = isinstance(kernel, ProbabilityFlow) or (isinstance(kernel, DDIM) and kernel.eta == 0)
    if isinstance(solver, DSG) and solver.needs_graph and silent:
        raise ValueError(
            f"DSG turns the kernel's noise, and {kernel!r} has none: use kernel=Ancestral() or DDIM(eta=1.0), or DPS"
        )


def _check_memory(prior: Denoiser, shape: tuple[int, ...], rows: int, solver: Guidance, cmi: CMI | None) -> None:
    """Raise ``ValueError`` for a run that cannot fit in memory; small ones are not worth the seconds this takes."""
    if rows * math.prod(shape) < SMALL:
        return
    acting = None if cmi is None or cmi.eta == 0 else cmi
    graph = solver.needs_graph or (acting is not None and (acting.needs_graph or acting.how == "finite-difference"))
    check_memory(prior, shape, rows, graph=graph, twice=acting is not None and acting.how == "double-backward")


def _contractions(solver: Guidance, cmi: CMI | None) -> set[Contraction]:
    """The ways of this run to differentiate a Jacobian, those that not every network has."""
    wanted: set[Contraction] = set() if cmi is None or cmi.eta == 0 else {cmi.how}
    if isinstance(solver, CADPS) and solver.complete and solver.needs_graph:
        wanted.add(solver.contraction)
    return wanted & {"double-backward", "reverse-over-forward"}


def _check_contraction(how: Contraction, prior: Denoiser, door: _Door, kernel: Kernel, t: float) -> None:
    """Raise ``ValueError`` for a prior that has not these derivatives: found out on one state, since only its backward
    pass knows."""
    m = door.measurement
    x = m.y.real.new_zeros(1, *m.shape)
    try:
        draws = SeededDraws([(0, 0)])
        step = evaluate(Step(x, t, prior.schedule.end, 0, 1, x, None, prior, m, kernel, draws), graph=True)
        contract(step, x + 1, x + 1, how)
    except (RuntimeError, NotImplementedError) as error:
        if "memory" in str(error):
            raise
        raise ValueError(
            f"contraction={how!r} needs derivatives that this prior has not ({_first_line(error)}): "
            "use contraction='finite-difference', which works on every network"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@dataclass(frozen=True)
class _Door:
    """What passes the door: the measurement in the prior's units, and the way back."""

    measurement: Measurement
    seeds: list[int]
    gain: float
    offset: float

    def outside(self, x: Tensor) -> Tensor:
        return self.gain * self.measurement.crop(x) + self.offset


@dataclass(frozen=True)
class _Part:
    samples: Tensor
    status: list[Status]
    stats: dict[str, Tensor]


def _door(
    y: Tensor,
    physics: Physics,
    prior: Denoiser,
    noise_std: float | None,
    value_range: tuple[float, float] | None,
    samples: int,
    first_sample: int,
    seed: int | Sequence[int],
) -> _Door:
    if not isinstance(y, Tensor) or y.ndim < 2 or y.numel() == 0:
        raise ValueError(
            f"y must be a non-empty tensor (B, ...), received {_seen(y)}: add a batch dimension with y[None]"
        )
    if not bool(torch.isfinite(y).all()):
        raise ValueError("y must be finite, received NaN or infinity: remove bad pixels with an inpainting mask")
    if not isinstance(physics, Physics):
        raise TypeError(
            f"physics must be a deepinv physics, received {type(physics).__name__}: see cmidiff.physics.from_callable"
        )
    if isinstance(samples, bool) or samples < 1 or first_sample < 0:
        raise ValueError(
            f"samples must be at least 1 and first_sample at least 0, received {samples} and {first_sample}"
        )
    seeds = [seed] * len(y) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(y):
        raise ValueError(
            f"seed must be one integer or one for each of the {len(y)} measurements, received {len(seeds)}"
        )
    image = _image_shape(y, physics)
    canvas = _canvas(image, prior)
    gain, offset = _affine(value_range, prior)
    y, std, weight = _white(y, physics, noise_std, value_range)
    inside, affine = _inside(y, physics, image, gain, offset)
    inside = inside if weight is None else weight * inside
    return _Door(Measurement(inside, physics, std / gain, canvas, image, affine, weight), seeds, gain, offset)


def _seen(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _white(
    y: Tensor, physics: Physics, noise_std: float | None, value_range: tuple[float, float] | None
) -> tuple[Tensor, float, Tensor | None]:
    """``y`` in units of ``A x``, the standard deviation of its noise, and the weights that make it one number.

    Weights are 1 where ``A x`` is the middle of the range, for all images alike: the scales of DPS, MCG and DSG mean
    what they mean with Gaussian noise, and no image's result depends on another.
    """
    noise = noise_of(physics) if noise_std is None else None
    if noise is None or not bool((noise.gain > 0).any()):
        return y, _noise_std(physics, noise_std), None
    if y.is_complex():
        raise ValueError(f"photons are counted in real numbers, received y of {y.dtype}: state noise_std instead")
    sigma, gain = _single("sigma", noise.sigma), _single("gain", noise.gain)
    counted = y * gain if noise.counts else y
    middle = 0.5 if value_range is None else 0.5 * (value_range[1] - value_range[0])
    typical = math.sqrt(sigma**2 + gain * middle)
    return counted, typical, typical * (sigma**2 + gain * counted.clamp_min(gain)).rsqrt()


def _noise_std(physics: Physics, noise_std: float | None) -> float:
    if noise_std is None:
        sigma = getattr(physics.noise_model, "sigma", None)
        if sigma is None:
            raise ValueError(
                "noise_std is not known: the physics has no Gaussian noise model; pass noise_std=, "
                "in units of value_range"
            )
        noise_std = _single("noise_std", torch.as_tensor(sigma).flatten())
    if not (0 <= noise_std < math.inf):
        raise ValueError(f"noise_std must be a finite number >= 0, received {noise_std}")
    return noise_std


def _single(name: str, values: Tensor) -> float:
    values = values.unique()
    if len(values) != 1:
        raise ValueError(
            f"one {name} for all measurements is needed, the physics has {len(values)}: restore them one by one"
        )
    return float(values)


def _image_shape(y: Tensor, physics: Physics) -> tuple[int, ...]:
    if isinstance(physics, LinearPhysics):
        try:
            return tuple(physics.A_adjoint(y).shape[1:])
        except RuntimeError as error:
            raise ValueError(f"y of shape {tuple(y.shape)} does not fit {type(physics).__name__}: {error}") from error
    shape = getattr(physics, "img_size", None)
    if shape is None:
        raise ValueError(
            f"{type(physics).__name__} is not linear and has no img_size: set physics.img_size = (C, H, W)"
        )
    expected = physics.A(torch.zeros(1, *shape, dtype=y.real.dtype, device=y.device)).shape[1:]
    if y.shape[1:] != expected:
        raise ValueError(
            f"y of shape {tuple(y.shape)} does not fit {type(physics).__name__}, which measures (B, "
            f"{', '.join(map(str, expected))}) of images of {tuple(shape)}"
        )
    return tuple(shape)


def _canvas(image: tuple[int, ...], prior: Denoiser) -> tuple[int, ...]:
    if prior.channels is None:
        return image
    if len(image) != 3 or image[0] not in (1, prior.channels):
        raise ValueError(
            f"the prior is for images of {prior.channels} channels (or 1), the physics is on signals of shape {image}"
        )
    return (prior.channels, *(-(-n // prior.multiple) * prior.multiple for n in image[1:]))


def _affine(value_range: tuple[float, float] | None, prior: Denoiser) -> tuple[float, float]:
    """``(gain, offset)`` with image at the door = gain x + offset."""
    if value_range is None or prior.value_range is None:
        return 1.0, 0.0
    (low, high), (inner_low, inner_high) = value_range, prior.value_range
    if not high > low:
        raise ValueError(f"value_range must be (low, high) with low < high, received {value_range}")
    gain = (high - low) / (inner_high - inner_low)
    return gain, low - gain * inner_low


def _inside(
    y: Tensor, physics: Physics, image: tuple[int, ...], gain: float, offset: float
) -> tuple[Tensor, tuple[float, float]]:
    """``y`` in the prior's units, and the affine map that is left to the measurement."""
    if offset == 0.0 and gain == 1.0:
        return _measured(y, physics), (1.0, 0.0)
    if not isinstance(physics, LinearPhysics):
        return y / gain, (gain, offset)
    of_offset = physics.A(torch.full((len(y), *image), offset, dtype=y.real.dtype, device=y.device))
    return _measured((y - of_offset) / gain, physics), (1.0, 0.0)


def _measured(y: Tensor, physics: Physics) -> Tensor:
    """A copy of ``y`` without what a mask hides: noise or a scratch there would rescale the steps of DPS."""
    known = known_entries(physics, y)
    return y.clone() if known is None else y * known


def _groups(batch: int, samples: int, first: int) -> list[tuple[range, range]]:
    """Ranges of images and samples that run together: all samples of one image, or one sample of all images (a physics
    may hold a parameter per image)."""
    if batch == 1:
        return [(range(1), range(first, first + samples))]
    return [(range(batch), range(k, k + 1)) for k in range(first, first + samples)]


def _rows(seeds: list[int], group: tuple[range, range]) -> list[tuple[int, int]]:
    return [(seeds[b], k) for b in group[0] for k in group[1]]


def _run(
    door: _Door,
    prior: Denoiser,
    solver: Guidance,
    cmi: CMI | None,
    kernel: Kernel,
    times: Sequence[float],
    rows: list[tuple[int, int]],
    callback: Callable[[Progress], None] | None,
) -> _Part:
    measurement, draws = door.measurement, SeededDraws(rows)
    if len(measurement.y) != len(rows):
        measurement = replace(measurement, y=measurement.y.expand(len(rows), *measurement.y.shape[1:]))
    x = start(prior, times[0], draws, measurement.y.real.new_zeros(len(rows), *measurement.shape))
    traces: list[dict[str, Tensor]] = []
    died = torch.full((len(rows),), -1)
    trace: Trace | None = None
    for trace in sample(
        prior, measurement, x, times, guidance=solver, kernel=kernel, draws=draws, cmi=cmi, clip=prior.value_range
    ):
        traces.append({"misfit": trace.misfit, "guidance": trace.guidance, "cmi": trace.cmi})
        died = torch.where(~trace.alive.cpu() & (died < 0), trace.index + 1, died)
        if callback is not None:
            callback(Progress(trace.index + 1, trace.steps, rows[0][1], door.outside(trace.x_hat), trace.misfit))
    assert trace is not None
    final = torch.where(trace.alive.reshape(-1, *[1] * (x.ndim - 1)), trace.x_s, trace.x_hat)
    stats = {name: torch.stack([values[name] for values in traces]) for name in traces[0]}
    return _Part(door.outside(final), [_status(int(step), len(times)) for step in died], stats)


def _status(step: int, steps: int) -> Status:
    return (
        Status(True)
        if step < 0
        else Status(False, step, f"diverged at step {step} of {steps}: lower the solver's scale or take more steps")
    )


def _collect(parts: list[_Part], batch: int, samples: int) -> Restoration:
    if batch == 1:
        (part,) = parts
        return Restoration(
            part.samples[None], [part.status], {name: value[:, None] for name, value in part.stats.items()}
        )
    status = [[part.status[b] for part in parts] for b in range(batch)]
    stats = {name: torch.stack([part.stats[name] for part in parts], dim=-1) for name in parts[0].stats}
    return Restoration(torch.stack([part.samples for part in parts], dim=1), status, stats)
