"""The conditional mutual information ``I(x_0; y | x_t)`` itself, and its gradient outside of a run.

    I = 1/2 log det(S / sigma_y^2),    S = sigma_y^2 I + A Sigma A^T        in nats

Of a non-linear physics ``A`` is the derivative at ``x_hat``, held constant where ``I`` is differentiated. The paper
leaves this question open; this is the simplest choice.

Source: Hamidi, Yang 2025, https://arxiv.org/abs/2501.02880 (Theorem 1, in measurement space).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, get_args

import torch
from deepinv.physics import Physics
from torch import Tensor

from cmidiff.covariance import Bound, Covariance, Exact, make_covariance
from cmidiff.draws import SeededDraws
from cmidiff.information.contraction import Contraction, Estimator
from cmidiff.information.gradient import Probe, check_options, gradient_at, known_of, probe_pairs
from cmidiff.krylov import lanczos
from cmidiff.measurement import Measurement
from cmidiff.prior.base import Denoiser
from cmidiff.samplers import Ancestral
from cmidiff.step import Problem, Step

Unit = Literal["nats", "bits"]
DENSE = Exact(iterations=20)


def value_at(step: Step, covariance: Bound, *, probes: int = 8, iterations: int = 16) -> tuple[Tensor, Tensor]:
    """``I(x_0; y | x_t)`` in nats at any size, shape (B,), and its standard error, by stochastic Lanczos quadrature of
    ``log det(S / sigma_y^2)`` with random signs.

    Args:
        step: the state, its denoised image and the measurement.
        covariance: of ``p(x_0 | x_t)``, inside ``S``.
        probes: how many; the standard error is over them (NaN for one).
        iterations: nodes of the quadrature, each a product with ``S``; exact with as many as there are measured
            numbers.

    Source: Ubaru, Chen, Saad, "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature", 2017,
        https://doi.org/10.1137/16M1104974
    """
    measurement = step.measurement
    s2 = _noise_variance(measurement)

    def operator(v: Tensor) -> Tensor:
        return v + measurement.A(covariance.product(measurement.At(v))) / s2

    m = measurement.y[0].numel()
    draws = []
    for z, _ in probe_pairs(step, measurement.y, "rademacher", probes, None, stream="information"):
        _, values, vectors = lanczos(operator, z, min(iterations, m))
        draws.append(0.5 * m * (vectors[:, 0] ** 2 * values.clamp_min(1.0).log()).sum(-1))
    sample = torch.stack(draws)
    return sample.mean(0), sample.std(0) / math.sqrt(probes)


def exact(
    prior: Denoiser,
    physics: Physics | Measurement,
    x_t: Tensor,
    t: float,
    *,
    noise_std: float | None = None,
    unit: Unit = "nats",
) -> tuple[Tensor, Tensor]:
    """``I(x_0; y | x_t)`` and its gradient with dense matrices, for few measured numbers: no probe, no iteration.

    Args:
        prior: a denoiser that is twice differentiable.
        physics: the forward operator on signals in the prior's own units, or a `Measurement`.
        x_t: states, shape (B, ...); float64 advised.
        t: time.
        noise_std: sigma_y > 0, in the prior's own units; by default that of ``physics.noise_model``.
        unit: of the value and its gradient, ``nats`` or ``bits``.

    Returns:
        value, shape (B,), and gradient per unit of ``x_t``, shape of ``x_t``.
    """
    step = _standing(prior, physics, x_t, t, noise_std, seed=0)
    measurement, s2 = step.measurement, _noise_variance(step.measurement)
    y, known = measurement.y.new_zeros(len(x_t), *measurement.y.shape[1:]), known_of(measurement)
    entries = range(y[0].numel()) if known is None else known.expand_as(y).flatten(1).any(0).nonzero().flatten()
    rows = []  # of A, for each state
    for i in map(int, entries):
        one = y.clone().flatten(1)
        one[:, i] = 1
        rows.append(measurement.At(one.reshape(y.shape)))
    with torch.enable_grad():
        pulled = [torch.autograd.grad(step.x_hat, step.x_t, row, create_graph=True)[0].flatten(1) for row in rows]
        s = torch.stack(pulled, 1) @ torch.stack(rows, 1).flatten(2).mT * (step.covariance_gain / s2)
        s = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device) + 0.5 * (s + s.mT)
        value = 0.5 * torch.linalg.slogdet(s)[1]
        grad = torch.autograd.grad(value.sum(), step.x_t, allow_unused=True)[0] if value.requires_grad else None
    nats = _nats(unit)
    return value.detach() / nats, torch.zeros_like(x_t) if grad is None else grad / nats


def estimate(
    prior: Denoiser,
    physics: Physics | Measurement,
    x_t: Tensor,
    t: float,
    *,
    noise_std: float | None = None,
    covariance: Covariance | str = DENSE,
    probes: int = 8,
    iterations: int = 16,
    seed: int = 0,
    unit: Unit = "nats",
) -> tuple[Tensor, Tensor]:
    """``I(x_0; y | x_t)`` at any size and its standard error, shapes (B,): see `value_at` and `exact`."""
    step = _standing(prior, physics, x_t, t, noise_std, seed)
    value, error = value_at(
        step, make_covariance(covariance, "information").at(step), probes=probes, iterations=iterations
    )
    return value / _nats(unit), error / _nats(unit)


def gradient(
    prior: Denoiser,
    physics: Physics | Measurement,
    x_t: Tensor,
    t: float,
    *,
    noise_std: float | None = None,
    covariance: Covariance | str = DENSE,
    estimator: Estimator = "measurement-symmetric",
    contraction: Contraction | None = None,
    probe: Probe = "rademacher",
    probes: int = 1,
    seed: int = 0,
    unit: Unit = "nats",
) -> Tensor:
    """``grad I(x_0; y | x_t)`` at any size, shape of ``x_t``: see `gradient_at` and `exact`; options as in `CMI`."""
    check_options(estimator, contraction, probe, probes)
    step = _standing(prior, physics, x_t, t, noise_std, seed)
    own = make_covariance(covariance, "information").at(step)
    grad = gradient_at(step, own, estimator=estimator, contraction=contraction, probe=probe, probes=probes)
    return grad / _nats(unit)


def _standing(
    prior: Denoiser, physics: Physics | Measurement, x_t: Tensor, t: float, noise_std: float | None, seed: int
) -> Step:
    """A step that is looked at and not taken."""
    shape = tuple(x_t.shape[1:])
    if isinstance(physics, Measurement):
        measurement = physics
    else:
        sigma = getattr(physics.noise_model, "sigma", None) if noise_std is None else noise_std
        if sigma is None:
            raise ValueError("noise_std is not known: the physics has no Gaussian noise model; pass noise_std=")
        stated = float(f"{float(sigma):.7g}") if noise_std is None else noise_std  # a noise model holds a float32
        measurement = Measurement(torch.zeros_like(physics.A(x_t)), physics, stated, shape, shape)
    draws = SeededDraws([(seed, k) for k in range(len(x_t))])
    problem = Problem(prior, measurement, Ancestral(), draws, tuple(range(len(x_t))))
    return linearised(Step.at(problem, x_t, t, t, graph=True))


def linearised(step: Step) -> Step:
    """The step with its measurement linearised at ``x_hat``; itself if that is linear."""
    if step.measurement.linear:
        return step
    problem = replace(step.problem, measurement=step.measurement.linearised(step.x_hat))
    return replace(step, problem=problem)


def _noise_variance(measurement: Measurement) -> float:
    if not measurement.noise_std > 0:
        raise ValueError(
            "I(x_0; y | x_t) is infinite without measurement noise: noise_std must be positive, received 0"
        )
    return measurement.noise_std**2


def _nats(unit: Unit) -> float:
    """Nats in one unit."""
    if unit not in get_args(Unit):
        raise ValueError(f"unit must be nats or bits, received {unit!r}")
    return math.log(2.0) if unit == "bits" else 1.0
