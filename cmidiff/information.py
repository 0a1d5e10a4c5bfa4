"""The conditional mutual information ``I(x_0; y | x_t)`` and its gradient.

With ``Sigma = Cov(x_0 | x_t)``, a Gaussian ``p(x_0 | x_t)`` and ``S = sigma_y^2 I + A Sigma A^T`` (Theorems 1 and 2 of
the paper, in measurement space):

    I          = 1/2 log det(S / sigma_y^2)                          in nats
    d_k I      = 1/2 Tr(A^T S^-1 A d_k Sigma),    Sigma = g J,   g = sigma_t^2 / alpha_t

The trace is estimated with probes. For constant ``a`` and ``b`` let ``C(a, b) = grad_x <b, J(x_t) a>``; then, with
``E[z z^T] = I``,

    measurement-symmetric   g/2 E C(u, u),         u = A^T S^-1/2 z,    z in R^m
    measurement             g/2 E C(A^T z, A^T S^-1 z)
    shared-probe            g/2 E C(z, A^T S^-1 A z),                   z in R^d
    two-term                g/2 E [C(z, Sigma^-1 z) - C(w, Sigma^-1 w - A^T S^-1 A w)]     z, w in R^d: the paper's two
    log-determinants

are all unbiased; the first has the smallest variance. ``C`` is the derivative of the network's Jacobian, had in four
ways (`contract`).

Source: Hamidi, Yang, "Conditional Mutual Information Based Diffusion Posterior Sampling for Solving Inverse Problems",
2025, https://arxiv.org/abs/2501.02880;
trace estimation: Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from cmidiff.covariance import Covariance, CovarianceName, bind
from cmidiff.krylov import dot, lanczos, per_sample
from cmidiff.measurement import Measurement
from cmidiff.prior.base import Denoiser
from cmidiff.step import Step

Estimator = Literal["measurement-symmetric", "measurement", "shared-probe", "two-term"]
Contraction = Literal["finite-difference", "double-backward", "reverse-over-forward", "second-difference"]
Probe = Literal["rademacher", "gaussian"]
Weight = Literal["snr", "reverse-sde", "constant"]


def contract(step: Step, a: Tensor, b: Tensor, how: Contraction, size: float | None = None) -> Tensor:
    """``C(a, b)_k = sum_ij b_i (d J_ij / d x_k) a_j`` at ``x_t``, shape (B, ...).

    Args:
        a, b: directions, shape of ``x_t``.
        how: ``double-backward`` (exact; the network's backward must be differentiable), ``reverse-over-forward``
            (exact; needs forward-mode formulas, fails with
            activation checkpointing), ``finite-difference`` of vector-Jacobian products (any network; both in one
            batch), ``second-difference`` of the denoiser
            (no backward; only for ``a = b``, and only as good as the symmetry of the network's third derivative).
        size: finite-difference step relative to ``sigma_t`` and the rms of ``a``; by default the third (fourth) root of
            the precision.
    """
    if how == "double-backward":
        with torch.enable_grad():
            pulled = torch.autograd.grad(step.x_hat, step.x_t, b, create_graph=True)[0]
            through = (pulled * a).sum()
        if not through.requires_grad:  # a denoiser that is linear in x_t
            return torch.zeros_like(a)
        grad = torch.autograd.grad(through, step.x_t, retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(a) if grad is None else grad
    x_t = step.x_t.detach()
    if how == "reverse-over-forward":

        def along(x: Tensor) -> Tensor:
            return (torch.func.jvp(step.denoise, (x,), (a,))[1] * b).sum()

        return torch.func.grad(along)(x_t)
    order = 3 if how == "finite-difference" else 4
    rms = (dot(a, a) / a[0].numel()).sqrt().clamp_min(torch.finfo(a.dtype).tiny)
    h = per_sample(step.level_t[1] * (torch.finfo(a.dtype).eps ** (1 / order) if size is None else size) / rms, a)
    both = torch.cat([x_t + h * a, x_t - h * a])
    if how == "second-difference":
        with torch.no_grad():
            plus, minus = step.denoise(both).chunk(2)
        return (plus - 2 * step.x_hat.detach() + minus) / h**2
    with torch.enable_grad():
        both.requires_grad_()
        plus, minus = torch.autograd.grad(step.denoise(both), both, torch.cat([b, b]))[0].chunk(2)
    return (plus - minus) / (2 * h)


def gradient(
    step: Step,
    covariance: Covariance,
    *,
    estimator: Estimator = "measurement-symmetric",
    contraction: Contraction = "finite-difference",
    probe: Probe = "rademacher",
    probes: int = 1,
) -> Tensor:
    """``grad I(x_0; y | x_t)`` with respect to ``x_t``, in nats per unit of ``x_t``, shape (B, ...); unbiased for the
    given covariance inside ``S``."""

    def draw(stream: str, k: int, like: Tensor) -> Tensor:
        z = step.draws.normal(stream, step.index * probes + k, like)
        return z if probe == "gaussian" else torch.where(z < 0, -1.0, 1.0).to(z)

    total = torch.zeros_like(step.x_t)
    for k in range(probes):
        for a, b, sign in _directions(step, covariance, estimator, lambda stream, like, k=k: draw(stream, k, like)):
            total = total + sign * contract(step, a, b, contraction)
    return (0.5 * step.covariance_gain / probes * total).detach()


def _directions(
    step: Step, covariance: Covariance, estimator: Estimator, draw: Callable[[str, Tensor], Tensor]
) -> list[tuple[Tensor, Tensor, float]]:
    """Pairs ``(a, b)`` and signs whose contractions sum to twice the gradient over ``g``."""
    measurement, x_t = step.measurement, step.x_t.detach()
    match estimator:
        case "measurement-symmetric":
            u = covariance.whiten(draw("cmi", measurement.y))
            return [(u, u, 1.0)]
        case "measurement":
            z = draw("cmi", measurement.y)
            return [(measurement.At(z), covariance.solve(z), 1.0)]
        case "shared-probe":
            z = draw("cmi", x_t)
            return [(z, covariance.solve(measurement.A(z)), 1.0)]
        case "two-term":
            z, w = draw("cmi", x_t), draw("cmi-second", x_t)
            return [
                (z, covariance.inverse(z), 1.0),
                (w, covariance.inverse(w) - covariance.solve(measurement.A(w)), -1.0),
            ]


def exact(prior: Denoiser, measurement: Measurement, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """``I(x_0; y | x_t)`` and its gradient with dense matrices, for small signals: no probe, no iteration.

    Args:
        prior: a denoiser that is twice differentiable.
        measurement: with ``noise_std > 0``.
        x_t: states, shape (B, ...); float64 advised.
        t: time.

    Returns:
        value in nats, shape (B,) (divide by ``ln 2`` for bits), and gradient, shape of ``x_t``.
    """
    if not measurement.noise_std > 0:
        raise ValueError(
            "I(x_0; y | x_t) is infinite without measurement noise: noise_std must be positive, received 0"
        )
    alpha_t, sigma_t = prior.schedule(t)
    shape, d = x_t.shape[1:], x_t[0].numel()
    basis = torch.eye(d, dtype=x_t.dtype, device=x_t.device).reshape(d, *shape)
    matrix = measurement.A(basis).reshape(d, -1).mT

    def value(x: Tensor) -> Tensor:
        def x_hat(flat: Tensor) -> Tensor:
            return prior(flat.reshape(1, *shape), t).mean.reshape(-1)

        jacobian = torch.autograd.functional.jacobian(x_hat, x.reshape(-1), create_graph=True)
        sigma = sigma_t**2 / alpha_t * 0.5 * (jacobian + jacobian.mT)
        s = torch.eye(len(matrix), dtype=x.dtype) + matrix @ sigma @ matrix.mT / measurement.noise_std**2
        return 0.5 * torch.linalg.slogdet(s)[1]

    values, gradients = [], []
    for x in x_t.detach():
        x = x.clone().requires_grad_()
        v = value(x)
        grad = torch.autograd.grad(v, x, allow_unused=True)[0] if v.requires_grad else None
        values.append(v.detach())
        gradients.append(torch.zeros_like(x) if grad is None else grad)
    return torch.stack(values), torch.stack(gradients)


def estimate(step: Step, covariance: Covariance, *, probes: int = 8, iterations: int = 16) -> tuple[Tensor, Tensor]:
    """``I(x_0; y | x_t)`` in nats at any size, shape (B,), and its standard error, by stochastic Lanczos quadrature of
    ``log det(S / sigma_y^2)``.

    Source: Ubaru, Chen, Saad, "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature", 2017.
    """
    measurement = step.measurement
    s2 = measurement.noise_std**2
    if not s2 > 0:
        raise ValueError(
            "I(x_0; y | x_t) is infinite without measurement noise: noise_std must be positive, received 0"
        )

    def operator(v: Tensor) -> Tensor:
        return v + measurement.A(covariance.product(measurement.At(v))) / s2

    m = measurement.y[0].numel()
    draws = []
    for k in range(probes):
        z = step.draws.normal("information", step.index * probes + k, measurement.y)
        z = torch.where(z < 0, -1.0, 1.0).to(z)
        _, values, vectors = lanczos(operator, z, min(iterations, m))
        draws.append(0.5 * m * (vectors[:, 0] ** 2 * values.clamp_min(1.0).log()).sum(-1))
    sample = torch.stack(draws)
    return sample.mean(0), sample.std(0, correction=min(1, probes - 1)) / math.sqrt(probes)


@dataclass(frozen=True)
class CMI:
    """The CMI correction: each step's mean is moved by ``eta_t grad I(x_0; y | x_t)``, before the guidance (Algorithm
    1, line 8).

    Args:
        eta: strength, dimensionless, of either sign. 0 is the base solver, bit for bit.
        weight: what multiplies ``eta`` at time ``t``: ``reverse-sde`` (the weight of a log-density's gradient in the
            kernel: the target is tilted by ``exp(eta I)``),
            ``snr`` (the same times ``alpha_t^2 / (alpha_t^2 + sigma_t^2)``, which vanishes where a network's Jacobian
            is unreliable), ``constant`` (1, in units of ``x_t``
            squared per nat), or a function of ``sigma_t / alpha_t``.
        window: the correction acts while ``sigma_t / alpha_t`` is in this interval.
        cap: the move is at most this multiple of the forward kernel's noise, ``sigma_t|s sqrt(d)``, per image.
        every: correct each ``every``-th step only, with a move as many times larger.
        probes, probe, estimator, contraction: see `gradient`.
        covariance: of ``p(x_0 | x_t)`` inside ``S``: ``isotropic``, ``diagonal`` or ``exact``.

    Source: Hamidi, Yang 2025, https://arxiv.org/abs/2501.02880
    """

    eta: float = 0.1
    weight: Weight | Callable[[float], float] = "reverse-sde"
    window: tuple[float, float] = (0.0, 3.5)
    cap: float = 0.5
    every: int = 1
    probes: int = 1
    probe: Probe = "rademacher"
    estimator: Estimator = "measurement-symmetric"
    contraction: Contraction = "finite-difference"
    covariance: CovarianceName = "isotropic"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("estimator", self.estimator, get_args(Estimator)),
            ("contraction", self.contraction, get_args(Contraction)),
            ("probe", self.probe, get_args(Probe)),
            ("covariance", self.covariance, get_args(CovarianceName)),
        ):
            if value not in allowed:
                raise ValueError(f"CMI: {name} must be one of {', '.join(allowed)}, received {value!r}")
        if not callable(self.weight) and self.weight not in get_args(Weight):
            raise ValueError(
                f"CMI: weight must be a function or one of {', '.join(get_args(Weight))}, received {self.weight!r}"
            )
        if not math.isfinite(self.eta):
            raise ValueError(f"CMI: eta must be finite, received {self.eta}")
        if self.probes < 1 or self.every < 1:
            raise ValueError(f"CMI: probes and every must be at least 1, received {self.probes} and {self.every}")
        if not 0 <= self.window[0] <= self.window[1] or not self.cap > 0:
            raise ValueError(
                f"CMI: need 0 <= window[0] <= window[1] and cap > 0, received {self.window} and {self.cap}"
            )
        if self.contraction == "second-difference" and self.estimator != "measurement-symmetric":
            raise ValueError(
                "CMI: second-difference needs the same direction on both sides of the Jacobian, "
                f"received estimator={self.estimator!r}: use measurement-symmetric, or contraction='finite-difference'"
            )

    @property
    def needs_graph(self) -> bool:
        """Whether ``x_hat`` must carry its graph."""
        return self.contraction == "double-backward" or self.covariance == "exact"

    def eta_t(self, step: Step) -> float:
        """The weight of ``grad I`` at this step."""
        if callable(self.weight):
            return self.eta * self.weight(step.ratio)
        match self.weight:
            case "reverse-sde":
                return self.eta * step.score_weight
            case "snr":
                return self.eta * step.score_weight / (1.0 + step.ratio**2)
            case "constant":
                return self.eta

    def active(self, step: Step) -> bool:
        low, high = self.window
        return self.eta != 0.0 and step.index % self.every == 0 and low <= step.ratio <= high and not step.last

    def __call__(self, step: Step) -> Step:
        """The step with its mean moved."""
        if not self.active(step):
            return step
        grad = gradient(
            step,
            bind(self.covariance, step),
            estimator=self.estimator,
            contraction=self.contraction,
            probe=self.probe,
            probes=self.probes,
        )
        move = self.every * self.eta_t(step) * grad
        most = self.cap * step.transition[1] * math.sqrt(move[0].numel())
        size = dot(move, move).sqrt().clamp_min(torch.finfo(move.dtype).tiny)
        return step.moved(move * per_sample((most / size).clamp_max(1.0), move))
