"""Replays trajectories of the official codes through this library's solvers: ``python -m tests.conformance [FILE...]``

Without a file, the one of ``tests/reference`` is replayed. The others are not part of the project.
A reference file holds recorded random draws and the states that an official implementation went through. Fed with the
same draws, our solvers must reproduce them; the largest relative error of each run is printed, and the exit status is 1
if one is beyond tolerance (float64: 1e-7; where a file holds float32 results only, 1e-3).

Our defaults are the rules of the papers. What the official codes do differently is set here, by options
(``through_clip``) or by the small replacements below, which exist for this comparison alone. An official step size is
that of one step; ours is stated for a run of 1000 steps (DPS, MCG) or 100 (DSG), and is converted.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from deepinv.physics import Blur, DecomposablePhysics, Inpainting, LinearPhysics
from torch import Tensor

from cmidiff.covariance import isotropic_variance
from cmidiff.loop import sample
from cmidiff.measurement import Measurement
from cmidiff.prior import NetworkPrior, Prediction, Prior
from cmidiff.samplers import DDIM, Ancestral, ProbabilityFlow
from cmidiff.schedule import DDPM, VE
from cmidiff.solvers import DPS, DSG, MCG, CADPSReleased, PiGDM, Solver
from cmidiff.step import Carry, Sampler, Step
from tests.cases import problem_of

Network = Callable[[Tensor, Tensor], Tensor]
Errors = dict[str, tuple[float, float]]
PARTS = (
    "tests.conformance_latent",
    "tests.conformance_mean",
    "tests.conformance_draws",
    "tests.conformance_particles",
)  # with `replayer`
TOLERANCE = 1e-7
TOLERANCE_FLOAT32 = 1e-3
F64 = torch.float64


@dataclass(frozen=True)
class Recorded:
    """The official code's own draws: the first state, in units of its noise, and one a step."""

    start: Tensor
    z: Tensor

    def normal(self, stream: str, index: int, like: Tensor, inner: int = 0) -> Tensor:
        if stream == "start":
            return self.start.to(like)
        if stream != "kernel":
            raise KeyError(f"the reference files hold no draws for {stream!r}")
        return self.z[index : index + 1].to(like)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array)).to(F64)


def dense_physics(matrix: Tensor, image: tuple[int, ...], out: tuple[int, ...]) -> DecomposablePhysics:
    """The same matrix (m, n) on each channel, with its singular value decomposition declared."""
    u, w, vt = torch.linalg.svd(matrix, full_matrices=False)

    def shaped(v: Tensor, shape: tuple[int, ...]) -> Tensor:
        return v.reshape(*v.shape[:2], *shape)

    return DecomposablePhysics(
        U=lambda v: shaped(v @ u.mT, out),
        U_adjoint=lambda v: v.flatten(2) @ u,
        V=lambda v: shaped(v @ vt, image),
        V_adjoint=lambda v: v.flatten(2) @ vt.mT,
        mask=w,
    )


def whole_physics(matrix: Tensor, image: tuple[int, ...], out: tuple[int, ...]) -> DecomposablePhysics:
    """A matrix (m, d) on the flattened image, channels included."""
    u, w, vt = torch.linalg.svd(matrix, full_matrices=False)
    return DecomposablePhysics(
        U=lambda v: (v @ u.mT).reshape(-1, *out),
        U_adjoint=lambda v: v.flatten(1) @ u,
        V=lambda v: (v @ vt).reshape(-1, *image),
        V_adjoint=lambda v: v.flatten(1) @ vt.mT,
        mask=w,
    )


