"""The CMI gradient's estimators against the exact gradient: spread, bias, and what a probe is worth.

A 12-dimensional mixture of four Gaussians, ``A`` a random 5 x 12 matrix, sigma_y = 0.3, float64. Every row of the batch
has probes of its own, so that one call gives as many independent estimates as there are rows. The mean of r rows is the
estimate with r probes. The state is that of 32 random ones with the largest gradient. Deep inside one component the
gradient vanishes, and a relative error has no meaning. With ``g`` the exact gradient and ``v`` the estimates,

    relative RMS error  sqrt(mean |v - g|^2) / |g|
    bias                |mean v - g| / |g|
    z                   largest |mean v_k - g_k| / (std v_k / sqrt n) over the 12 coordinates k
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import get_args

import torch
from deepinv.physics import GaussianNoise, LinearPhysics
from matplotlib.figure import Figure
from torch import Tensor

from cmidiff.covariance import Exact
from cmidiff.information import Contraction, Estimator, Probe, exact, gradient_at
from cmidiff.laboratory.chains import BlockDraws
from cmidiff.laboratory.findings import Cell, Findings, Table
from cmidiff.laboratory.plots import COLOURS, panels
from cmidiff.laboratory.settings import Settings, make_seed
from cmidiff.measurement import Measurement
from cmidiff.prior import GaussianMixture
from cmidiff.prior.base import Denoiser
from cmidiff.samplers import Ancestral
from cmidiff.step import Problem, Step

D, M, NOISE_STD = 12, 5, 0.3
TIMES = (200.0, 400.0, 700.0)
MOST = 256  # probes
STATES = 32


def make_problem(settings: Settings) -> tuple[GaussianMixture, Tensor]:
    """The mixture and ``A``, shape (M, D)."""
    g = settings.generator("gradient")
    f64 = torch.float64
    roots = torch.randn(4, D, D, generator=g, dtype=f64) / math.sqrt(2 * D)
    covariances = roots @ roots.mT + 0.02 * torch.eye(D, dtype=f64)
    weights = 0.5 + torch.rand(4, generator=g, dtype=f64)
    prior = GaussianMixture(weights, torch.randn(4, D, generator=g, dtype=f64), covariances)
    return prior, torch.randn(M, D, generator=g, dtype=f64)


def make_step(prior: Denoiser, matrix: Tensor, x_t: Tensor, t: float, seed: int, *, graph: bool = True) -> Step:
    """A step at ``x_t``, in its dtype, with probes of its own for each row."""
    own = matrix.to(x_t)
    physics = LinearPhysics(
        A=lambda x: x @ own.mT,
        A_adjoint=lambda y: y @ own,
        img_size=(own.shape[1],),
        noise_model=GaussianNoise(NOISE_STD),  # pyright: ignore[reportArgumentType]
    )
    measurement = Measurement(x_t.new_zeros(len(x_t), len(own)), physics, NOISE_STD, (own.shape[1],), (own.shape[1],))
    problem = Problem(prior, measurement, Ancestral(), BlockDraws(seed), tuple(range(len(x_t))))
    return Step.at(problem, x_t, t, t - 1, graph=graph, steps=2)


def list_cases() -> Iterator[tuple[Estimator, Contraction, Probe]]:
    """Every combination that is possible."""
    for estimator in get_args(Estimator):
        for contraction in get_args(Contraction):
            if contraction == "second-difference" and estimator != "measurement-symmetric":
                continue
            for probe in get_args(Probe):
                yield estimator, contraction, probe


def count_probes(estimator: Estimator, probe: Probe) -> int | None:
    """How many coordinate probes give the trace exactly; None for random ones."""
    if probe != "coordinate":
        return None
    return D if estimator in ("shared-probe", "two-term") else M


def measure(settings: Settings) -> Findings:
    """Errors for 1 to 256 probes, and the bias."""
    prior, matrix = make_problem(settings)
    rows = 1024 if settings.quick else 6144
    times = TIMES[1:2] if settings.quick else TIMES
    errors: list[list[Cell]] = []
    biases: list[list[Cell]] = []
    for t in times:
        alpha_t, sigma_t = prior.schedule(t)
        g = settings.generator("gradient", t)
        x_t = alpha_t * prior.sample(STATES, g) + sigma_t * torch.randn(STATES, D, generator=g, dtype=torch.float64)
        gradients = exact(prior, make_step(prior, matrix, x_t, t, 0).measurement, x_t, t)[1]
        chosen = int(gradients.norm(dim=1).argmax())
        truth = gradients[chosen]
        for case in list_cases():
            step = make_step(
                prior, matrix, x_t[chosen].repeat(rows, 1), t, make_seed(settings.seed, "probes", t, *case)
            )
            own = _estimates(step, *case)
            errors += [[t, *case, r, _error(v, truth)] for r, v in own.items()]
            biases.append([t, *case, *_bias(own[1], truth)])
    bias = Table(
        f"Bias of every estimator: mean of {rows} estimates with one probe, against exact",
        ("t", "estimator", "contraction", "probe", "bias / |g|", "standard error / |g|", "z"),
        biases,
        "z: the largest over 12 coordinates, in standard errors; below 4 nothing is biased beyond chance. "
        "Finite differences have an error of their own, which more probes would bring to light.",
        shown=False,
    )
    error = Table(
        "Relative RMS error against the number of probes",
        ("t", "estimator", "contraction", "probe", "probes", "relative RMS error"),
        errors,
        shown=False,
    )
    return Findings({"one-probe": _summarise(error, bias), "bias": bias, "error": error})


def _estimates(step: Step, estimator: Estimator, contraction: Contraction, probe: Probe) -> dict[int, Tensor]:
    """Estimates (n, D) for each number of probes."""
    covariance = Exact(2 * D).at(step)
    most = count_probes(estimator, probe)

    def estimate(probes: int) -> Tensor:
        return gradient_at(step, covariance, estimator=estimator, contraction=contraction, probe=probe, probes=probes)

    if most is not None:  # without replacement: r probes are not the mean of r rows
        return {r: estimate(r) for r in sorted({1, 2, 4, most})}
    single = estimate(1)
    return {2**k: single.reshape(-1, 2**k, D).mean(1) for k in range(MOST.bit_length())}


def _error(v: Tensor, truth: Tensor) -> float:
    return float((v - truth).square().sum(1).mean().sqrt() / truth.norm())


def _bias(v: Tensor, truth: Tensor) -> tuple[float, float, float]:
    gap, error = v.mean(0) - truth, v.std(0) / math.sqrt(len(v))
    return float(gap.norm() / truth.norm()), float(error.norm() / truth.norm()), float((gap.abs() / error).max())


def _summarise(error: Table, bias: Table) -> Table:
    """One row an estimator and probe: errors over t and contractions."""
    keys = ["estimator", "probe"]
    frame = error.frame
    single = frame[(frame["probes"] == 1) & (frame["contraction"] == "double-backward")]
    errors = single.pivot_table("relative RMS error", keys, "t", sort=False)
    worth = (errors / errors.loc["measurement-symmetric", "rademacher"]).pow(2).mean(axis=1)
    worst = bias.frame.groupby(keys)["z"].max()
    return Table(
        "Relative RMS error of one probe (exact contraction)",
        (*keys, *(f"error, t = {t:g}" for t in errors.columns), "probes worth one of the default", "largest z"),
        [[*key, *values, worth[key], worst[key]] for key, values in zip(errors.index, errors.to_numpy(), strict=True)],
        "The default is measurement-symmetric with random signs; the paper's are two-term with normal probes. "
        "Largest z: of the bias, over t, contractions and coordinates.",
    )


def draw(found: Findings) -> dict[str, Figure]:
    """Error against probes, one panel a t, and error of the contractions."""
    frame = found.tables["error"].frame
    times = frame[frame["contraction"] == "double-backward"].groupby("t", sort=False)
    figure, axes = panels([f"t = {t:g}" for t, _ in times])
    styles = {"rademacher": "-", "gaussian": "--", "coordinate": ":"}
    colours = dict(zip(frame["estimator"].unique(), COLOURS, strict=False))
    for axis, (_, rows) in zip(axes, times, strict=True):
        for (estimator, probe), line in rows.groupby(["estimator", "probe"], sort=False):
            style = {"color": colours[estimator], "marker": "." if probe == "coordinate" else ""}
            label = f"{estimator}, {probe}" if axis is axes[0] else None
            error = line["relative RMS error"].clip(lower=1e-4)
            axis.loglog(line["probes"], error, styles[probe], **style, label=label)
        axis.set_xlabel("probes r")
    axes[0].set_ylabel("relative RMS error (1e-4: exact)")
    figure.legend(loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    figure.set_figheight(5)
    return {"error": figure}
