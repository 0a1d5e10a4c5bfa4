"""Promise 7: a run makes no float64 and no tensor of the CPU on the device, whatever its parts; see `tests.device`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from deepinv.physics import Physics
from torch import Tensor, nn

from cmidiff import physics as named
from cmidiff.draws import SeededDraws
from cmidiff.information import CMI, Contraction, Estimator
from cmidiff.krylov import conjugate_gradient
from cmidiff.loop import sample
from cmidiff.measurement import Measurement
from cmidiff.moments import SecondMoments as Moments
from cmidiff.prior import NetworkPrior
from cmidiff.registry import COVARIANCES, SAMPLERS, SOLVERS
from cmidiff.solvers import CADPS, DPS, PiGDM, Solver, Unconditional
from cmidiff.step import Problem, Sampler
from tests.device import NAME, Device, OnDevice, moved

SHAPE, ROWS, NOISE, STEPS = (3, 4, 4), 2, 0.1, 3
PHYSICS = {"inpaint-random": {"hidden": 0.5}, "deblur-gaussian": {"kernel_size": 3, "std": 0.8}, "own": {}}
NONLINEAR = {"hdr": {}, "phase-retrieval": {}, "nonlinear-blur": {"kernel_size": 3}}


class Tiny(nn.Module):
    """A smooth denoiser with a learned-variance head."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 6, 3, padding=1))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.layers(x_t) * (0.3 + 0.001 * t.reshape(-1, 1, 1, 1))


@functools.cache
def prior_of(on_device: bool) -> NetworkPrior:
    network = moved(Tiny()) if on_device else Tiny()
    moments = Moments(torch.zeros(3).double(), torch.linspace(1.0, 0.1, 48).double().reshape(SHAPE))
    return NetworkPrior(network.requires_grad_(False), "v", learned_variance=True, second_moments=moments)


def physics_of(name: str) -> Physics:
    options: dict[str, Any] = {"noise_std": NOISE} | (PHYSICS | NONLINEAR)[name]
    if name == "own":
        return named.from_callable(lambda x: x[..., 1:] - x[..., :-1], SHAPE, **options)
    return named.TASKS[name](SHAPE, **options)


@functools.cache
def measured(name: str) -> Tensor:
    x = SeededDraws([(5, k) for k in range(ROWS)]).normal("x", 0, torch.zeros(ROWS, *SHAPE))
    return physics_of(name).A(0.3 * x)


def traces(solver: Solver, sampler: Sampler, cmi: CMI | None, name: str, *, strict: bool = False) -> tuple[Tensor, int]:
    """The result of a run on the device, and how often it waited."""
    y, physics = OnDevice(measured(name)), moved(physics_of(name))
    prior = prior_of(True)
    draws = [SeededDraws([(seed, k) for k in range(ROWS)]) for seed in (0, 1)]
    problem = Problem(prior, Measurement(y, physics, NOISE, SHAPE, SHAPE), sampler, draws[0], (0,) * ROWS, (-1.0, 1.0))  # pyright: ignore[reportArgumentType]
    problem = replace(problem, common=draws[1])
    with torch.no_grad(), Device(strict=strict) as device:
        *_, last = sample(problem, solver, times_of(problem, solver), cmi)
    assert isinstance(last.x_s, OnDevice)
    return last.x_s.inner, device.waits


def times_of(problem: Problem, solver: Solver) -> Sequence[float]:
    return solver.times(problem, STEPS)


def on_cpu(solver: Solver, sampler: Sampler, cmi: CMI | None, name: str) -> Tensor:
    draws = [SeededDraws([(seed, k) for k in range(ROWS)]) for seed in (0, 1)]
    measurement = Measurement(measured(name), physics_of(name), NOISE, SHAPE, SHAPE)
    problem = Problem(prior_of(False), measurement, sampler, draws[0], (0,) * ROWS, (-1.0, 1.0), common=draws[1])
    with torch.no_grad():
        *_, last = sample(problem, solver, times_of(problem, solver), cmi)
    return last.x_s


