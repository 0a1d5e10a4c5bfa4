"""Posterior-mean solvers as denoisers of azula, so that azula's samplers draw from the posterior.

The other direction, a denoiser of azula as a prior, is `cmidiff.prior.from_azula`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.noise import Schedule
from deepinv.physics import Physics
from torch import Tensor

from cmidiff import prior as priors
from cmidiff.draws import SeededDraws
from cmidiff.information import CMI
from cmidiff.intake import take
from cmidiff.registry import SOLVERS
from cmidiff.samplers import DDIM
from cmidiff.schedule import Schedule as OwnSchedule
from cmidiff.solvers import PiGDM, PosteriorMean
from cmidiff.step import Problem, Step


class PriorSchedule(Schedule):
    """The schedule of a prior on azula's times: 1 is the noisiest time of the prior, 0 the clean image."""

    def __init__(self, inner: OwnSchedule) -> None:
        self.inner, self.first = inner, inner.grid(1)[0]

    def time(self, t: Tensor) -> float:
        """Return the prior's own time."""
        return self.inner.end + float(t) * (self.first - self.inner.end)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        levels = [self.inner(self.time(value)) for value in t.flatten()]
        alpha, sigma = (torch.tensor(values, dtype=t.dtype, device=t.device) for values in zip(*levels, strict=True))
        return alpha.reshape(t.shape), sigma.reshape(t.shape)


class PosteriorDenoiser(Denoiser):
    """``E[x_0 | x_t, y]`` of a solver, as a denoiser of azula.

    States and results are in the prior's own units and have the shape of the prior's canvas, (B, C, H, W).

    Args:
        y: measurements, (B, ...), or one for all states, (1, ...).
        physics: the forward operator.
        prior: a prior or its name for `load_prior`.
        solver: a solver that estimates the posterior mean (`PosteriorMean`, `PiGDM`), or its name.
        cmi: the CMI correction.
        noise_std: noise level of ``y``; by default that of the physics.
        seed: of the solver's own random numbers and of CMI's probes; one for each measurement, or one for all.
        value_range: range of the images behind ``y``; None for the prior's own units.

    Raises:
        TypeError: ``solver`` is of another kind.
        ValueError: an argument is invalid, as in `cmidiff.restore`; or, on call, ``t`` differs between rows.
    """

    def __init__(
        self,
        y: Tensor,
        physics: Physics,
        prior: priors.Denoiser | str = "photo",
        solver: PosteriorMean | PiGDM | str = "cadps",
        *,
        cmi: CMI | None = None,
        noise_std: float | None = None,
        seed: int | Sequence[int] = 0,
        value_range: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.prior = priors.load_prior(prior) if isinstance(prior, str) else prior
        self.solver, self.cmi = SOLVERS.resolve(solver), cmi
        additive = isinstance(self.solver, PiGDM) and self.solver.weight == "additive"
        if additive or not isinstance(self.solver, PosteriorMean | PiGDM):
            raise TypeError(f"solver must estimate E[x_0 | x_t, y], as 'pigdm' and 'cadps' do, received {solver!r}")
        self.intake = take(y, physics, self.prior, noise_std, value_range, seed)
        self.schedule = self.times = PriorSchedule(self.prior.schedule)

    def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the posterior mean at states of shape (B, C, H, W) and one time ``t`` for all of them."""
        if t.numel() > 1 and len(t.unique()) > 1:
            raise ValueError(f"t must be the same for all rows, received {t.tolist()}: call the denoiser row by row")
        t, measurement, seeds = t.flatten()[0], self.intake.measurement, self.intake.seeds
        if len(measurement.y) == 1:
            measurement = replace(measurement, y=measurement.y.expand(len(x_t), *measurement.y.shape[1:]))
            rows, images = [(seeds[0], k) for k in range(len(x_t))], (0,) * len(x_t)
        elif len(measurement.y) == len(x_t):
            rows, images = [(seed, 0) for seed in seeds], tuple(range(len(x_t)))
        else:
            raise ValueError(f"{len(measurement.y)} measurements need one state each, received {len(x_t)} states")
        problem = Problem(self.prior, measurement, DDIM(), SeededDraws(rows), images, self.prior.clip)
        index, end = round(float(1 - t) * 10**6), self.prior.schedule.end  # a number of its own for each time
        ratio = Step.at(problem, x_t, self.times.time(t), end, graph=False).relative_ratio
        graph = self.solver.needs_graph_at(ratio) or (self.cmi is not None and self.cmi.needs_graph_at(ratio))
        step = Step.at(problem, x_t, self.times.time(t), end, graph=graph, index=index)
        step = step if self.cmi is None else self.cmi(step)
        return DiracPosterior(step.corrected(self.solver.estimate(step)))

    def to_images(self, x: Tensor) -> Tensor:
        """Return a final state as images in ``value_range``, (B, C, H, W)."""
        return self.intake.outside(x)
