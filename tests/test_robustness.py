"""A small grid of `benchmarks/robustness.py` on images whose posterior is known: every solver, low and high noise.

The prior is Gaussian with a power law of the frequency, as photographs have; its denoiser and Jacobian are exact. A
sample of the exact posterior has twice the least mean squared error.
"""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidiff import restore
from cmidiff.dct import idct
from cmidiff.physics import TASKS, from_callable, measure
from cmidiff.prior import GaussianMixture, NetworkPrior
from cmidiff.result import RestorationWarning
from cmidiff.solvers import DPIR, DPS, PiGDM, Solver
from tests.cases import dense_matrix, gaussian_posterior, randn

SHAPE, COUNT, STEPS = (1, 12, 12), 6, 10
D, F64 = math.prod(SHAPE), torch.float64
NOISES = (0.01, 0.1, 0.4)  # of images in [-1, 1]
GRID: dict[str, dict[str, Any]] = {
    "denoise": {},
    "inpaint-random": {"hidden": 0.5},
    "deblur-gaussian": {"kernel_size": 5, "std": 1.0},
    "super-resolution": {"factor": 2},
}
SOLVERS = ("cadps", "cadps-exact", "cadps-diagonal", "cadps-isotropic", "pigdm", "mcg", "dsg", "dps")


@cache
def photographs() -> tuple[GaussianMixture, Tensor]:
    """The prior, with the variance of images in [-1, 1], and images of it."""
    rows, columns = (torch.arange(n, dtype=F64) for n in SHAPE[1:])
    variances = ((rows[:, None] ** 2 + columns**2).sqrt() + 0.5) ** -2.0
    variances = 0.3 * variances / variances.mean()
    axes = idct(torch.eye(D, dtype=F64).reshape(D, *SHAPE)).reshape(D, D)
    covariance = axes.mT @ (variances.flatten()[:, None] * axes)
    prior = GaussianMixture(torch.ones(1, dtype=F64), torch.zeros(1, *SHAPE, dtype=F64), covariance[None])
    return prior, idct(variances.sqrt() * randn(COUNT, *SHAPE, seed=1))


@cache
def cell(task: str, noise: float, solver: Solver | str) -> tuple[float, float, bool]:
    """Mean squared error over that of exact samples in dB, largest misfit, whether every status says what happened."""
    prior, x = photographs()
    physics = TASKS[task](SHAPE, noise_std=noise, dtype=F64, **GRID[task])
    y = measure(x, physics, seed=0)
    matrix = dense_matrix(physics, SHAPE)
    mean, covariance = torch.zeros(D, dtype=F64), prior.covariance_matrices()[0]
    covariance = gaussian_posterior(mean, covariance, matrix, y[0].flatten(), noise)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RestorationWarning)
        found = restore(y, physics, prior, solver=solver, steps=STEPS, value_range=None)
    error = float((found.samples[:, 0] - x).square().mean() / (2 * covariance.trace() / D))
    status = [row[0] for row in found.status]
    said = all(s.explains == (s.misfit <= 1.5) and (s.message == "finished") == s.explains for s in status)
    return 10 * math.log10(error), max(s.misfit for s in status), said


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("task", GRID)
def test_every_solver_is_near_the_exact_posterior_or_says_that_it_is_not(task: str, noise: float) -> None:
    for solver in SOLVERS:
        error, misfit, said = cell(task, noise, solver)
        assert said, f"{solver}: a misfit of {misfit:.2f} must be in the status"
        assert error < 1.0 or misfit > 1.5, f"{solver}: {error:+.2f} dB over the error of exact samples"
        assert noise < 0.02 or 0.8 < misfit < 1.2, f"{solver}: misfit {misfit:.2f}"  # the cleanest level is 0.02


def test_the_grid_of_the_prior_in_few_steps_is_what_even_levels_mend() -> None:
    for solver in (PiGDM(grid="schedule", guard=False), DPS(grid="schedule", guard=False)):
        assert cell("denoise", 0.1, solver)[0] > 3.0