def check(solver: Solver, sampler: Sampler, cmi: CMI | None, name: str) -> None:
    """The first run on the device may make tables, such as the matrices of the DCT; the second one makes nothing. Both
    have the results of the CPU. Particles have their weights on the CPU, between two steps."""
    expected = on_cpu(solver, sampler, cmi, name)
    for strict in (False,) if solver.together else (False, True):
        found, _ = traces(solver, sampler, cmi, name, strict=strict)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


OF_A_COVARIANCE = {"cadps-diagonal", "cadps-isotropic", "cadps-exact", "cadps-paper", "free-hunch"}  # tested below
SHORT = {"daps": {"moves": 3}, "pnp-dm": {"inner_steps": 2}, "sitcom": {"iterations": 2}}


@pytest.mark.parametrize("solver", sorted(set(SOLVERS.builtin) - OF_A_COVARIANCE))
def test_every_solver_runs_on_a_device(solver: str) -> None:
    made = SOLVERS.make(solver, SHORT.get(solver))
    check(made, made.sampler, None, "inpaint-random")


@pytest.mark.parametrize("sampler", list(SAMPLERS.builtin))
@pytest.mark.parametrize("solver", [PiGDM(), DPS()], ids=["pigdm", "dps"])
def test_every_sampler_runs_on_a_device(solver: Solver, sampler: str) -> None:
    check(solver, SAMPLERS.make(sampler), None, "inpaint-random")


@pytest.mark.parametrize("name", ["deblur-gaussian", "own"])
@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_cmi_runs_on_a_device(estimator: Estimator, name: str) -> None:
    check(Unconditional(), SAMPLERS.make("ancestral"), CMI(0.3, estimator=estimator), name)


@pytest.mark.parametrize("covariance", list(COVARIANCES.builtin))
def test_every_covariance_runs_on_a_device(covariance: str) -> None:
    """In the move of CA-DPS and inside of CMI."""
    check(CADPS(covariance), SAMPLERS.make("ancestral"), CMI(0.3, covariance=covariance), "own")


@pytest.mark.parametrize("how", ["double-backward", "finite-difference", "second-difference"])
def test_every_contraction_runs_on_a_device(how: Contraction) -> None:
    """In CMI, and in the move of CA-DPS with ``complete`` and a draw."""
    solver = CADPS("isotropic", complete=True, contraction=how, spread=1.0)
    check(solver, SAMPLERS.make("ancestral"), CMI(0.3, contraction=how), "own")


@pytest.mark.parametrize("solver", ["dps", "daps", "sitcom", "red-diff"])
@pytest.mark.parametrize("name", NONLINEAR)
def test_measurements_that_are_not_linear_run_on_a_device(name: str, solver: str) -> None:
    """The derivatives of Fourier transforms are not those of the CPU on this device without hardware: there it is only
    seen that nothing is refused."""
    made = SOLVERS.make(solver, SHORT.get(solver))
    if name == "hdr":
        check(made, made.sampler, None, name)
    else:
        for strict in (False, True):
            assert bool(traces(made, made.sampler, None, name, strict=strict)[0].isfinite().all())


def test_the_device_refuses_what_it_must() -> None:
    x = OnDevice(torch.ones(3))
    assert x.device == NAME
    with Device():
        assert isinstance(torch.zeros(2, device=x.device), OnDevice)
        with pytest.raises(RuntimeError, match="meets one of the device"):
            _ = x + torch.ones(3)
        with pytest.raises(TypeError, match=r"no torch\.float64"):
            x.double()
        y = x.detach().requires_grad_()
        assert torch.equal(torch.autograd.grad((y**2).sum(), y)[0].inner, torch.full((3,), 2.0))  # pyright: ignore
    with Device(strict=True), pytest.raises(RuntimeError, match="is made in a step"):
        torch.ones(3)


def test_conjugate_gradients_wait_for_the_device_once_in_eight_iterations() -> None:
    b = OnDevice(torch.linspace(1, 2, 64).reshape(2, 32))
    spectrum = OnDevice(torch.logspace(0, 4, 32))
    with Device(strict=True) as device:
        conjugate_gradient(lambda v: spectrum * v, b, iterations=32)
    assert device.waits <= 4
