"""Solvers that draw, move or optimise: DAPS, PnP-DM, DDRM, RePaint and RED-diff against dense formulas."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from cmidiff import CMI
from cmidiff.loop import sample, upward
from cmidiff.prior import GaussianMixture
from cmidiff.samplers import Ancestral
from cmidiff.schedule import VE, VP
from cmidiff.solvers import DAPS, DDRM, PnPDM, REDDiff, RePaint, Solver
from cmidiff.solvers.particles import Particles
from cmidiff.step import Step
from tests.cases import (
    F64,
    SOLVERS,
    Bulk,
    dense_denoiser,
    gaussian_posterior,
    measured,
    mixture,
    problem_of,
    randn,
    rows,
    spd,
    step_at,
)

D, M, NOISE, B = 12, 5, 0.3, 3
MATRIX = randn(M, D, seed=61)
Y = randn(B, M, seed=62)
LEVELS: list[tuple[Any, float, float]] = [(None, 400.0, 350.0), (VP(), 0.5, 0.4), (VE(), 1.2, 0.8)]
each_level = pytest.mark.parametrize(("schedule", "t", "s"), LEVELS)


def a_step(schedule: Any = None, t: float = 400.0, s: float = 350.0, *, noise_std: float = NOISE, **kw: Any) -> Step:
    return step_at(mixture(schedule=schedule), measured(MATRIX, Y, noise_std), randn(B, D, seed=63), t, s, **kw)


def many(step: Step, count: int) -> Step:
    """The first row of a step, many times, with independent noise."""
    given = measured(MATRIX, Y[:1].expand(count, M), NOISE)
    x = step.x_t.detach()[:1].expand(count, D)
    return step_at(step.prior, given, x, step.t, step.s, draws=Bulk(5), index=step.index, steps=step.steps)


@pytest.mark.parametrize("chain", ["gaussian", "langevin", "hmc", "metropolis"])
def test_the_chains_of_daps_have_the_gaussian_between_the_measurement_and_the_flow(chain):
    """The exact draw to the error of its samples, the chains at a small step size to their own bias."""
    step = many(a_step(VE(), 0.3, 0.2), 1500 if chain == "gaussian" else 400)
    x_0 = DAPS().flow(step)
    mean, cov = gaussian_posterior(x_0[0], step.ratio**2 * torch.eye(D, dtype=F64), MATRIX, Y[0], NOISE)
    options = {"langevin": (60, 0.3), "hmc": (600, 0.3), "metropolis": (300, 6.0), "gaussian": (1, 1.0)}
    moves, rate = options[chain]
    u = DAPS(chain, moves=moves, rate=rate, last_rate=rate, momentum=0.3).moved(step, x_0)
    values, axes = torch.linalg.eigh(cov)
    z = (u.mean(0) - mean) @ axes / (values / len(u)).sqrt()
    assert float(z.abs().max()) < (4.5 if chain == "gaussian" else 7)
    ratio = ((u - u.mean(0)) @ axes).var(0) / values
    error = 4.5 * (2 / len(u)) ** 0.5
    assert float((ratio - 1).abs().max()) < (error if chain == "gaussian" else error + 0.35)


def test_the_flow_of_daps_is_eulers_rule():
    step = a_step(VE(), 1.2, 0.8)
    solver = DAPS(flow_steps=3)
    r = [(1.2 ** (1 / 7) + k / 3 * (solver.flow_levels(step)[-1] ** (1 / 7) - 1.2 ** (1 / 7))) ** 7 for k in range(4)]
    u = step.x_t.detach()
    for a, b in itertools.pairwise(r):
        u = u + (b - a) * (u - dense_denoiser(step.prior, u, a)[0]) / a  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(solver.flow(step), u, rtol=1e-9, atol=1e-10)


def test_the_gibbs_sampler_of_pnp_dm_has_the_posterior_of_its_coupling():
    """With one ``rho`` its stationary law is known: the likelihood is ``N(y; A x, sigma_y^2 I + rho^2 A A^T)``."""
    prior = GaussianMixture(torch.ones(1, dtype=F64), randn(1, 4, seed=5), spd(4, seed=6)[None], VE())
    matrix, y, rho = randn(2, 4, seed=61), randn(1, 2, seed=62), 1.0
    problem = problem_of(prior, measured(matrix, y.expand(1500, 2), NOISE), sampler=Ancestral(), draws=Bulk(1))
    solver = PnPDM(start_level=rho, end_level=rho, inner_steps=25)
    assert problem.unit == pytest.approx((prior.variance / 0.3) ** 0.5)
    solver = replace(solver, start_level=rho / problem.unit, end_level=rho / problem.unit)
    *_, last = sample(problem, solver, solver.times(problem, 12))
    s = NOISE**2 * torch.eye(2, dtype=F64) + rho**2 * matrix @ matrix.mT
    root = torch.linalg.inv(torch.linalg.cholesky(s))
    cov = prior.covariance_matrices()[0]
    mean, cov = gaussian_posterior(prior.means[0], cov, root @ matrix, root @ y[0], 1.0)
    values, axes = torch.linalg.eigh(cov)
    assert float(((last.x_s.mean(0) - mean) @ axes / (values / 1500).sqrt()).abs().max()) < 5
    ratio = ((last.x_s - last.x_s.mean(0)) @ axes).var(0) / values
    assert float((ratio - 1).abs().max()) < 4.5 * (2 / 1500) ** 0.5 + 0.05


@pytest.mark.parametrize("solver", [DAPS(), PnPDM()], ids=["daps", "pnp-dm"])
def test_samples_end_with_at_most_the_noise_of_the_measurement(solver):
    """A prior of large variance has larger levels, and its samples would have more noise than what was measured."""
    prior = GaussianMixture(torch.ones(1, dtype=F64), randn(1, D, seed=5), 100 * spd(D, seed=6)[None], VE())
    for noise_std, expected in ((30.0, 0.1), (0.7, None), (1e-3, 0.01), (0.0, 0.01)):
        problem = problem_of(prior, measured(MATRIX, Y, noise_std))
        assert 0.01 < 0.7 / problem.unit < 0.1
        end = 0.7 / problem.unit if expected is None else expected + 1e-9
        levels = {"levels": (100.0, end, 0.001)} if isinstance(solver, DAPS) else {"end_level": end, "inner_end": 0.001}
        assert solver.times(problem, 9) == pytest.approx(replace(solver, **levels).times(problem, 9))


def test_the_inner_process_of_pnp_dm_ends_well_below_its_start():
    step = a_step(VE(), 0.02, 0.01)
    times = PnPDM().inner_times(step)
    assert times[-1] == pytest.approx(0.002)
    assert all(a > b for a, b in itertools.pairwise(times))


@each_level
@pytest.mark.parametrize("noise_std", [0.0, 0.05, 3.0])
@pytest.mark.parametrize("eta_b", [1.0, 0.7])
def test_ddrm_component_by_component(schedule, t, s, noise_std, eta_b):
    step = a_step(schedule, t, s, noise_std=noise_std)
    solver = DDRM(0.6, eta_b)
    u, w, vt = torch.linalg.svd(MATRIX, full_matrices=True)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
    x_hat, z = dense_denoiser(step.prior, step.x_t, t)[0], step.draws.normal("kernel", 0, step.x_t.detach())  # pyright: ignore[reportArgumentType]
    eps, q = (step.x_t.detach() - alpha_t * x_hat) / sigma_t, sigma_s / alpha_s
    x_hat, eps, z, data = x_hat @ vt.mT, eps @ vt.mT, z @ vt.mT, Y @ u
    theirs = x_hat + q * 0.8 * eps + q * 0.6 * z
    for i, value in enumerate(w):
        if value * q > noise_std:
            spread = math.sqrt(q**2 - (eta_b * noise_std / value) ** 2)
            theirs[:, i] = (1 - eta_b) * x_hat[:, i] + eta_b * data[:, i] / value + spread * z[:, i]
        else:
            theirs[:, i] = x_hat[:, i] + q * (0.8 * (data[:, i] - value * x_hat[:, i]) / noise_std + 0.6 * z[:, i])
    torch.testing.assert_close(solver.step(step, None)[0], alpha_s * theirs @ vt, rtol=1e-7, atol=1e-8)


def test_ddrm_starts_at_the_level_and_ends_on_a_measurement_without_noise():
    step = a_step(VE(), 1.2, 0.8, noise_std=0.0)
    start, _ = DDRM().start(step.problem, 1.2)
    z = step.draws.normal("start", 0, step.x_t.detach())
    torch.testing.assert_close(start @ MATRIX.mT, Y + 1.2 * z @ MATRIX.mT, rtol=1e-7, atol=1e-8)
    last = a_step(VE(), 0.01, 0.0, noise_std=0.0)
    torch.testing.assert_close(DDRM().step(last, None)[0] @ MATRIX.mT, Y, rtol=1e-7, atol=1e-8)


def test_repaint_travels_back_and_keeps_the_measurement_at_every_level():
    solver = RePaint(2, 3)
    problem = problem_of(mixture(schedule=VE()), measured(MATRIX, Y, 0.0), sampler=Ancestral(), draws=rows(B))
    times = solver.times(problem, 6)
    assert len(set(times)) == 6
    assert sum(b > a for a, b in itertools.pairwise(times)) == 2 * 2 * 2  # two stretches, twice, two steps
    for trace, s in zip(sample(problem, solver, times), [*times[1:], 0.0], strict=True):
        alpha_s, sigma_s = problem.prior.schedule(s)
        step = Step.at(problem, randn(B, D), trace.t, s, graph=False, index=trace.index)
        if not upward(step):
            n = step.normal("guidance") if s > 0 else torch.zeros(B, D, dtype=F64)
            theirs = alpha_s * Y + sigma_s * n @ MATRIX.mT
            torch.testing.assert_close(trace.x_s @ MATRIX.mT, theirs, rtol=1e-8, atol=1e-9)


def test_red_diff_is_adam_on_the_gradient_of_each_image():
    """Against torch's own Adam, image by image."""
    problem = problem_of(mixture(schedule=VP()), measured(MATRIX, Y, NOISE), draws=rows(B))
    solver = REDDiff(rate=0.2, weight="sqrt", data_weight=0.7, spread=0.1)
    times = problem.prior.schedule.grid(4)
    *_, last = sample(problem, solver, times)
    prior_cov = problem.prior.variance * torch.eye(D, dtype=F64)
    for b in range(B):
        mu = gaussian_posterior(torch.zeros(D, dtype=F64), prior_cov, MATRIX, Y[b], NOISE)[0].clone().requires_grad_()
        adam = torch.optim.Adam([mu], lr=0.2, betas=(0.9, 0.99))
        for k, t in enumerate(times):
            alpha, sigma = problem.prior.schedule(t)
            n, n0 = (
                problem.draws.normal(stream, k, torch.zeros(B, D, dtype=F64))[b] for stream in ("kernel", "spread")
            )
            p = mu + 0.1 * n0
            x_t = (alpha * p + sigma * n).detach()
            x_hat = dense_denoiser(problem.prior, x_t[None], t)[0][0]  # pyright: ignore[reportArgumentType]
            eps = (x_t - alpha * x_hat) / sigma
            loss = 0.25 * math.sqrt(sigma / alpha) * (eps - n) @ p + 0.7 * 0.5 * (Y[b] - MATRIX @ p).square().sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
        torch.testing.assert_close(last.x_s[b], mu.detach(), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", [name for name, solver in SOLVERS.items() if not solver.refuses_cmi])
def test_the_move_of_cmi_that_is_reported_is_the_one_that_was_applied(name):
    """At the first step that CMI corrects, everything else being equal."""
    solver: Solver = SOLVERS[name]
    solver = replace(solver, threshold=0.0) if isinstance(solver, Particles) else solver
    draws = rows(B)
    problem = problem_of(mixture(schedule=VP()), measured(MATRIX, Y, NOISE), sampler=solver.sampler, draws=draws)
    times = solver.times(problem, 6)
    cmi = CMI(1.0, window=(0.0, 1e3), cap=0.5)
    pairs = zip(sample(problem, solver, times), sample(problem, solver, times, cmi), strict=True)
    plain, moved = next((a, b) for a, b in pairs if float(b.cmi.max()) > 0)
    torch.testing.assert_close((moved.x_s - plain.x_s).norm(dim=1), moved.cmi, rtol=1e-6, atol=1e-9)


def test_options_without_a_meaning_are_refused():
    wrong: list[tuple[type, dict[str, Any], str]] = [
        (DAPS, {"chain": "nuts"}, "chain must be one of"),
        (DAPS, {"moves": 0}, "moves >= 1"),
        (DAPS, {"levels": (0.1, 0.2, 0.01)}, "levels"),
        (DAPS, {"scale": -1.0}, "scale"),
        (PnPDM, {"inner_steps": 0}, "inner_steps >= 1"),
        (PnPDM, {"start_level": 0.01}, "start_level >= end_level"),
        (DDRM, {"eta": 1.2}, "eta must be in"),
        (RePaint, {"length": 0}, "length must be a whole number"),
        (RePaint, {"repeat": 1.5}, "repeat must be a whole number"),
        (REDDiff, {"weight": "snr"}, "weight must be one of"),
        (REDDiff, {"rate": -1.0}, "rate"),
    ]
    for solver, options, match in wrong:
        with pytest.raises(ValueError, match=match):
            solver(**options)
