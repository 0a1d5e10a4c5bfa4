"""The gradient of the conditional mutual information ``I(x_0; y | x_t)`` with respect to ``x_t``.

With ``Sigma = Cov(x_0 | x_t)``, a Gaussian ``p(x_0 | x_t)`` and ``S = sigma_y^2 I + A Sigma A^T`` (Theorem 2 of the
paper, in measurement space):

    d_k I      = 1/2 Tr(A^T S^-1 A d_k Sigma),    Sigma = g J,   g = sigma_t^2 / alpha_t

The trace is estimated with probes. For constant ``a`` and ``b`` let ``C(a, b) = grad_x <b, J(x_t) a>``; then, with
``E[z z^T] = I``,

    measurement-symmetric   g/2 E C(u, u),         u = A^T S^-1/2 z,    z in R^m
    measurement             g/2 E C(A^T z, A^T S^-1 z)
    shared-probe            g/2 E C(z, A^T S^-1 A z),                   z in R^d
    two-term                g/2 E [C(z, Sigma^-1 z) - C(w, Sigma^-1 w - A^T S^-1 A w)]     z, w in R^d: the paper's two
                            log-determinants

are all unbiased; the first has the smallest variance.

Source: Hamidi, Yang, "Conditional Mutual Information Based Diffusion Posterior Sampling for Solving Inverse Problems",
2025, https://arxiv.org/abs/2501.02880; trace estimation: Hutchinson, "A stochastic estimator of the trace of the
influence matrix", 1990.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from cmidiff.covariance import Bound
from cmidiff.information.contraction import Contraction, Estimator, contract, default_contraction
from cmidiff.measurement import Measurement
from cmidiff.physics import known_entries
from cmidiff.step import Step

Probe = Literal["rademacher", "gaussian", "coordinate"]


def gradient_at(
    step: Step,
    covariance: Bound,
    *,
    estimator: Estimator = "measurement-symmetric",
    contraction: Contraction | None = None,
    probe: Probe = "rademacher",
    probes: int = 1,
) -> Tensor:
    """``grad I(x_0; y | x_t)`` with respect to ``x_t``, in nats per unit of ``x_t``, shape (B, ...); unbiased for the
    given covariance inside ``S``.

    Args:
        step: the state, its denoised image and the measurement.
        covariance: of ``p(x_0 | x_t)``, inside ``S``.
        estimator: which of the four above.
        contraction: see `contract`; None for `default_contraction`.
        probe: random signs, normal numbers, or ``coordinate``: scaled unit vectors in random order, without
            replacement. As many of these as measured numbers give the trace exactly (as unknowns, for the estimators
            with probes in R^d).
        probes: how many, averaged.
    """
    how = contraction or default_contraction(estimator, step.prior)
    total = torch.zeros_like(step.x_t)
    in_signal = estimator in ("shared-probe", "two-term")
    like = step.x_t.detach() if in_signal else step.measurement.y
    known = None if in_signal else known_of(step.measurement)
    for z, w in probe_pairs(step, like, probe, probes, known, second=estimator == "two-term"):
        for a, b, sign in _directions(step, covariance, estimator, z, w):
            total = total + sign * contract(step, a, b, how)
    return (0.5 * step.covariance_gain / probes * total).detach()


def known_of(measurement: Measurement) -> Tensor | None:
    """Which entries of ``y`` were measured, shape of one row of it or of ``y``; None if all were."""
    physics = measurement.physics
    return known_entries(physics, measurement.y) if isinstance(physics, LinearPhysics) else None


def probe_pairs(
    step: Step,
    like: Tensor,
    probe: Probe,
    count: int,
    known: Tensor | None,
    *,
    second: bool = False,
    stream: str = "cmi",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Two independent probes ``z, w`` with ``E[z z^T] = I`` for each of ``count`` turns (for coordinates the same one,
    both traces being exact together), shape of ``like``. Without a ``second`` one ``w`` is ``z``."""

    def normal(name: str, k: int) -> Tensor:
        return step.draws.normal(name, step.index, like, inner=k)

    if probe == "coordinate":
        order, m = _order(normal(stream, 0), known)
        for k in range(min(count, int(m.max()))):
            length = torch.where(k < m, (m * count / m.clamp_max(count)).sqrt(), 0.0)
            z = torch.zeros_like(like).flatten(1).scatter_(1, order[:, k : k + 1], length[:, None]).reshape(like.shape)
            yield z, z
        return
    for k in range(count):
        z = normal(stream, k)
        w = normal(f"{stream}-second", k) if second else z
        yield (z, w) if probe == "gaussian" else (signs(z), signs(w))


def _order(keys: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """A random order of the entries of each row (B, m), those that were not measured last, and their number (B,)."""
    flat = keys.flatten(1)
    if known is None:
        return flat.argsort(1), torch.full_like(flat[:, 0], flat.shape[1])
    seen = known.expand_as(keys).flatten(1) != 0
    return torch.where(seen, flat, torch.inf).argsort(1), seen.sum(1, dtype=flat.dtype)


def signs(z: Tensor) -> Tensor:
    """Signs of normal numbers."""
    return torch.where(z < 0, -1.0, 1.0).to(z)


def check_options(estimator: Estimator, contraction: Contraction | None, probe: Probe, probes: int) -> None:
    """Check which options of the estimators go together."""
    for name, value, allowed in (
        ("estimator", estimator, get_args(Estimator)),
        ("contraction", contraction or "finite-difference", get_args(Contraction)),
        ("probe", probe, get_args(Probe)),
    ):
        if value not in allowed:
            raise ValueError(f"CMI: {name} must be one of {', '.join(allowed)}, received {value!r}")
    if probes < 1:
        raise ValueError(f"CMI: probes must be at least 1, received {probes}")
    if contraction == "second-difference" and estimator != "measurement-symmetric":
        raise ValueError(
            "CMI: second-difference needs the same direction on both sides of the Jacobian, "
            f"received estimator={estimator!r}: use measurement-symmetric, or contraction='finite-difference'"
        )


def _directions(
    step: Step, covariance: Bound, estimator: Estimator, z: Tensor, w: Tensor
) -> list[tuple[Tensor, Tensor, float]]:
    """Pairs ``(a, b)`` and signs whose contractions sum to twice the gradient over ``g``, in expectation over the
    probes ``z`` and ``w``."""
    measurement = step.measurement
    match estimator:
        case "measurement-symmetric":
            u = covariance.whiten(z)
            return [(u, u, 1.0)]
        case "measurement":
            return [(measurement.At(z), covariance.solve(z), 1.0)]
        case "shared-probe":
            return [(z, covariance.solve(measurement.A(z)), 1.0)]
        case "two-term":
            return [
                (z, covariance.inverse(z), 1.0),
                (w, covariance.inverse(w) - covariance.solve(measurement.A(w)), -1.0),
            ]
