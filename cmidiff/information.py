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

Of a non-linear physics ``A`` is the derivative at ``x_hat``, held constant where ``I`` is differentiated: the paper's
third open question, answered by its simplest choice.

Source: Hamidi, Yang, "Conditional Mutual Information Based Diffusion Posterior Sampling for Solving Inverse Problems",
2025, https://arxiv.org/abs/2501.02880;
trace estimation: Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1990.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from cmidiff.covariance import Covariance, CovarianceName, bind, difference_size, precision
from cmidiff.draws import SeededDraws
from cmidiff.krylov import capped, dot, lanczos, per_sample
from cmidiff.measurement import Measurement
from cmidiff.physics import known_entries
from cmidiff.prior.base import Denoiser
from cmidiff.step import Kernel, Step, evaluate

Estimator = Literal["measurement-symmetric", "measurement", "shared-probe", "two-term"]
Contraction = Literal["finite-difference", "double-backward", "reverse-over-forward", "second-difference"]
Probe = Literal["rademacher", "gaussian", "coordinate"]
Weight = Literal["snr", "reverse-sde", "constant"]
Unit = Literal["nats", "bits"]


def contract(step: Step, a: Tensor, b: Tensor, how: Contraction, size: float | None = None) -> Tensor:
    """``C(a, b)_k = sum_ij b_i (d J_ij / d x_k) a_j`` at ``x_t``, shape (B, ...).

    Args:
        a, b: directions, shape of ``x_t``.
        how: ``double-backward`` (exact; the network's backward must be differentiable), ``reverse-over-forward``
            (exact; needs forward-mode formulas, fails with
            activation checkpointing), ``finite-difference`` of vector-Jacobian products (any network),
            ``second-difference`` of the denoiser (no backward; only for ``a = b``, and only as good as the symmetry of
            the network's third derivative).
        size: finite-difference step relative to ``sigma_t`` and the rms of ``a``; by default
            `difference_size`.
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
    rms = (dot(a, a) / a[0].numel()).sqrt().clamp_min(torch.finfo(a.dtype).tiny)
    if size is None:
        size = difference_size(precision(step), 1 if how == "finite-difference" else 2)
    h = per_sample(step.level_t[1] * size / rms, a)
    if how == "second-difference":
        with torch.no_grad():
            plus, minus = step.denoise(torch.cat([x_t + h * a, x_t - h * a])).chunk(2)
        return (plus - 2 * step.x_hat.detach() + minus) / h**2

    def back(x: Tensor) -> Tensor:
        """``J(x)^T b``; one graph at a time, no larger than the sampler's own."""
        with torch.enable_grad():
            x.requires_grad_()
            return torch.autograd.grad(step.denoise(x), x, b)[0]

    return (back(x_t + h * a) - back(x_t - h * a)) / (2 * h)


def default_contraction(estimator: Estimator) -> Contraction:
    """``second-difference`` where it applies, ``finite-difference`` elsewhere.

    The cheapest, and on a network trained on a mixture whose information gradient is known as near to it as an exact
    contraction of the network's Jacobian: what sets them apart is the network's error (``docs/validation.md``).
    """
    return "second-difference" if estimator == "measurement-symmetric" else "finite-difference"