@pytest.mark.parametrize("task", ["deblur-gaussian", "super-resolution"])
def test_without_noise_every_solver_meets_the_measurement(task: str) -> None:
    prior, x = photographs()
    physics = TASKS[task](SHAPE, noise_std=0.0, dtype=F64, **GRID[task])
    y = measure(x, physics, seed=0)
    for solver in SOLVERS:
        found = restore(y, physics, prior, solver=solver, steps=5, value_range=None).samples[:, 0]
        torch.testing.assert_close(physics.A(found), y, rtol=0, atol=1e-5, msg=lambda text, s=solver: f"{s}: {text}")


def test_rounded_measurements_without_noise_are_a_warning() -> None:
    prior, x = photographs()
    physics = TASKS["deblur-gaussian"](SHAPE, noise_std=0.0, dtype=F64, **GRID["deblur-gaussian"])
    y = measure(x.clamp(-1, 1), physics, seed=0)
    y = (127.5 * (y + 1)).round() / 127.5 - 1
    options: dict[str, Any] = {"solver": "pigdm", "steps": 2, "value_range": (-1.0, 1.0)}
    for less in (0.0, 1e-4):
        with pytest.warns(RestorationWarning, match="noise_std=0.0023, the noise of rounding"):
            found = restore(y, physics, prior, noise_std=less, **options).samples
        stated = restore(y, physics, prior, noise_std=2 / 255 / math.sqrt(12), **options).samples
        torch.testing.assert_close(found, stated)
    mixed = torch.cat([y[:1], y[1:] + 0.1 / 255])
    with pytest.raises(ValueError, match="in some images of y, but not in all"):
        restore(mixed, physics, prior, **options)
    exact = TASKS["denoise"](SHAPE, noise_std=0.0, dtype=F64)
    own = from_callable(lambda x: 2.0 * x.flip(1), SHAPE, noise_std=0.0, dtype=F64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RestorationWarning)
        assert torch.equal(restore(y, exact, prior, **options).samples[:, 0], y)
        found = restore(y, own, prior, **options).samples[:, 0]
    torch.testing.assert_close(own.A(found), y, rtol=0, atol=1e-5)


def test_noise_that_no_image_explains_is_said() -> None:
    """Amplified noise fits a measurement whose noise is understated: the misfit alone does not show it."""
    schedule = NetworkPrior(lambda x, t: x).schedule

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule(float(t[0]))
        return 0.04 * alpha / (0.04 * alpha**2 + sigma**2) * x_t

    network = NetworkPrior(denoise, "x0", value_range=(-1.0, 1.0))
    x = 0.5 + 0.1 * randn(1, 1, 16, 16, seed=2)
    physics = TASKS["deblur-gaussian"]((1, 16, 16), noise_std=0.0, dtype=F64, kernel_size=5, std=1.0)
    for noise_std in (0.0, 1e-4):
        for solver in (PiGDM(), DPIR()):
            clean = restore(physics.A(x), physics, network, solver=solver, noise_std=noise_std, steps=4)
            assert clean.estimate_status[0].explains, clean.estimate_status
            with pytest.warns(RestorationWarning, match="leaves the range of images|does not explain"):
                found = restore(
                    measure(x, physics) + 0.02 * randn(*x.shape, seed=3),
                    physics,
                    network,
                    solver=solver,
                    noise_std=noise_std,
                    steps=4,
                )
            assert not found.estimate_status[0].explains


def test_the_estimate_meets_a_measurement_without_noise() -> None:
    prior, x = photographs()
    for task in ("deblur-gaussian", "super-resolution", "inpaint-random"):
        physics = TASKS[task](SHAPE, noise_std=0.0, dtype=F64, **GRID[task])
        y = measure(x, physics, seed=0)
        found = restore(y, physics, prior, value_range=None).estimate
        torch.testing.assert_close(physics.A(found), y, rtol=0, atol=1e-5)
