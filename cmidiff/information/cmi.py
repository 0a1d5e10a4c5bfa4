"""The CMI correction of a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from cmidiff.config import Checked
from cmidiff.covariance import Covariance, make_covariance
from cmidiff.information.contraction import Contraction, Estimator, default_contraction
from cmidiff.information.gradient import Probe, check_options, gradient_at
from cmidiff.information.value import linearised
from cmidiff.krylov import capped
from cmidiff.prior.base import Denoiser
from cmidiff.step import Problem, Step

Weight = Literal["snr", "reverse-sde", "constant"]


@dataclass(frozen=True)
class CMI(Checked):
    """The CMI correction: each step moves by ``eta_t grad I(x_0; y | x_t)`` besides the guidance (Algorithm 1, line 8).

    It is applied to the denoised image, of which every sampler is a linear function: the state ``x_s = a x_t + b x_hat
    + std z`` moves by ``eta_t grad I`` if ``x_hat`` moves by ``eta_t / b`` times it.

    Args:
        eta: strength, dimensionless, of either sign. 0 is the base solver, bit for bit. The paper ascends ``I``
            (``eta > 0``), which keeps the posterior open for longer. The samples spread more, which brings their
            distribution nearer to the posterior and costs a single sample some PSNR (``docs/validation.md``). -1 is the
            derivative of the log-determinant that CA-DPS's likelihood leaves out (see `CADPS`).
        weight: what multiplies ``eta`` at time ``t``. ``reverse-sde`` is the weight of a log-density's gradient in the
            kernel, which tilts the target by ``exp(eta I)``. ``snr`` is the same times ``alpha_t^2 / (alpha_t^2 +
            sigma_t^2)``, which vanishes where a network's Jacobian is unreliable. ``constant`` is 1, in units of
            ``x_t`` squared per nat. A function of ``t`` is also accepted.
        window: the correction acts while ``sigma_t / alpha_t``, the noise level that all schedules share, is in this
            interval, in units of half the range of the images. Of the prior's standard deviation where it has no range.
        times: and while ``t`` is in this interval, in the prior's own times; None for all.
        cap: the move is at most this multiple of the forward kernel's noise, ``sigma_t|s sqrt(d)``, per image. No error
            of a network then carries a sample away.
        every: correct each ``every``-th step only, with a move and a cap as many times larger.
        probes, probe, estimator: see `gradient_at`.
        contraction: see `contract`; None for `default_contraction`.
        covariance: of ``p(x_0 | x_t)`` inside ``S``, by name or as an object of `cmidiff.covariance`.

    Source: Hamidi, Yang 2025, https://arxiv.org/abs/2501.02880
    """

    eta: float = 0.1
    weight: Weight | Callable[[float], float] = "reverse-sde"
    window: tuple[float, float] = (0.0, 3.5)
    times: tuple[float, float] | None = None
    cap: float = 0.05
    every: int = 1
    probes: int = 1
    probe: Probe = "rademacher"
    estimator: Estimator = "measurement-symmetric"
    contraction: Contraction | None = None
    covariance: Covariance | str = "isotropic"

    def __post_init__(self) -> None:
        check_options(self.estimator, self.contraction, self.probe, self.probes)
        object.__setattr__(self, "covariance", make_covariance(self.covariance, "CMI"))
        if not math.isfinite(self.eta):
            raise ValueError(f"CMI: eta must be finite, received {self.eta}")
        if self.every < 1:
            raise ValueError(f"CMI: every must be at least 1, received {self.every}")
        if not 0 <= self.window[0] <= self.window[1] or not self.cap > 0:
            raise ValueError(
                f"CMI: need 0 <= window[0] <= window[1] and cap > 0, received {self.window} and {self.cap}"
            )
        if self.times is not None and not self.times[0] <= self.times[1]:
            raise ValueError(f"CMI: need times[0] <= times[1], received {self.times}")

    def contraction_on(self, prior: Denoiser) -> Contraction:
        """The contraction in use."""
        return self.contraction or default_contraction(self.estimator, prior)

    @property
    def sigma(self) -> Covariance:
        """The covariance inside ``S``."""
        assert isinstance(self.covariance, Covariance)
        return self.covariance

    @property
    def memory(self) -> int:
        """How many earlier calls of the denoiser its covariance uses."""
        return self.sigma.memory

    def needs_graph_at(self, ratio: float) -> bool:
        """Whether ``x_hat`` must carry its graph at the noise level ``ratio`` (`Step.relative_ratio`)."""
        acting = self.eta != 0 and self.window[0] <= ratio <= self.window[1]
        return acting and (self.contraction == "double-backward" or self.sigma.needs_graph_inside(ratio))

    def eta_t(self, step: Step) -> float:
        """The weight of ``grad I`` at this step."""
        if callable(self.weight):
            return self.eta * self.weight(step.t)
        match self.weight:
            case "reverse-sde":
                return self.eta * step.score_weight
            case "snr":
                return self.eta * step.score_weight / (1.0 + step.ratio**2)
            case "constant":
                return self.eta

    def acts_at(self, problem: Problem, t: float) -> bool:
        """Whether it acts at time ``t``."""
        (alpha, sigma), (low, high) = problem.prior.schedule(t), self.window
        early, late = (t, t) if self.times is None else self.times
        return self.eta != 0.0 and low <= sigma / alpha / problem.half_range <= high and early <= t <= late

    def active(self, step: Step) -> bool:
        """Whether this step is corrected."""
        return self.acts_at(step.problem, step.t) and step.index % self.every == 0 and not step.last

    def __call__(self, step: Step) -> Step:
        """The step with a correction of its denoised image."""
        if not self.active(step):
            return step
        linear = linearised(step)
        grad = gradient_at(
            linear,
            self.sigma.at(linear),
            estimator=self.estimator,
            contraction=self.contraction,
            probe=self.probe,
            probes=self.probes,
        )
        move = self.every * self.eta_t(step) * grad
        most = self.every * self.cap * step.transition[1] * math.sqrt(move[0].numel())
        return replace(step, correction=capped(move, most) / step.coefficients[1])