def gradient_at(
    step: Step,
    covariance: Covariance,
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
            replacement, so that as many probes as measured numbers (as unknowns for the estimators with probes in
            R^d) give the trace exactly.
        probes: how many, averaged.
    """
    how = default_contraction(estimator) if contraction is None else contraction
    total = torch.zeros_like(step.x_t)
    in_signal = estimator in ("shared-probe", "two-term")
    like = step.x_t.detach() if in_signal else step.measurement.y
    pairs = _probes(step, like, probe, probes, None if in_signal else _known(step.measurement))
    for z, w in pairs:
        for a, b, sign in _directions(step, covariance, estimator, z, w):
            total = total + sign * contract(step, a, b, how)
    return (0.5 * step.covariance_gain / probes * total).detach()


def _known(measurement: Measurement) -> Tensor | None:
    """Which entries of ``y`` were measured, shape of one row of it or of ``y``; None if all were."""
    physics = measurement.physics
    return known_entries(physics, measurement.y) if isinstance(physics, LinearPhysics) else None


def _probes(
    step: Step, like: Tensor, probe: Probe, count: int, known: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Two independent probes ``z, w`` with ``E[z z^T] = I`` for each of ``count`` turns (for coordinates the same one,
    both traces being exact together), shape of ``like``."""

    def normal(stream: str, k: int) -> Tensor:
        return step.draws.normal(stream, step.index * count + k, like)

    if probe == "coordinate":
        order, m = _order(normal("cmi", 0), known)
        for k in range(min(count, int(m.max()))):
            length = torch.where(k < m, (m * count / m.clamp_max(count)).sqrt(), 0.0)
            z = torch.zeros_like(like).flatten(1).scatter_(1, order[:, k : k + 1], length[:, None]).reshape(like.shape)
            yield z, z
        return
    for k in range(count):
        z, w = normal("cmi", k), normal("cmi-second", k)
        yield (z, w) if probe == "gaussian" else (_signs(z), _signs(w))


def _order(keys: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """A random order of the entries of each row (B, m), those that were not measured last, and their number (B,)."""
    flat = keys.flatten(1)
    if known is None:
        return flat.argsort(1), torch.full_like(flat[:, 0], flat.shape[1])
    seen = known.expand_as(keys).flatten(1) != 0
    return torch.where(seen, flat, torch.inf).argsort(1), seen.sum(1, dtype=flat.dtype)


def _signs(z: Tensor) -> Tensor:
    return torch.where(z < 0, -1.0, 1.0).to(z)


def _directions(
    step: Step, covariance: Covariance, estimator: Estimator, z: Tensor, w: Tensor
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


def value_at(step: Step, covariance: Covariance, *, probes: int = 8, iterations: int = 16) -> tuple[Tensor, Tensor]:
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
    for k in range(probes):
        z = _signs(step.draws.normal("information", step.index * probes + k, measurement.y))
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
    y, known = measurement.y.new_zeros(len(x_t), *measurement.y.shape[1:]), _known(measurement)
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
    covariance: CovarianceName = "exact",
    probes: int = 8,
    iterations: int = 16,
    seed: int = 0,
    unit: Unit = "nats",
) -> tuple[Tensor, Tensor]:
    """``I(x_0; y | x_t)`` at any size and its standard error, shapes (B,): see `value_at` and `exact`."""
    step = _standing(prior, physics, x_t, t, noise_std, seed)
    value, error = value_at(step, bind(covariance, step), probes=probes, iterations=iterations)
    return value / _nats(unit), error / _nats(unit)


def gradient(
    prior: Denoiser,
    physics: Physics | Measurement,
    x_t: Tensor,
    t: float,
    *,
    noise_std: float | None = None,
    covariance: CovarianceName = "exact",
    estimator: Estimator = "measurement-symmetric",
    contraction: Contraction | None = None,
    probe: Probe = "rademacher",
    probes: int = 1,
    seed: int = 0,
    unit: Unit = "nats",
) -> Tensor:
    """``grad I(x_0; y | x_t)`` at any size, shape of ``x_t``: see `gradient_at` and `exact`; options as in `CMI`."""
    _check_options(estimator, contraction, probe, probes, covariance)
    step = _standing(prior, physics, x_t, t, noise_std, seed)
    own = bind(covariance, step)
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
    no_kernel = cast(Kernel, None)
    return _linearised(evaluate(Step(x_t, t, t, 0, 1, x_t, None, prior, measurement, no_kernel, draws), graph=True))


def _linearised(step: Step) -> Step:
    """The step with its measurement linearised at ``x_hat``; itself if that is linear."""
    if step.measurement.linear:
        return step
    return replace(step, measurement=step.measurement.linearised(step.x_hat))


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


def _check_options(
    estimator: Estimator, contraction: Contraction | None, probe: Probe, probes: int, covariance: CovarianceName
) -> None:
    for name, value, allowed in (
        ("estimator", estimator, get_args(Estimator)),
        (
            "contraction",
            default_contraction("measurement") if contraction is None else contraction,
            get_args(Contraction),
        ),
        ("probe", probe, get_args(Probe)),
        ("covariance", covariance, get_args(CovarianceName)),
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


@dataclass(frozen=True)
class CMI:
    """The CMI correction: each step's mean is moved by ``eta_t grad I(x_0; y | x_t)``, before the guidance (Algorithm
    1, line 8).

    Args:
        eta: strength, dimensionless, of either sign. 0 is the base solver, bit for bit. The paper ascends ``I``
            (``eta > 0``), which keeps the posterior open for longer: the samples spread more, which brings their
            distribution nearer to the posterior and costs a single sample some PSNR (``docs/validation.md``). -1 is the
            derivative of the log-determinant that CA-DPS's likelihood leaves out (see `CADPS`).
        weight: what multiplies ``eta`` at time ``t``: ``reverse-sde`` (the weight of a log-density's gradient in the
            kernel: the target is tilted by ``exp(eta I)``), ``snr`` (the same times ``alpha_t^2 / (alpha_t^2 +
            sigma_t^2)``, which vanishes where a network's Jacobian is unreliable), ``constant`` (1, in units of
            ``x_t`` squared per nat), or a function of ``t``.
        window: the correction acts while ``sigma_t / alpha_t``, the noise level that all schedules share, is in this
            interval.
        times: and while ``t`` is in this interval, in the prior's own times; None for all.
        cap: the move is at most this multiple of the forward kernel's noise, ``sigma_t|s sqrt(d)``, per image, so that
            no error of a network carries a sample away.
        every: correct each ``every``-th step only, with a move and a cap as many times larger.
        probes, probe, estimator: see `gradient_at`.
        contraction: see `contract`; None for `default_contraction`.
        covariance: of ``p(x_0 | x_t)`` inside ``S``: ``isotropic``, ``diagonal`` or ``exact``.
        data_variance: of the prior's images, for ``isotropic``: see `cmidiff.covariance.isotropic_variance`.

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
    covariance: CovarianceName = "isotropic"
    data_variance: float = 1.0

    def __post_init__(self) -> None:
        _check_options(self.estimator, self.contraction, self.probe, self.probes, self.covariance)
        if not callable(self.weight) and self.weight not in get_args(Weight):
            raise ValueError(
                f"CMI: weight must be a function or one of {', '.join(get_args(Weight))}, received {self.weight!r}"
            )
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
        if not 0 < self.data_variance < math.inf:
            raise ValueError(f"CMI: data_variance must be a number > 0, received {self.data_variance}")

    @property
    def how(self) -> Contraction:
        """The contraction in use."""
        return default_contraction(self.estimator) if self.contraction is None else self.contraction

    @property
    def needs_graph(self) -> bool:
        """Whether ``x_hat`` must carry its graph."""
        return self.how == "double-backward" or self.covariance == "exact"

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

    def active(self, step: Step) -> bool:
        """Whether this step is corrected."""
        low, high = self.window
        early, late = (step.t, step.t) if self.times is None else self.times
        due = self.eta != 0.0 and step.index % self.every == 0 and not step.last
        return due and low <= step.ratio <= high and early <= step.t <= late

    def __call__(self, step: Step) -> Step:
        """The step with its mean moved."""
        if not self.active(step):
            return step
        linear = _linearised(step)
        grad = gradient_at(
            linear,
            bind(self.covariance, linear, data_variance=self.data_variance),
            estimator=self.estimator,
            contraction=self.contraction,
            probe=self.probe,
            probes=self.probes,
        )
        move = self.every * self.eta_t(step) * grad
        most = self.every * self.cap * step.transition[1] * math.sqrt(move[0].numel())
        return step.moved(capped(move, most))