class CircularDecimated(LinearPhysics):
    """k-diffusion's Fourier operator: circular convolution with a centred kernel, then each ``factor``-th pixel."""

    def __init__(self, kernel: Tensor, size: tuple[int, ...], factor: int) -> None:
        super().__init__()
        padded = torch.zeros(size, dtype=F64)
        padded[: kernel.shape[0], : kernel.shape[1]] = kernel
        shift = [-(n // 2) for n in kernel.shape]
        self.transfer, self.factor, self.size = torch.fft.fft2(padded.roll(shift, (0, 1))), factor, size

    def A(self, x: Tensor, **_: Any) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(x) * self.transfer).real[..., :: self.factor, :: self.factor]

    def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
        up = y.new_zeros(*y.shape[:2], *self.size)
        up[..., :: self.factor, :: self.factor] = y
        return torch.fft.ifft2(torch.fft.fft2(up) * self.transfer.conj()).real


def operator(data: Any, meta: dict[str, Any], shape: tuple[int, ...]) -> LinearPhysics:
    """The measurement operator of a file."""
    measured = next(data[key].shape for key in data if key == "y" or key.endswith("/y"))
    if "mask" in data:
        return Inpainting(img_size=cast(Any, shape), mask=tensor(data["mask"]))
    for key in ("A", "H"):
        if key in data and data[key].shape[1] == math.prod(shape):
            return whole_physics(tensor(data[key]), shape, measured[1:])
        if key in data:
            return dense_physics(tensor(data[key]), shape[1:], measured[2:])
    if "H1d" in data:
        row = tensor(data["H1d"])
        return dense_physics(torch.kron(row, row), shape[1:], (len(row), len(row)))
    kernel = tensor(data["kernel"])
    if meta["repo"] == "KDIP":
        return CircularDecimated(kernel, shape[1:], shape[-1] // data["y"].shape[-1])
    # the official code correlates, deepinv convolves
    return Blur(filter=kernel.flip(0, 1)[None, None], padding="reflect")


def measurement(data: Any, meta: dict[str, Any], shape: tuple[int, ...]) -> Measurement:
    physics = operator(data, meta, shape)
    y = tensor(data["y"])
    if meta["repo"] == "RED":  # the code's own layouts: kept pixels, or flattened
        y = physics.A(tensor(data["pinv_y"]))
    noise = float(meta.get("sigma", meta.get("sigma_s", meta.get("sigma_y", 0.0))))
    return Measurement(y, physics, noise, shape, shape)


def root(path: Path) -> Path:
    """The folder of the toy denoisers: that of a file, or the one above it."""
    return path.parent if (path.parent / "refmodels.py").is_file() else path.parent.parent


def networks_of(data: Any, path: Path) -> dict[str, Network]:
    """The toy denoisers of a file: its own, or those of the size of its images."""
    own = {
        kind: {key.removeprefix(f"{kind}/"): data[key] for key in data.files if key.startswith(f"{kind}/")}
        for kind in ("gmm", "conv")
    }
    if not (root(path) / "refmodels.py").is_file():
        return {"gmm": mixture(own["gmm"])}
    if "mu" in own["gmm"] or "w1" in own["conv"]:
        module = reference_models(root(path))
        return {"gmm": module.GMM(own["gmm"]), "conv": module.Conv(own["conv"])}
    return models(root(path), data["x_true"].shape[-1])


def mixture(parameters: dict[str, np.ndarray]) -> Network:
    """The exact eps of ``sum_k w_k N(mu_k, diag(var_k))``, and a head of learned variances, ``tanh(0.7 x)``."""
    w, mu, var = (tensor(parameters[name]) for name in ("w", "mu", "var"))

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        alpha_t, sigma_t = DDPM.linear()(float(t[0]))
        s = alpha_t**2 * var + sigma_t**2
        away = x_t[:, None] - alpha_t * mu
        responsibility = torch.softmax(w.log() - 0.5 * (away**2 / s + s.log()).flatten(2).sum(-1), 1)
        eps = sigma_t * torch.einsum("bk,bk...->b...", responsibility, away / s)
        return torch.cat([eps, torch.tanh(0.7 * x_t)], 1)

    return network


def models(folder: Path, size: int) -> dict[str, Network]:
    """The toy denoisers that the references were made with."""
    return reference_models(folder).load(folder / f"models_{size}.npz")[0]


def reference_models(folder: Path) -> Any:
    """The module that defines them."""
    spec = importlib.util.spec_from_file_location("refmodels", folder / "refmodels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What the official codes do differently, for the comparison alone


def mcg_at_level_t(step: Step, x: Tensor) -> Tensor:
    """MCG's inpainting code: known pixels are replaced at the level of ``t`` instead of ``s``."""
    recorded, m = cast(Any, step.draws), step.measurement
    alpha_t, sigma_t = step.level_t
    y_t = alpha_t * m.y + sigma_t * recorded.noise_y[step.index : step.index + 1]
    return x - m.At(m.A(x)) + m.At(y_t)


def mcg_upsampled(step: Step, x: Tensor) -> Tensor:
    """The DPS repository's projection: nearest up-sampling in place of the pseudoinverse, at the level of ``t``."""
    recorded, m = cast(Any, step.draws), step.measurement
    alpha_t, sigma_t = step.level_t
    y_t = alpha_t * m.y + sigma_t * recorded.noise_y[step.index : step.index + 1]
    factor = x.shape[-1] // m.y.shape[-1]
    return x + (y_t - m.A(x)).repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def mcg_base_class(step: Step, x: Tensor) -> Tensor:
    """The DPS repository's projection for masks and blurs, which discards the measurement: ``(y_t - A y_t) - A x``."""
    recorded, m = cast(Any, step.draws), step.measurement
    alpha_t, sigma_t = step.level_t
    y_t = alpha_t * m.y + sigma_t * recorded.noise_y[step.index : step.index + 1]
    return (y_t - m.A(y_t)) - m.A(x)


@dataclass(frozen=True)
class RecordedBoth(Recorded):
    """With the draws of the code's noisy measurement."""

    noise_y: Tensor


class OnePixelDSG(DSG):
    """DSG's code with the ancestral sampler: the radius from one pixel's learned deviation, and a pure gradient step at
    the end."""

    def radius(self, step: Step) -> Tensor:
        fraction = step.variance_fraction
        assert fraction is not None
        beta = step.transition[1]
        at = (
            step if not step.last else replace(step, t=self.second, s=step.t)
        )  # the code takes the second level's bound
        small = at.transition[1] * at.level_s[1] / at.level_t[1]
        std = (fraction * math.log(beta) + (1 - fraction) * math.log(small)).exp()
        return std[0, 0, 0, 0] * math.sqrt(step.x_t[0].numel())

    second: float


class ReplacedPiGDM(PiGDM):
    """RED-diff's ``in2`` operators: known pixels of ``x_hat`` are replaced by ``y``, and the guidance is kept off
    them."""

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        m = step.measurement
        (alpha_t, sigma_t), (alpha_s, _) = step.level_t, step.level_s
        known = m.At(m.A(torch.ones_like(step.x_t)))
        a, _ = step.coefficients
        eps = (step.x_t.detach() - alpha_t * step.x_hat.detach()) / sigma_t
        x_0 = step.x_hat.detach() * (1 - known) + m.At(m.y)
        x_s = alpha_s * x_0 + a * sigma_t * eps + step.std * step.z
        r2 = isotropic_variance(step, self.data_variance)
        return x_s + alpha_t * alpha_s * r2 * self.pull(step) * (1 - known), carry


class FlooredVE(Prior):
    """k-diffusion's wrapping of a DDPM network: ``x_0`` from the level below ``t(sigma)``, clipped."""

    value_range = (-1.0, 1.0)
    channels: int | None = 3

    def __init__(self, network: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.schedule = VE()
        ddpm = DDPM.linear()
        self.ddpm = NetworkPrior(network, "eps", ddpm, learned_variance=True)
        sigmas = np.sqrt((1 - ddpm.alphas_cumprod) / ddpm.alphas_cumprod)
        self.log_sigmas = np.log(sigmas)
        self.inputs: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        self.inputs.append(x_t.detach())
        level = float(math.floor(np.interp(math.log(t), self.log_sigmas, np.arange(1000.0))))
        x = x_t / math.sqrt(1 + t**2)
        alpha, sigma = self.ddpm.schedule(level)
        eps = self.ddpm.network(x, torch.full((len(x),), level, dtype=x.dtype)).chunk(2, dim=1)[0]
        return Prediction((x - sigma * eps) / alpha)


def solver(data: Any, meta: dict[str, Any], run: dict[str, Any], steps: int) -> tuple[Solver, Sampler]:
    """The solver and the sampler of a run."""
    repo, official = meta["repo"], float(meta.get("scale", 1.0)) if not isinstance(meta.get("scale"), dict) else 0.0
    scale = official * steps / 1000
    match repo:
        case "DPS" if meta["method"] == "mcg":
            project = mcg_upsampled if meta["task"].startswith("sr") else mcg_base_class
            return MCG(scale, project, through_clip=True, guard=False), Ancestral()
        case "DPS":
            return DPS(scale, through_clip=True, guard=False), Ancestral()
        case "CADPS":
            return CADPSReleased(scale, through_clip=True), Ancestral()
        case "MCG":
            return MCG(scale, mcg_at_level_t, through_clip=True, guard=False), Ancestral()
        case "RED":
            kind = ReplacedPiGDM if run["degname"].startswith("in2") else PiGDM
            weight = "additive" if run.get("awd", True) else "flow"
            return kind(weight=weight, data_variance=1.0, guard=False), DDIM(float(run["eta"]))
        case "KDIP":
            order = 1 if run.get("sampler") == "euler" else 2
            weight = "adaptive" if run["guidance"] == "pgdm" else "likelihood"
            flow = ProbabilityFlow(order, float(run.get("churn", 0.0)), churn_noise=1.003)
            return PiGDM(weight=weight, data_variance=1.0, through_clip=True, guard=False), flow
    rate, interval = float(run["cond"]["guidance_scale"]) * math.sqrt(steps / 100), int(run["cond"]["interval"])
    if run["sampler"]["sampler"] == "ddim":
        return DSG(rate, interval, through_clip=True, guard=False), DDIM(1.0)
    dsg = OnePixelDSG(rate, interval, through_clip=True, guard=False)
    object.__setattr__(dsg, "second", float(sorted(data["timesteps"])[1]))
    return dsg, Ancestral()


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def origin(meta: dict[str, Any]) -> str:
    """The code that a file comes from."""
    return str(meta["repo"] if "repo" in meta else meta["code"].split()[0])


def replayer_of(meta: dict[str, Any]) -> Callable[..., float] | None:
    """What replays a run of a file of the second or third part; None if it is of neither."""
    parts = map(importlib.import_module, PARTS)
    return next((found for part in parts if (found := part.replayer(meta)) is not None), None)


def known(path: Path) -> bool:
    """Whether a file of the second or the third part is replayed."""
    with np.load(path) as data:
        return "meta" in data and replayer_of(json.loads(str(data["meta"]))) is not None


def replay(path: Path) -> Errors:
    """``run -> (largest relative error, tolerance)`` for each run of a file."""
    data = np.load(path)
    meta = json.loads(str(data["meta"]))
    own = replayer_of(meta)
    if own is not None:
        networks, runs = networks_of(data, path), meta["runs"].items()
        return {name: (own(data, meta, run, name, networks[run["model"]]), TOLERANCE) for name, run in runs}
    if meta.get("n_steps") == 1000:
        return full(data, meta, path.parent)
    networks = networks_of(data, path)
    runs = meta.get("runs") or {name: {"model": name} for name in ("gmm", "conv")}
    errors = {}
    for name, run in runs.items():
        network = networks[run["mname"] if "mname" in run else run["model"]]
        replayer = replay_kdip if meta["repo"] == "KDIP" else replay_grid
        errors[name] = replayer(data, meta, run, name, network)
    return errors


def replay_grid(
    data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Callable[[Tensor, Tensor], Tensor]
) -> tuple[float, float]:
    used, sampler = solver(data, meta, run, len(data["timesteps"]))
    own = {key: data[f"{name}/{key}"] if f"{name}/{key}" in data else data[key] for key in ("z", "y")}
    theirs = tensor(data[f"{name}/x"])
    shape = tuple(theirs.shape[1:])
    prior = NetworkPrior(network, "eps", DDPM.linear(), learned_variance=True)
    z = tensor(own["z"]).reshape(-1, *shape)
    start = theirs[:1]
    draws = RecordedBoth(start, z, tensor(data["noise_meas"])) if "noise_meas" in data else Recorded(start, z)
    times = sorted((float(t) for t in data["timesteps"]), reverse=True)
    clip = None if meta["repo"] == "RED" else (-1.0, 1.0)
    problem = problem_of(prior, measurement(data, meta, shape), sampler=sampler, draws=draws, clip=clip)
    steps = sample(problem, used, times)
    return max(relative(trace.x_s[0], theirs[trace.index + 1]) for trace in steps), TOLERANCE


def replay_kdip(
    data: Any, meta: dict[str, Any], run: dict[str, Any], name: str, network: Callable[[Tensor, Tensor], Tensor]
) -> tuple[float, float]:
    times = [float(sigma) for sigma in data["sigmas"] if sigma > 0]
    used, sampler = solver(data, meta, run, len(times))
    shape = tuple(data["x_true"].shape[1:])
    prior = FlooredVE(network)
    given = measurement(data, meta, shape)
    draws = Recorded(tensor(data["noise_xT"]), tensor(data["z"]))
    problem = problem_of(prior, given, sampler=sampler, draws=draws, clip=(-1.0, 1.0))
    *_, last = sample(problem, used, times)
    return relative(last.x_s, tensor(data[f"{name}/x_final"])), TOLERANCE


def full(data: Any, meta: dict[str, Any], folder: Path) -> dict[str, tuple[float, float]]:
    """The 1000-step file: draws come from a seeded generator, states are kept every 50 steps."""
    errors = {}
    for task in sorted({key.split("/")[0] for key in data.files if "/" in key}):
        y, x_T = tensor(data[f"{task}/y"]), tensor(data[f"{task}/noise_xT"])
        rng = np.random.Generator(np.random.PCG64(int(data[f"{task}/seed"])))
        for like in (y, x_T):
            rng.standard_normal(like.shape, np.float32)
        z = []
        for _ in range(1000):
            z.append(rng.standard_normal(x_T.shape, np.float32)[0])
            rng.standard_normal(y.shape, np.float32)
        part = {key.removeprefix(f"{task}/"): data[key] for key in data.files if key.startswith(f"{task}/")}
        if "mask" not in part and "A" not in part:
            part |= operator_beside(folder, task)
        shape = tuple(x_T.shape[1:])
        given = measurement(part, {**meta, "task": task}, shape)
        prior = NetworkPrior(models(folder, shape[-1])[meta["model"]], "eps", DDPM.linear(), learned_variance=True)
        used = DPS(float(meta["scale"][task]), through_clip=True, guard=False)
        theirs = tensor(data[f"{task}/x_every50"])
        draws = Recorded(x_T, tensor(np.stack(z)))
        problem = problem_of(prior, given, draws=draws, clip=(-1.0, 1.0))
        steps = sample(problem, used, prior.schedule.grid(1000))
        kept = {trace.index + 1: trace.x_s[0] for trace in steps if (trace.index + 1) % 50 == 0}
        errors[task] = (max(relative(x, theirs[i // 50].reshape(shape)) for i, x in kept.items()), TOLERANCE)
    return errors


def operator_beside(folder: Path, task: str) -> dict[str, np.ndarray]:
    """The operator of a task from the short file of the same task."""
    beside = np.load(folder / f"dps_{task}.npz")
    return {key: beside[key] for key in ("A", "kernel", "mask") if key in beside}


def main(paths: list[str]) -> int:
    failed = False
    for path in map(Path, paths):
        if not path.is_file():
            print(f"{path}: no such file; without arguments the one in tests/reference is replayed")
            return 2
        with np.load(path) as data:
            if "meta" not in data:
                print(f"{path.name}: holds no trajectory, passed over")
                continue
        for run, (error, tolerance) in replay(path).items():
            bad = not error <= tolerance
            failed |= bad
            print(f"{path.name:24} {run:12} {error:.2e}  {'FAIL' if bad else 'ok'} (tolerance {tolerance:.0e})")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [str(Path(__file__).parent / "reference" / "dps_box.npz")]))
