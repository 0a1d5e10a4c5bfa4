"""One function: a measurement, its physics and a prior in, a restoration out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from cmidiff.draws import SeededDraws
from cmidiff.information import CMI, Contraction, contract
from cmidiff.intake import Intake, take
from cmidiff.loop import Trace, sample
from cmidiff.measurement import nonlinear
from cmidiff.prior import check_memory, check_prior, load_prior
from cmidiff.prior.base import Denoiser
from cmidiff.prior.tiles import fitted
from cmidiff.registry import SAMPLERS, SOLVERS
from cmidiff.result import EXCESS, MISFIT_BOUND, QUANTUM, Progress, Restoration, RestorationWarning, Status
from cmidiff.solvers import CADPS, DPIR, DPS, Solver
from cmidiff.step import Problem, Sampler, Step

SMALL = 4 * 3 * 128**2  # numbers in a batch of states below which memory is not asked after
Callback = Callable[[Progress], None]


@torch.no_grad()
def restore(
    y: Tensor,
    physics: Physics,
    prior: Denoiser | str | Path = "photo",
    *,
    solver: Solver | type[Solver] | str | None = None,
    cmi: CMI | type[CMI] | bool | None = None,
    noise_std: float | None = None,
    sampler: Sampler | type | str | None = None,
    steps: int | None = None,
    samples: int | None = None,
    first_sample: int = 0,
    seed: int | Sequence[int] = 0,
    value_range: tuple[float, float] | None = (0.0, 1.0),
    tile: int | Literal["auto"] | None = "auto",
    batch_size: int | None = None,
    callback: Callback | None = None,
) -> Restoration:
    """Restore ``x`` from ``y = A x + n``, ``n ~ N(0, noise_std^2 I)`` or that of photons.

    Without a ``solver`` the result is the best estimate, by `DPIR`: about 20 evaluations of the prior. ``samples=K``
    adds K samples of the posterior by `CADPS`, which show what is uncertain. With a ``solver``, its samples are drawn,
    and the estimate is their mean.

    Args:
        y: measurements, shape (B, ...), floating or complex; never changed.
        physics: the forward operator ``A``: any `deepinv.physics.LinearPhysics`; or another `deepinv.physics.Physics`,
            differentiable and with an ``img_size``, for solvers that need no adjoint (DPS, DSG).
        prior: the denoiser, or its name for `load_prior`.
        solver: how the measurement is used: an object, a class or a name of `cmidiff.registry.SOLVERS`.
        cmi: the CMI correction of the samples; True for `CMI()`.
        noise_std: sigma_y, in units of ``value_range``. By default that of ``physics.noise_model``, which may also be
            deepinv's ``PoissonNoise`` or ``PoissonGaussianNoise`` for images that are 0 where there is no light. For a
            complex ``y`` it is that of the whole number, and each part has half of the variance, as in deepinv.
        sampler: reverse process of the samples: an object, a class or a name; by default that of the solver, which is
            `Ancestral` for most.
        steps: sampling steps; by default those of the solver.
        samples: K, samples for each measurement; by default 0 without a solver, and with one 1, or as many as it has
            particles.
        first_sample: index of the first one: sample k of a seed is the same however samples are grouped into calls.
        seed: of all random numbers, or one for each measurement. With one seed, the noise of image i of the batch
            depends on the seed and on i. With several, image i depends on ``seed[i]`` alone.
        value_range: range of the images behind ``y``; None: ``y`` and the result are in the prior's own units.
        tile: side of overlapping tiles in which the prior sees the image (see `cmidiff.prior.tiles.Tiled`). None: the
            image as a whole. ``auto``: tiles where the image is far larger than those that the prior was trained on.
        batch_size: at most this many images or samples are computed at once, which bounds the memory; None: all images,
            or all samples of one image. Results do not depend on it.
        callback: called after each step.

    Returns:
        The estimate and the samples, with a status each: a diverged sample never costs the others.

    Raises:
        ValueError, TypeError: an argument is invalid; checked before any computation.

    Warns:
        RestorationWarning: a result does not explain its measurement (its misfit is above `MISFIT_BOUND`).
    """
    prior = load_prior(prior) if isinstance(prior, str | Path) else prior
    check_prior(prior)
    sampler = None if sampler is None else SAMPLERS.resolve(sampler)
    if not isinstance(sampler, Sampler | None):
        raise TypeError(f"sampler must be a sampler or its name, one of {', '.join(SAMPLERS)}, received {sampler!r}")
    cmi = _correction(cmi)
    chosen: Solver | None = None if solver is None else SOLVERS.resolve(solver)
    if not isinstance(chosen, Solver | None):
        raise TypeError(f"solver must be a Solver or its name, one of {', '.join(SOLVERS)}, received {solver!r}")
    point: Solver | None = chosen if chosen is not None and chosen.point else None
    if chosen is None:
        plain = isinstance(physics, LinearPhysics) and prior.decoder is None
        chosen, point = (CADPS(), DPIR()) if plain else (DPS(), None)
    if isinstance(first_sample, bool) or not isinstance(first_sample, int) or first_sample < 0:
        raise ValueError(f"first_sample must be a whole number >= 0, received {first_sample!r}")
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size must be a whole number >= 1 or None, received {batch_size!r}")
    count = _count(samples, solver is not None or point is None, point, solver, chosen.default_samples)
    intake = take(y, physics, prior, noise_std, value_range, seed)
    used_sampler = chosen.sampler if sampler is None else sampler
    run = _Run(intake, fitted(prior, intake.measurement.shape, tile), used_sampler, batch_size, callback)
    named = cmi if point is chosen else None  # the estimate that comes with samples is not corrected
    for used, correction in ((point, named), (chosen if count else None, cmi)):
        if used is not None:
            run.check(used, correction, physics, steps)
    if cmi is not None and cmi.eta != 0 and not count and point is not chosen:
        raise ValueError("cmi corrects samples, and none is drawn: pass samples=K, or a solver")
    drawn = run.draw(chosen, cmi, steps, range(first_sample, first_sample + count)) if count else None
    result = _collected(drawn, None if point is None else run.estimate(point, named, steps), len(y), solver is not None)
    _warn(result)
    return result


def _correction(cmi: CMI | type[CMI] | bool | None) -> CMI | None:
    if isinstance(cmi, bool):
        return CMI() if cmi else None
    cmi = CMI() if cmi is CMI else cmi
    if cmi is not None and not isinstance(cmi, CMI):
        raise TypeError(f"cmi must be a CMI, True or None, received {cmi!r}: pass cmi=CMI(eta=0.1)")
    return cmi


def _count(samples: int | None, needed: bool, point: Solver | None, solver: object, default: int) -> int:
    """How many samples are drawn."""
    if samples is None:
        return default if needed and point is None else 0
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < int(needed):
        raise ValueError(f"samples must be a whole number of at least {int(needed)}, received {samples!r}")
    if point is not None and solver is not None:
        if samples > 1:
            raise ValueError(
                f"{type(point).__name__} gives one estimate and no samples, received samples={samples}: leave solver "
                "out for an estimate with samples, or choose a sampler such as 'cadps'"
            )
        return 0
    return samples


def _warn(result: Restoration) -> None:
    seen = [status for row in [result.estimate_status, *result.status] for status in row]
    messages = dict.fromkeys(status.message for status in seen if not (status.ok and status.explains))
    for message in messages:
        warnings.warn(message, RestorationWarning, stacklevel=4)  # the caller of `restore`, past torch's decorator


@dataclass(frozen=True)
class _Part:
    """Finished rows: the image and the sample of each, results (N, ...), their status, and statistics, (steps, N)."""

    rows: list[tuple[int, int]]
    x: Tensor
    inside: Tensor
    status: list[Status]
    stats: dict[str, Tensor]

    @classmethod
    def join(cls, parts: Sequence[_Part]) -> _Part:
        """The rows of all parts, image by image and sample by sample."""
        rows = [row for part in parts for row in part.rows]
        order = sorted(range(len(rows)), key=rows.__getitem__)
        status = [one for part in parts for one in part.status]
        x, inside = (torch.cat([getattr(part, name) for part in parts])[order] for name in ("x", "inside"))
        stats = {name: torch.cat([part.stats[name] for part in parts], 1)[:, order] for name in parts[0].stats}
        return cls([rows[i] for i in order], x, inside, [status[i] for i in order], stats)


@dataclass(frozen=True)
class _Run:
    """One call of `restore`."""

    intake: Intake
    prior: Denoiser
    sampler: Sampler
    batch_size: int | None
    callback: Callback | None

    @property
    def batch(self) -> int:
        return len(self.intake.seeds)

    @property
    def _extent(self) -> float:
        """The range of the images in the prior's units."""
        low, high = self.prior.value_range or (0.0, 2 * math.sqrt(self.prior.variance))
        return high - low

    def check(self, solver: Solver, cmi: CMI | None, physics: Physics, steps: int | None) -> None:
        """Raise ``TypeError`` or ``ValueError`` for a solver that cannot work with this physics, sampler or prior."""
        name = type(solver).__name__
        if solver.needs_linear and not isinstance(physics, LinearPhysics):
            raise TypeError(nonlinear(name, physics))
        if solver.refuses_decoder and self.prior.decoder is not None:
            raise ValueError(
                f"{name} does not work with the latent prior {self.prior.name}: {solver.refuses_decoder}. Choose "
                "another solver, such as dps, psld or resample"
            )
        if solver.needs_noise and (solver.needs_graph or solver.together) and self.sampler.silent:
            raise ValueError(
                f"{name} uses the noise of the sampler, and {self.sampler!r} has none: use sampler=Ancestral() or "
                "DDIM(eta=1.0), or DPS"
            )
        if cmi is not None and cmi.eta != 0 and solver.refuses_cmi:
            raise ValueError(
                f"CMI does not act on {name}: {solver.refuses_cmi}. Leave cmi out, or choose another solver"
            )
        problem = self.problem(self.groups([0])[0])
        solver.check(problem)
        times = solver.times(problem, solver.default_steps if steps is None else steps)
        for contraction, acting in _contractions(solver, cmi, problem, times):
            self._check_contraction(contraction, problem, acting)
        rows = max(len(group) for group in self.groups(range(1)))
        if rows * math.prod(self.intake.measurement.shape) >= SMALL:
            acting = None if cmi is None or cmi.eta == 0 else cmi
            through = solver.needs_linear and self.prior.decoder is not None
            how = None if acting is None else acting.contraction_on(self.prior)
            graph = solver.needs_graph or through or how in ("finite-difference", "double-backward")
            twice = how == "double-backward"
            check_memory(self.prior, self.intake.measurement.shape, rows, graph=graph, twice=twice)

    def _check_contraction(self, how: Contraction, problem: Problem, times: Sequence[float]) -> None:
        """Raise ``ValueError`` for a prior that does not support these derivatives at these times: tried on one state,
        since only its backward pass knows."""
        levels = [problem.prior.schedule(t) for t in times]
        if how == "double-backward" and not all(self.prior.smooth_at(sigma / alpha) for alpha, sigma in levels):
            raise ValueError(
                f"contraction='double-backward' is zero almost everywhere on the prior {self.prior.name}, which is "
                "piecewise linear at the noise levels of this run: use contraction='finite-difference' or "
                "'second-difference', or a window of levels where it is smooth"
            )
        t = times[0]
        x = problem.like()
        try:
            contract(Step.at(problem, x, t, problem.prior.schedule.end, graph=True), x + 1, x + 1, how)
        except (RuntimeError, NotImplementedError) as error:
            if "memory" in str(error):
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"contraction={how!r} needs derivatives that this prior does not support ({reason}): "
                "use contraction='finite-difference', which works on every network"
            ) from error

    def groups(self, samples: Sequence[int], together: bool = False) -> list[list[tuple[int, int]]]:
        """Rows, image and sample, that are computed at once: samples of one image, or one sample of several images. A
        physics may hold a parameter for each image. Of samples that interact there may be many: a group then holds no
        more numbers than `SMALL`."""
        if self.batch > 1:
            size = self.batch_size or self.batch
            return [
                [(b, k) for b in range(self.batch)[i : i + size]] for k in samples for i in range(0, self.batch, size)
            ]
        size = max(1, SMALL // math.prod(self.intake.measurement.shape)) if together else len(samples)
        size = min(size, self.batch_size or size)
        return [[(0, k) for k in samples[i : i + size]] for i in range(0, len(samples), size)]

    def problem(self, rows: Sequence[tuple[int, int]]) -> Problem:
        """What rows that are computed at once are made of."""
        images, seeds = [b for b, _ in rows], self.intake.seeds
        return Problem(
            self.prior,
            self.intake.measurement.take(images),
            self.sampler,
            SeededDraws([(seeds[b], max(k, 0)) for b, k in rows]),
            tuple(images),
            self.prior.clip,
            common=SeededDraws([(seeds[b], 0) for b in images]),
        )

    def draw(self, solver: Solver, cmi: CMI | None, steps: int | None, samples: Sequence[int]) -> _Part:
        """Samples of all images."""
        groups = self.groups(samples, solver.together)
        runs = [groups] if solver.together else [[group] for group in groups]
        return _Part.join([self.run(solver, cmi, steps, each) for each in runs])

    def estimate(self, solver: Solver, cmi: CMI | None, steps: int | None) -> _Part:
        """One estimate of every image."""
        return _Part.join([self.run(solver, cmi, steps, [group]) for group in self.groups([-1])])

    def run(
        self, solver: Solver, cmi: CMI | None, steps: int | None, groups: Sequence[Sequence[tuple[int, int]]]
    ) -> _Part:
        """Groups that take each step one after the other."""
        problems = [self.problem(group) for group in groups]
        times = solver.times(problems[0], solver.default_steps if steps is None else steps)
        rows = [row for group in groups for row in group]
        traces: list[dict[str, Tensor]] = []
        died = torch.full((len(rows),), -1, device=self.intake.measurement.y.device)
        trace: Trace | None = None
        for trace in sample(problems, solver, times, cmi):
            own = {name: getattr(trace, name) for name in ("misfit", "guidance", "cmi", "residual")}
            traces.append(own | trace.own)
            died = torch.where(trace.alive, -1, torch.where(died < 0, trace.index + 1, died))
            if self.callback is not None:
                shown = self.intake.outside(trace.x_hat)
                self.callback(Progress(trace.index + 1, trace.steps, rows[0][1], shown, trace.misfit))
        assert trace is not None
        inside = torch.where(trace.alive.reshape(-1, *[1] * (trace.x_s.ndim - 1)), trace.x_s, trace.x_hat)
        split = zip(problems, inside.split([len(group) for group in groups]), strict=True)
        misfits = torch.cat([problem.measurement.misfit(x) for problem, x in split]).tolist()
        ends = zip(died.tolist(), misfits, self._excess(inside), strict=True)
        status = [self._status(solver, step, len(times), misfit, excess) for step, misfit, excess in ends]
        stats = {name: torch.stack([values[name] for values in traces]) for name in traces[0]}
        x = self.intake.keep(self.intake.outside(inside), [b for b, _ in rows])
        return _Part(rows, x, inside, status, stats)

    def _excess(self, x: Tensor) -> list[float]:
        """By how much results (N, ...) leave the range of the images: root mean square, in units of the range."""
        if self.prior.value_range is None or self.prior.decoder is not None:
            return [0.0] * len(x)
        low, high = self.prior.value_range
        beyond = self.intake.measurement.crop(x - x.clamp(low, high))
        return (beyond.flatten(1).square().mean(1).sqrt() / (high - low)).tolist()

    def _status(self, solver: Solver, died: int, steps: int, misfit: float, excess: float) -> Status:
        if died >= 0:
            message = f"diverged at step {died} of {steps}: lower the solver's scale or take more steps"
            return Status(False, died, message, misfit, False)
        noise = self.intake.measurement.noise_std
        bound = MISFIT_BOUND if noise > 0 else QUANTUM * self._extent
        if not solver.uses_measurement or (misfit <= bound and excess <= EXCESS):
            return Status(True, misfit=misfit)
        if misfit <= bound:
            message = (
                f"finished, but the result leaves the range of images (by {excess:.2g} of it, at most {EXCESS:g} is "
                f"expected): y holds more noise than noise_std={self.intake.gain * noise:.2g}, which inverting the "
                "physics amplifies; state more"
            )
            return Status(True, None, message, misfit, False)
        seen = f"misfit {misfit:.3g}" if noise > 0 else f"residual {misfit * self.intake.gain:.3g}"
        message = (
            f"finished, but the result does not explain the measurement ({seen}, at most {bound:.3g} is expected): "
            "check the physics and noise_std (is the noise larger than stated?), or take more steps or another solver"
        )
        return Status(True, None, message, misfit, False)


def _collected(drawn: _Part | None, estimate: _Part | None, batch: int, alone: bool) -> Restoration:
    """Samples, (B, K, ...), and estimates, (B, ...)."""
    part = estimate if drawn is None else drawn
    assert part is not None
    count = len(part.rows) // batch
    shown = count if drawn is not None or alone else 0  # a point estimator that was named counts as one sample
    samples = part.x.reshape(batch, count, *part.x.shape[1:])[:, :shown]
    status = [part.status[b * count : b * count + shown] for b in range(batch)]
    return Restoration(
        _mean(samples, status) if estimate is None else estimate.x,
        samples,
        status,
        [max(row, key=lambda s: (not s.ok, s.misfit)) for row in status] if estimate is None else estimate.status,
        {name: values.reshape(len(values), batch, count) for name, values in part.stats.items()},
    )


def _mean(samples: Tensor, status: list[list[Status]]) -> Tensor:
    ok = torch.tensor([[s.ok for s in row] for row in status], device=samples.device).to(samples)
    weight = ok.reshape(*ok.shape, *[1] * (samples.ndim - 2))
    return (samples * weight).sum(1) / weight.sum(1)


def _contractions(
    solver: Solver, cmi: CMI | None, problem: Problem, times: Sequence[float]
) -> Iterator[tuple[Contraction, list[float]]]:
    """The ways of this run to differentiate a Jacobian that not every network supports, and when it does."""
    asked: list[tuple[Contraction, list[float]]] = [(how, list(times)) for how in solver.contractions]
    if cmi is not None:
        asked.append((cmi.contraction_on(problem.prior), [t for t in times if cmi.acts_at(problem, t)]))
    return ((how, at) for how, at in asked if at and how in ("double-backward", "reverse-over-forward"))
