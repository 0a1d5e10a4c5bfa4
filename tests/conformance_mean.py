"""Replays of the posterior-mean solvers of the reference files' second and third part, for `tests.conformance`.

DDNM, DiffPIR (the authors' and azula's), MMPS, TMPD and SITCOM. The files hold masks (``mask``), matrices of a channel
(``A``), of one axis (``A1d`` or ``B``) and blur kernels (``kernel``, circular). Their last state is that of the lowest
level, or of the clean image where the code goes there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from deepinv.physics import DecomposablePhysics, Inpainting
from torch import Tensor

from cmidiff.krylov import conjugate_gradient, gmres
from cmidiff.loop import sample
from cmidiff.measurement import Measurement
from cmidiff.prior import NetworkPrior, Prediction
from cmidiff.samplers import DDIM, Renoise
from cmidiff.schedule import DDPM
from cmidiff.solvers import DDNM, MMPS, SITCOM, TMPD, DiffPIR, Solver
from cmidiff.step import Carry, Problem, Sampler, Step
from tests.cases import problem_of
from tests.conformance import F64, Recorded, dense_physics, relative, tensor, whole_physics

Network = Callable[[Tensor, Tensor], Tensor]


class ClippedPrior(NetworkPrior):
    """A denoiser whose output is clipped, where the code clips nothing after it."""

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        found = super().__call__(x_t, t)
        return Prediction(found.mean.clamp(-1, 1), found.variance_fraction)


def prior_of(network: Network, *, clipped: bool = False) -> NetworkPrior:
    kind = ClippedPrior if clipped else NetworkPrior
    return kind(network, "eps", DDPM.linear(), learned_variance=True)


# operators


def circular_matrix(kernel: Tensor, size: int, factor: int = 1) -> Tensor:
    """Circular convolution with a kernel centred at ``n // 2``, then the upper left pixel of each block, (m, n)."""
    padded = torch.zeros(size, size, dtype=F64)
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel
    transfer = torch.fft.fft2(padded.roll([-(n // 2) for n in kernel.shape], (0, 1)))
    basis = torch.eye(size * size, dtype=F64).reshape(-1, size, size)
    columns = torch.fft.ifft2(torch.fft.fft2(basis) * transfer).real[:, ::factor, ::factor]
    return columns.reshape(size * size, -1).mT


def reflected_matrix(kernel: Tensor, size: int) -> Tensor:
    """Correlation with a kernel on an image continued by reflection, as the DPS codes blur, (n, n)."""
    pad = [len(kernel) // 2] * 4
    basis = torch.nn.functional.pad(torch.eye(size * size, dtype=F64).reshape(-1, 1, size, size), pad, "reflect")
    return torch.nn.functional.conv2d(basis, kernel[None, None]).reshape(size * size, -1).mT


def matrices(data: Any, size: int, measured: int) -> list[Tensor]:
    """The matrices (m, n) of a channel that a file may mean; ``measured`` is the side of ``y``."""
    for key in ("A", "H"):
        if key in data:
            return [tensor(data[key])]
    if "kernel" not in data:
        row = tensor(data[next(key for key in ("A1d", "B", "H1d") if key in data)])
        return [torch.kron(row, row)]
    kernel, factor = tensor(data["kernel"]), size // measured
    circular = [circular_matrix(k, size, factor) for k in (kernel, kernel.flip(0, 1))]
    inside = factor == 1 and len(kernel) // 2 < size
    return [*circular, *(reflected_matrix(k, size) for k in (kernel, kernel.flip(0, 1)) if inside)]


def physics_of(data: Any, shape: tuple[int, ...], y: Tensor, matrix: Tensor | None = None) -> DecomposablePhysics:
    """The operator of a file; of several that a kernel may mean, the one that explains ``y`` of the true image."""
    if "mask" in data:
        return Inpainting(img_size=shape, mask=tensor(data["mask"]))  # pyright: ignore[reportArgumentType]
    if matrix is None:
        truth = tensor(data["x_true"]).reshape(1, *shape)
        known = matrices(data, shape[-1], y.shape[-1])
        if known[0].shape[1] == math.prod(shape):
            return whole_physics(known[0], shape, tuple(y.shape[1:]))
        matrix = min(known, key=lambda a: float((truth.flatten(2) @ a.mT - y.flatten(2)).norm()))
    return dense_physics(matrix, shape[1:], tuple(y.shape[2:]))


# runs


def follow(problem: Problem, solver: Solver, times: list[float], theirs: Tensor, *, last: bool) -> float:
    """The largest relative error of the states after each step; ``last``: with the step to the clean image."""
    count = len(times) if last else len(times) - 1
    steps = itertools.islice(sample(problem, solver, times), count)
    return max(relative(trace.x_s, theirs[trace.index + 1].reshape(trace.x_s.shape)) for trace in steps)


# DDNM


@dataclass(frozen=True)
class ShippedDDNM(DDNM):
    """The code of super-resolution as it is: ``V (D_1 z + D_2 e)`` with pixels taken for coefficients."""

    basis: Tensor = field(default_factory=lambda: torch.zeros(0))

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        m, (alpha_s, sigma_s), (alpha_t, sigma_t) = step.measurement, step.level_s, step.level_t
        x_hat = step.x_hat.detach()
        if step.last:
            return x_hat, carry
        eps = (step.x_t.detach() - alpha_t * x_hat) / sigma_t
        w = float(torch.linalg.vector_norm(m.At(torch.ones_like(m.y))[0, 0])) / m.y[0, 0].numel() ** 0.5
        carried = alpha_s * m.noise_std / w
        own = sigma_s * math.sqrt(1 - self.eta**2)
        part, d_1, d_2 = (
            (1.0, math.sqrt(sigma_s**2 - carried**2), 0.0)
            if sigma_s > carried
            else (own / carried, sigma_s * self.eta, 0.0)
        )
        move = part * m.At(m.residual(x_hat)) / w**2
        noise = self.spread(step.z, d_1, sigma_s * self.eta) + self.spread(eps, d_2, own)
        return alpha_s * (x_hat + move) + noise, carry

    def spread(self, pixels: Tensor, first: float, rest: float) -> Tensor:
        """``V D v``: the first pixel of each block is scaled by ``first``, the others by ``rest``."""
        n, side = pixels.shape[-1], math.isqrt(len(self.basis))
        blocks = pixels.reshape(*pixels.shape[:2], n // side, side, n // side, side).transpose(3, 4)
        weights = torch.full((side * side,), rest, dtype=F64).index_fill(0, torch.tensor([0]), first)
        found = (weights * blocks.flatten(4)) @ self.basis.mT
        return found.reshape(blocks.shape).transpose(3, 4).reshape(pixels.shape)


@dataclass(frozen=True)
class SeparableDDNM(DDNM):
    """The blur of the code: a component whose singular value is below 0.03 is not corrected, and its noise is still
    shaped as if it were measured."""

    basis: Tensor = field(default_factory=lambda: torch.zeros(0))  # of one axis
    values: Tensor = field(default_factory=lambda: torch.zeros(0))

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        m, (alpha_s, sigma_s), (alpha_t, sigma_t) = step.measurement, step.level_s, step.level_t
        if m.noise_std == 0:
            return super().step(step, carry)
        x_hat = step.x_hat.detach()
        if step.last:
            return x_hat, carry
        eps = (step.x_t.detach() - alpha_t * x_hat) / sigma_t
        w = self.values[:, None] * self.values
        carried = torch.where(w > 0, alpha_s * m.noise_std / w, torch.inf)
        own, strong = sigma_s * math.sqrt(1 - self.eta**2), carried < sigma_s
        part = torch.where(w > 0, torch.where(strong, 1.0, own / carried), 1.0)
        d_1 = torch.where(strong, (sigma_s**2 - carried**2).clamp_min(0.0).sqrt(), sigma_s * self.eta)
        d_2 = torch.where(w > 0, 0.0, own)
        exact = replace(m, noise_std=0.0)
        move = self._into(exact.solve(exact.residual(x_hat), 1.0))
        found = alpha_s * (self._into(x_hat) + part * move) + d_1 * self._into(step.z) + d_2 * self._into(eps)
        return self.basis @ found @ self.basis.mT, carry

    def _into(self, x: Tensor) -> Tensor:
        return self.basis.mT @ x @ self.basis


def separable(data: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    """Of a blur: its matrix with small singular values set to 0, the right singular vectors of one axis, and all its
    singular values; None for other operators."""
    if "U_small" in data:
        u, v = tensor(data["U_small"]), tensor(data["V_small"])
        w = tensor(data["singulars_small_orig" if "singulars_small_orig" in data else "singulars_small"])
    elif "A1d" in data or "B" in data:
        u, w, vh = torch.linalg.svd(tensor(data["A1d" if "A1d" in data else "B"]))
        v = vh.mT
    else:
        return None
    row = (u * torch.where(w < 0.03, 0.0, w)) @ v.mT
    return torch.kron(row, row), v, w


def replay_ddnm(data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Network) -> float:
    """A move back draws from the last denoised image, not from the state: each stretch of falling times is a run."""
    theirs = tensor(data[f"{name}/x"])
    shape, y = tuple(theirs.shape[-3:]), tensor(data[f"{name}/y"])
    blur = separable(data)
    physics = physics_of(data, shape, y, None if blur is None else blur[0])
    given = Measurement(y, physics, float(run["sigma_y"]), shape, shape)
    prior, stride = prior_of(network), 1000 // int(run["T"])
    solver = DDNM(eta=float(run["eta"]))
    if blur is not None:
        solver = SeparableDDNM(eta=float(run["eta"]), basis=blur[1], values=blur[2])
    elif not run.get("fixed", True):
        solver = ShippedDDNM(eta=float(run["eta"]), basis=tensor(data["V_small"]))
    z = tensor(data["z"]).reshape(-1, *shape)
    x, called, drawn, error = theirs[:1].reshape(1, *shape), 0, 0, 0.0
    x_hat = x
    moves = [int(t) for t in data[f"{name}/times"]]
    for t, s in itertools.pairwise(moves):
        if s > t:
            alpha, sigma = prior.schedule(float(s * stride))
            x = alpha * x_hat + sigma * z[drawn : drawn + 1]
            drawn += 1
            continue
        error = max(error, relative(x, theirs[called].reshape(x.shape)))
        problem = problem_of(prior, given, sampler=solver.sampler, draws=Recorded(x, z[drawn:]))
        times = [float(t * stride)] + ([float(s * stride)] if s >= 0 else [])
        trace = next(iter(sample(problem, solver, times)))
        x, x_hat, called, drawn = trace.x_s, trace.x_hat, called + 1, drawn + 1
    return max(error, relative(x, theirs[called].reshape(x.shape)))


# DiffPIR, the authors'


@dataclass(frozen=True)
class TwoNoises(Renoise):
    """With ``eta``: a part of the noise of ``x_t`` is replaced by a draw, by the single-step ``beta_t``."""

    eta: float = 0.0
    z_eta: Tensor = field(default_factory=lambda: torch.zeros(0))

    def advance(self, step: Step, estimate: Any, carry: Carry) -> tuple[Tensor, Carry]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
        abar = step.prior.schedule
        beta = 1 - (alpha_t / abar(step.t - 1)[0]) ** 2
        x_hat = estimate(step)
        eps = (step.x_t.detach() - alpha_t * x_hat) / sigma_t
        h = self.eta * sigma_s / sigma_t * math.sqrt(beta)
        own = math.sqrt(sigma_s**2 - h**2) * eps + h * self.z_eta[step.index : step.index + 1]
        return alpha_s * x_hat + math.sqrt(1 - self.zeta) * own + math.sqrt(self.zeta) * sigma_s * step.z, carry


@dataclass(frozen=True)
class BackProjected(DiffPIR):
    """Iterative back-projection: ``x += gamma up(y - R x) / (1 + rho)``, ``up`` the nearest up-sampling."""

    gamma: float = 0.01
    inner: int = 1

    def fit(self, step: Step, x_hat: Tensor) -> Tensor:
        m = step.measurement
        rho, factor = self.strength * m.noise_std**2 / step.ratio**2, x_hat.shape[-1] // m.y.shape[-1]
        for _ in range(self.inner):
            up = m.residual(x_hat).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
            x_hat = x_hat + self.gamma * up / (1 + rho)
        return x_hat


class FirstOrder(DiffPIR):
    """One step of gradient descent, ``x - grad 1/2 |y - A x|^2 / rho``, with the code's mixed units."""

    def fit(self, step: Step, x_hat: Tensor) -> Tensor:
        m = step.measurement
        return x_hat + m.At(m.residual(x_hat)) / (self.strength * m.noise_std**2 / step.ratio**2)


def replay_diffpir(data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Network) -> float:
    """The second part. ``lambda`` of the code is 4 times ours: its sigma is of images in [0, 1]. The measurement of
    super-resolution and blur is of images in [0, 1]."""
    theirs = tensor(data[f"{name}/x"])
    shape, y = tuple(theirs.shape[-3:]), tensor(data[f"{name}/y"])
    options: dict[str, Any] = {"strength": float(run["lambda"]) / 4, "zeta": float(run["zeta"])}
    options["scale"] = float(run.get("guidance_scale", 1.0))
    matrix = None
    if "mask" not in data:
        cubic = run.get("sr_mode") == "cubic"
        keys = ("A", "A1d", "B", "H1d") if cubic else ("kernel",)
        matrix = matrices({key: data[key] for key in keys if key in data}, shape[-1], y.shape[-1])[0]
        y = 2 * y - matrix.sum(1).reshape(y.shape[-2:])
    given = Measurement(y, physics_of(data, shape, y, matrix), 2 * float(run["sigma"]), shape, shape)
    solver = DiffPIR(**options)
    if run.get("sr_mode") == "cubic":
        solver = BackProjected(**options, gamma=float(run["gamma"]), inner=int(run["inIter"]))
    elif not run.get("sub_1_analytic", True):
        solver = FirstOrder(**{**options, "strength": float(run["lambda"]) / 4})
    z_eta, z_zeta = (tensor(data[key]).reshape(-1, *shape) for key in ("z_eta", "z_zeta"))
    sampler = TwoNoises(options["zeta"], eta=float(run.get("eta", 0.0)), z_eta=z_eta)
    return _follow_authors(data["timesteps"], given, solver, sampler, z_zeta, theirs, network)


def replay_diffpir0(data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Network) -> float:
    """The third part: three draws a step, one before them; everything in [-1, 1] but sigma."""
    theirs = tensor(data[f"{name}/x"])
    shape, y = tuple(theirs.shape[-3:]), tensor(data["y"])
    given = Measurement(y, physics_of(data, shape, y), 2 * max(0.001, float(meta["sigma01"])), shape, shape)
    solver = DiffPIR(strength=float(run["lam"]) / 4, zeta=float(run["zeta"]))
    draws = tensor(data[f"{name}/draws"]).reshape(-1, *shape)
    sampler = TwoNoises(float(run["zeta"]), eta=float(run["eta"]), z_eta=draws[2::3])
    return _follow_authors(999 - data[f"{name}/seq"], given, solver, sampler, draws[3::3], theirs, network)


def _follow_authors(
    times: Any, given: Measurement, solver: Solver, sampler: Sampler, z: Tensor, theirs: Tensor, network: Network
) -> float:
    falling = sorted((float(t) for t in times), reverse=True)
    draws = Recorded(theirs[:1].reshape(1, *given.shape), z)
    problem = problem_of(prior_of(network, clipped=True), given, sampler=sampler, draws=draws)
    return follow(problem, solver, falling, theirs, last=False)


# azula's


@dataclass(frozen=True)
class Iterated(DiffPIR):
    """The fit by a fixed number of Krylov iterations, on flattened images."""

    method: str = "gmres"
    iterations: int = 1

    def fit(self, step: Step, x_hat: Tensor) -> Tensor:
        m, s2 = step.measurement, step.measurement.noise_std**2

        def system(d: Tensor) -> Tensor:
            return m.At(m.A(d)) / s2 + self.strength / step.ratio**2 * d

        right = m.At(m.residual(x_hat)) / s2
        if self.method == "gmres":
            return x_hat + gmres(system, right, iterations=self.iterations).x
        return x_hat + conjugate_gradient(system, right, iterations=self.iterations, tolerance=0.0).x


def replay_azula(data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Network) -> float:
    """DDIM with a squared ``eta``, down to a state of the lowest level; nothing is clipped."""
    theirs = tensor(data[f"{name}/x"])
    shape, y = tuple(theirs.shape[-3:]), tensor(data["y"])
    given = Measurement(y, physics_of(data, shape, y), float(meta["sigma"]), shape, shape)
    how = {"method": run.get("solver"), "iterations": run.get("iterations")}
    solver: Solver
    match meta["method"]:
        case "mmps":
            solver = MMPS(**how, guard=False)  # pyright: ignore[reportArgumentType]
        case "tmpd":
            solver = TMPD(guard=False)
        case _:
            solver = Iterated(strength=float(run["lmbda"]), **how)  # pyright: ignore[reportArgumentType]
    eta = 1.0 if run["sampler"] == "ddpm" else float(run["eta"])
    draws = Recorded(theirs[:1].reshape(1, *shape), tensor(data["z"]).reshape(-1, *shape))
    problem = problem_of(prior_of(network), given, sampler=DDIM(math.sqrt(eta)), draws=draws)
    return follow(problem, solver, [float(t) for t in data["timesteps"]], theirs, last=False)


# SITCOM


@dataclass(frozen=True)
class OfficialSITCOM(SITCOM):
    """The scripts: the noise-free one takes the norm, not its square; a bound that counts hidden pixels and adds 0.001
    to the noise; for noisy masks a last gradient step that replaces the known pixels."""

    noise: float = 0.0
    noisy: bool = True
    masked: bool = False
    paste: float = 0.5

    def gradient(self, step: Step, x_hat: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(step.measurement.residual(x_hat.detach()))
        squared = super().gradient(step, x_hat)
        return squared if self.noisy else squared / (2 * norm)

    def explained(self, step: Step, x_hat: Tensor) -> Tensor:
        residual = step.measurement.residual(x_hat).flatten(1)
        loss = residual.square().sum(1) if self.noisy else torch.linalg.vector_norm(residual, dim=1)
        return loss < (self.noise + 0.001) ** 2 * residual.shape[1]

    def estimate(self, step: Step) -> Tensor:
        x_hat, m = super().estimate(step), step.measurement
        if not (self.noisy and self.masked):
            return x_hat
        return (x_hat + 2 * self.paste * m.At(m.residual(x_hat))).clamp(-1, 1)


def replay_sitcom(data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Network) -> float:
    theirs, noisy = tensor(data[f"{name}/x"]), run["script"] == "noisy"
    shape, y = tuple(theirs.shape[-3:]), tensor(data["y" if noisy else "y_clean"])
    sigma = float(meta["sigma"])
    given = Measurement(y, physics_of(data, shape, y), sigma if noisy else 0.0, shape, shape)
    solver = OfficialSITCOM(
        float(run["lr"]),
        int(run["num_steps"]),
        through_clip=True,
        noise=sigma if noisy else 0.0,
        noisy=noisy,
        masked="mask" in data,
        paste=float(meta.get("scale", 0.5)),
    )
    count = int(run["n_step"])
    times = [float(k * (1000 // count)) for k in reversed(range(count))] + [0.0]  # the last level leads to itself
    z = tensor(data[f"{name}/draws"]).reshape(-1, *shape)[4::3]  # two for the first state, three a level
    draws = Recorded(theirs[:1].reshape(1, *shape), z)
    problem = problem_of(prior_of(network), given, sampler=Renoise(), draws=draws, clip=(-1.0, 1.0))
    return follow(problem, solver, times, theirs, last=False)


METHODS = {
    "ddnm": replay_ddnm,
    "diffpir": replay_diffpir,
    "diffpir0": replay_diffpir0,
    "azula": replay_azula,
    "sitcom": replay_sitcom,
}


def replayer(meta: dict[str, Any]) -> Any:
    """The replay of a file's solver, or None for a file of another."""
    azula = str(meta.get("code", "")).startswith("azula") and meta.get("method") in ("mmps", "tmpd", "diffpir")
    return METHODS.get("azula" if azula else str(meta.get("method")))
