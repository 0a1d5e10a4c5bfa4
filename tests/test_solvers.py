"""Each solver's step against a dense formula, and every solver with every physics through ``restore``."""

import functools
import math
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import pytest
import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from cmidiff import CMI, DDIM, Ancestral, ProbabilityFlow, Restoration, measure, registry, restore
from cmidiff import physics as named
from cmidiff.covariance import Covariance, Diagonal, Exact, Hybrid, Isotropic
from cmidiff.covariance import SecondMoments as Moments
from cmidiff.covariance.moments import wiener_estimate
from cmidiff.loop import sample
from cmidiff.measurement import Measurement
from cmidiff.prior import GaussianMixture
from cmidiff.schedule import VE, VP, RectifiedFlow, Schedule
from cmidiff.solvers import (
    CADPS,
    DPIR,
    DPS,
    DSG,
    MCG,
    TDS,
    CADPSReleased,
    PiGDM,
    PosteriorMean,
    Ramp,
    Solver,
    Unconditional,
    misfit_gradient,
)
from cmidiff.solvers.base import BEYOND, LONGEST, along_residual, fitted
from cmidiff.step import Carry, Step
from tests.cases import (
    COVARIANCES,
    F64,
    PHYSICS,
    SOLVERS,
    Bulk,
    dense_denoiser,
    dense_matrix,
    exported_solvers,
    gaussian,
    gaussian_posterior,
    generator,
    label,
    matrix_physics,
    measured,
    mixture,
    problem_of,
    randn,
    rows,
    step_at,
    three_images,
    with_measurement,
)

pytestmark = pytest.mark.filterwarnings("ignore::cmidiff.result.RestorationWarning")  # runs of few steps
D, M, NOISE, B = 12, 5, 0.3, 3
MATRIX = randn(M, D, seed=61)
Y = randn(B, M, seed=62)
LEVELS: list[tuple[Schedule | None, float, float]] = [
    (None, 400.0, 350.0),
    (VP(), 0.5, 0.4),
    (VE(), 1.2, 0.8),
    (RectifiedFlow(), 0.5, 0.4),
]
each_level = pytest.mark.parametrize(("schedule", "t", "s"), LEVELS)


def a_step(
    schedule: Schedule | None = None, t: float = 400.0, s: float = 350.0, *, noise_std: float = NOISE, prior=None, **kw
) -> Step:
    prior = mixture(schedule=schedule) if prior is None else prior
    return step_at(prior, measured(MATRIX, Y, noise_std), randn(B, D, seed=63), t, s, **kw)


def taken(solver: Solver, step: Step) -> Tensor:
    """``x_s``, with the carry of a run's first step."""
    return solver.step(step, solver.start(step.problem, step.t)[1])[0]


def last_step(**kw) -> Step:
    return a_step(t=0.0, s=-1.0, **kw)


def denoised(step: Step) -> tuple[Tensor, Tensor]:
    assert isinstance(step.prior, GaussianMixture)
    return dense_denoiser(step.prior, step.x_t, step.t)


def posterior_kernel(step: Step, x_hat: Tensor) -> Tensor:
    """A draw of ``p(x_s | x_t, x_0 = x_hat)`` by Bayes' rule from the forward kernel, with the step's own noise."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = step.prior.schedule(step.t), step.prior.schedule(step.s)
    a = alpha_t / alpha_s
    if sigma_s == 0:
        return x_hat
    forward_variance = sigma_t**2 - a**2 * sigma_s**2
    variance = 1 / (a**2 / forward_variance + 1 / sigma_s**2)
    mean = variance * (a * step.x_t.detach() / forward_variance + alpha_s * x_hat / sigma_s**2)
    return mean + math.sqrt(variance) * step.draws.normal("kernel", step.index, x_hat)


def norm_gradient(step: Step) -> Tensor:
    """``grad |y - A x_hat|`` by the chain rule with the dense Jacobian."""
    x_hat, jacobian = denoised(step)
    r = step.measurement.y - x_hat @ MATRIX.mT
    return -torch.einsum("bji,bj->bi", jacobian, (r / r.norm(dim=1, keepdim=True)) @ MATRIX)


def pull(step: Step, sigma: Tensor) -> Tensor:
    """``J^T A^T (s^2 I + A Sigma A^T)^-1 (y - A x_hat)``."""
    x_hat, jacobian = denoised(step)
    r = step.measurement.y - x_hat @ MATRIX.mT
    s = step.measurement.noise_std**2 * torch.eye(M, dtype=F64) + MATRIX @ sigma @ MATRIX.mT
    return torch.einsum("bji,bj->bi", jacobian, torch.linalg.solve(s, r[..., None])[..., 0] @ MATRIX)


def same(ours: Tensor, theirs: Tensor, rtol: float = 1e-8) -> None:
    assert float((ours - theirs).norm() / theirs.norm()) < rtol


# the table


def test_every_exported_solver_is_in_the_table():
    assert exported_solvers() == {type(solver) for solver in SOLVERS.values()}


def test_every_registered_solver_is_in_the_table():
    assert {type(registry.SOLVERS.make(name)) for name in registry.SOLVERS} == {type(s) for s in SOLVERS.values()}


# one step, one formula


@each_level
def test_unconditional(schedule, t, s):
    step = a_step(schedule, t, s)
    same(taken(Unconditional(), step), posterior_kernel(step, denoised(step)[0]))


@each_level
def test_dps(schedule, t, s):
    step = a_step(schedule, t, s)
    same(taken(DPS(0.7, guard=False), step), posterior_kernel(step, denoised(step)[0]) - 0.7 * norm_gradient(step))


def test_dps_gradient_is_that_of_each_images_own_norm():
    step = a_step()
    x = step.x_t.detach().clone().requires_grad_()
    norms = torch.linalg.vector_norm(Y - step.prior(x, step.t).mean @ MATRIX.mT, dim=1)
    theirs = torch.autograd.grad(norms.sum(), x)[0]
    torch.testing.assert_close(misfit_gradient(step), theirs, rtol=1e-10, atol=1e-12)


def test_dps_gradient_through_the_clip_stops_at_clipped_pixels():
    step = a_step(clip=(-0.5, 0.5))
    x = step.x_t.detach().clone().requires_grad_()
    x_hat = step.prior(x, step.t).mean.clamp(-0.5, 0.5)
    assert bool((x_hat.abs() == 0.5).any())
    theirs = torch.autograd.grad(torch.linalg.vector_norm(Y - x_hat @ MATRIX.mT, dim=1).sum(), x)[0]
    torch.testing.assert_close(misfit_gradient(step, through_clip=True), theirs, rtol=1e-10, atol=1e-12)
    same(
        taken(DPS(0.7, guard=False), step),
        posterior_kernel(step, denoised(step)[0].clamp(-0.5, 0.5)) - 0.7 * norm_gradient(step),
    )


def test_dps_at_a_perfect_fit_does_not_divide_by_zero():
    step = a_step()
    fitted = with_measurement(step, replace(step.measurement, y=step.measurement.A(step.x_hat.detach())))
    same(taken(DPS(0.7, guard=False), fitted), taken(Unconditional(), step))


class Squares(Physics):
    """A physics that is not linear."""

    def A(self, x: Tensor, **_: Any) -> Tensor:
        return x**2 @ MATRIX.mT


def test_dps_with_a_physics_that_is_not_linear():
    step = a_step()
    given = replace(step.measurement, physics=Squares())
    x = step.x_t.detach().clone().requires_grad_()
    norms = torch.linalg.vector_norm(Y - step.prior(x, step.t).mean ** 2 @ MATRIX.mT, dim=1)
    theirs = torch.autograd.grad(norms.sum(), x)[0]
    with torch.no_grad():
        torch.testing.assert_close(misfit_gradient(with_measurement(step, given)), theirs, rtol=1e-9, atol=1e-11)
    for solver in (PiGDM(), MCG(), CADPS(), DPIR()):
        with pytest.raises(TypeError, match="needs a linear physics"):
            taken(solver, with_measurement(step, given))


def r2(step: Step, v: float | None = None) -> float:
    """The variance of ``x_0 | x_t`` for ``x_0 ~ N(0, v)``, by adding precisions; ``v`` of the prior by default."""
    alpha, sigma = step.prior.schedule(step.t)
    return 1 / (1 / (step.prior.variance if v is None else v) + alpha**2 / sigma**2)


@each_level
@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_pigdm(schedule, t, s, noise_std):
    step = a_step(schedule, t, s, noise_std=noise_std)
    (alpha, sigma), alpha_s, x_hat = step.level_t, step.level_s[0], denoised(step)[0]
    for v in (1.0, 0.4):
        variance = r2(step, v)
        g = pull(step, variance * torch.eye(D, dtype=F64))
        weights = {"likelihood": sigma**2 / alpha, "adaptive": variance * sigma**2 / alpha, "flow": alpha * variance}
        for weight, w in weights.items():
            ours = taken(PiGDM(0.8, weight, v, guard=False), step)  # pyright: ignore[reportArgumentType]
            same(ours, posterior_kernel(step, x_hat + 0.8 * w * g))
        additive = posterior_kernel(step, x_hat) + 0.8 * alpha * alpha_s * variance * g
        same(taken(PiGDM(0.8, "additive", v, guard=False), step), additive)


@each_level
def test_pigdm_is_the_posterior_mean_for_a_white_prior(schedule, t, s):
    white = GaussianMixture(
        torch.ones(1, dtype=F64), torch.zeros(1, D, dtype=F64), torch.ones(1, D, dtype=F64), schedule
    )
    step = a_step(t=t, s=s, prior=white)
    same(PiGDM().estimate(step), posterior_means(step))


@each_level
def test_pigdm_adds_the_likelihood_score_to_the_priors(schedule, t, s):
    """``x_hat'`` and the score move agree: ``score_weight grad log p(y | x_t)`` on the sampler's mean."""
    step = a_step(schedule, t, s)
    g = pull(step, r2(step) * torch.eye(D, dtype=F64))
    same(taken(PiGDM(guard=False), step) - taken(Unconditional(), step), step.score_weight * g)


def posterior_means(step: Step) -> Tensor:
    """``E[x_0 | x_t, y]`` of a Gaussian prior: both measurements stacked, in the information form."""
    prior = step.prior
    assert isinstance(prior, GaussianMixture)
    alpha, sigma = prior.schedule(step.t)
    noise = step.measurement.noise_std
    stacked = torch.cat([MATRIX / noise, alpha / sigma * torch.eye(D, dtype=F64)])
    data = torch.cat([step.measurement.y / noise, step.x_t.detach() / sigma], 1)
    mean, cov = prior.means[0], prior.covariance_matrices()[0]
    return torch.stack([gaussian_posterior(mean, cov, stacked, d, 1.0)[0] for d in data])


@each_level
@pytest.mark.parametrize("noise_std", [0.05, 1.0])
def test_cadps_exact_is_the_posterior_mean_for_a_gaussian_prior(schedule, t, s, noise_std):
    step = a_step(t=t, s=s, prior=gaussian(D, schedule=schedule), noise_std=noise_std)
    same(CADPS(Exact(20)).estimate(step), posterior_means(step), 1e-6)


@each_level
def test_cadps(schedule, t, s):
    step = a_step(schedule, t, s)
    assert isinstance(step.prior, GaussianMixture)
    gain, x_hat = step.level_t[1] ** 2 / step.level_t[0], denoised(step)[0]
    sigma = step.prior.covariance(step.x_t.detach(), t)
    exact = posterior_kernel(step, x_hat + 0.9 * gain * pull(step, sigma))
    white = posterior_kernel(step, x_hat + gain * pull(step, r2(step, 0.7) * torch.eye(D, dtype=F64)))
    for guard in (True, False):  # the covariance is the same inside S and outside
        same(taken(CADPS(Exact(20), 0.9, guard=guard), step), exact, 1e-6)
    same(taken(CADPS(Isotropic(0.7), guard=False), step), white)
    for switch, theirs in ((0.5, white), (2.0, posterior_kernel(step, x_hat + gain * pull(step, sigma)))):
        hybrid = Hybrid(high=Isotropic(0.7), low=Exact(20), switch=switch * step.ratio)
        same(taken(CADPS(hybrid, guard=False), step), theirs, 1e-6)


@each_level
@pytest.mark.parametrize("name", COVARIANCES)
def test_pigdm_with_a_covariance_is_cadps_without_its_guard(schedule, t, s, name):
    step = a_step(schedule, t, s)
    covariance = COVARIANCES[name]
    same(taken(PiGDM(0.9, covariance=covariance, guard=False), step), taken(CADPS(covariance, 0.9, guard=False), step))


# the length of the move


def lengths(step: Step, bound: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``l`` for each row by minimising the quadratic over a grid, by `fitted`, and of the least residual; the misfit,
    squared, that the first of them leaves."""
    residual = step.measurement.residual(step.x_hat.detach())
    w = bound.solve(residual)
    move = bound.move(w)
    a_move, noise = move @ MATRIX.mT, step.measurement.noise_std
    grid = torch.linspace(0, 1, 20001, dtype=F64)[:, None]
    misfit = ((residual[None] - grid[..., None] * a_move) ** 2).sum(-1) / noise**2
    best = (misfit + grid**2 * (move * w).sum(-1)).argmin(0)
    ours = (fitted(step, move, w, residual) * move).sum(1) / (move * move).sum(1)
    flattest = (a_move * residual).sum(1) / (a_move * a_move).sum(1)
    return grid[best, 0], ours, flattest, misfit.gather(0, best[None])[0]


@each_level
def test_the_guard_minimises_the_negative_log_posterior_along_the_move(schedule, t, s):
    """Unless the residual that is left is one that the noise excludes: then it goes on, to the noise or to the least
    residual."""
    least, ours, flattest, left = lengths(a_step(schedule, t, s), Isotropic(0.02).at(a_step(schedule, t, s)))
    assert float(least.min()) < 0.99
    excluded = left > M + BEYOND * M**0.5
    torch.testing.assert_close(ours[~excluded], least[~excluded], rtol=0, atol=1e-4)
    assert bool(((ours >= least - 1e-4) & (ours <= flattest.clamp_max(LONGEST).maximum(least) + 1e-4)).all())


@each_level
@pytest.mark.parametrize("far", [3.0, 30.0])
def test_a_residual_that_the_covariance_excludes_is_reduced_to_the_noise(schedule, t, s, far):
    """``x_hat`` is many standard deviations of its own covariance away from ``y``: the covariance is too small."""
    step = a_step(schedule, t, s, noise_std=0.01)
    residual = randn(B, M, seed=5)
    residual = far * 0.01 * (M + BEYOND * M**0.5) ** 0.5 * residual / residual.norm(dim=1, keepdim=True)
    w = Isotropic(1e-6).at(step).solve(residual)
    move = fitted(step, 1e-6 * w, w, residual)
    assert float((move / (1e-6 * w)).max()) == pytest.approx(LONGEST)
    along = w / (MATRIX @ w.mT).norm(dim=0)[:, None] * residual.norm(dim=1, keepdim=True)
    move = fitted(step, 0.2 * along, torch.zeros_like(w), residual)
    left = residual - move @ MATRIX.mT
    least = residual - (along @ MATRIX.mT) * ((along @ MATRIX.mT) * residual).sum(1, keepdim=True) / (
        (along @ MATRIX.mT) ** 2
    ).sum(1, keepdim=True)
    theirs = least.norm(dim=1).clamp_min(0.01 * M**0.5)
    torch.testing.assert_close(left.norm(dim=1), theirs, rtol=1e-9, atol=1e-12)


@each_level
def test_the_guard_leaves_a_consistent_covariance_alone(schedule, t, s):
    """The Jacobian of a white Gaussian is the isotropic covariance, up to its gain."""
    white = GaussianMixture(
        torch.ones(1, dtype=F64), torch.zeros(1, D, dtype=F64), torch.full((1, D), 0.6, dtype=F64), schedule
    )
    step = a_step(t=t, s=s, prior=white)
    ours = lengths(step, Isotropic(0.6).at(step))[1]
    torch.testing.assert_close(ours, torch.ones(B, dtype=F64), rtol=1e-9, atol=0)
    same(CADPS(Isotropic(0.6)).estimate(step), posterior_means(step))


@each_level
@pytest.mark.parametrize("name", COVARIANCES)
def test_the_guard_never_raises_the_misfit(schedule, t, s, name):
    for noise_std in (0.0, 1e-3, NOISE):
        step = a_step(schedule, t, s, noise_std=noise_std)
        x_hat = step.x_hat.detach()
        moved = CADPS(COVARIANCES[name]).estimate(step)
        before, after = (step.measurement.residual(x).norm(dim=1) for x in (x_hat, moved))
        assert bool((after <= before * (1 + 1e-9)).all())


def test_cadps_complete_is_the_whole_gradient_of_the_gaussian_likelihood():
    """``grad log N(y; A x_hat, S)`` by differentiating it, covariance included; one measured number, whose trace one
    probe gives exactly."""
    row, noise, t = MATRIX[:1], 0.2, 400.0
    prior, y = mixture(D), randn(1, 1, seed=8)
    x_t = randn(2, D, seed=9).requires_grad_()
    x_hat, gain = prior(x_t, t).mean, prior.schedule(t)[1] ** 2 / prior.schedule(t)[0]
    s = noise**2 + torch.einsum("i,bij,j->b", row[0], prior.covariance(x_t, t), row[0])
    likelihood = -0.5 * (y[:, 0] - x_hat @ row[0]) ** 2 / s - 0.5 * s.log()
    (theirs,) = torch.autograd.grad(likelihood.sum(), x_t)
    step = step_at(prior, measured(row, y.expand(2, 1), noise), x_t, t, t - 10)
    for contraction in ("finite-difference", "double-backward", "second-difference"):
        ours = CADPS("exact", complete=True, contraction=contraction).estimate(step)
        torch.testing.assert_close(ours, x_hat.detach() + gain * theirs, rtol=1e-4, atol=1e-5)


def test_what_complete_adds_is_bounded_where_the_residual_is_many_deviations():
    step = step_at(mixture(D), measured(MATRIX, 1e3 * randn(2, len(MATRIX), seed=8), 0.2), randn(2, D), 400.0, 390.0)
    whole, part = (CADPS(Exact(8), complete=complete).estimate(step) for complete in (True, False))
    added = whole - part
    most = 3 * math.sqrt(r2(step) * len(MATRIX))
    torch.testing.assert_close(added.norm(dim=1), torch.full((2,), most, dtype=F64), rtol=1e-9, atol=0)


def test_cadps_diagonal_is_the_posterior_mean_for_a_diagonal_prior():
    thin = GaussianMixture(torch.ones(1, dtype=F64), randn(1, D), torch.linspace(0.1, 0.9, D, dtype=F64)[None])
    step = a_step(prior=thin)
    same(CADPS("diagonal").estimate(step), posterior_means(step), 1e-6)


def test_cadps_released_weighs_the_gradient_with_the_change_of_noise():
    for step in (a_step(), last_step()):
        x_t = step.x_t.detach()
        (alpha, sigma), (alpha_s, sigma_s) = step.level_t, step.level_s
        factor = 1 + (x_t - alpha * denoised(step)[0]) / sigma
        if not step.last:
            assert isinstance(step.prior, GaussianMixture)
            factor = factor - (x_t - alpha_s * dense_denoiser(step.prior, x_t, step.s)[0]) / sigma_s
        theirs = posterior_kernel(step, denoised(step)[0]) - 0.6 * norm_gradient(step) * factor
        same(taken(CADPSReleased(0.6), step), theirs)


@each_level
def test_mcg_projects_exactly_without_noise(schedule, t, s):
    step = a_step(schedule, t, s, noise_std=0.0)
    alpha_s, sigma_s = step.level_s
    n = step.draws.normal("guidance", step.index, step.x_t.detach())
    for scale in (0.0, 0.8):
        x_s = taken(MCG(scale, guard=False), step)
        torch.testing.assert_close(x_s @ MATRIX.mT, alpha_s * Y + sigma_s * n @ MATRIX.mT, rtol=1e-9, atol=1e-10)
        before = posterior_kernel(step, denoised(step)[0]) - (scale * norm_gradient(step) if scale else 0)
        moved = x_s - before  # only along the rows of A
        along = moved @ torch.linalg.pinv(MATRIX) @ MATRIX
        torch.testing.assert_close(moved, along, rtol=1e-8, atol=1e-9)


def test_mcg_ends_on_the_measurement_without_noise_and_leaves_the_end_alone_with_it():
    step = last_step(noise_std=0.0)
    torch.testing.assert_close(taken(MCG(0.5, guard=False), step) @ MATRIX.mT, Y, rtol=1e-9, atol=1e-10)
    step = last_step()
    same(taken(MCG(0.5, guard=False), step), denoised(step)[0] - 0.5 * norm_gradient(step))


@each_level
def test_mcg_with_noise_weighs_the_measurement_against_the_state(schedule, t, s):
    step = a_step(schedule, t, s)
    alpha_s, sigma_s = step.level_s
    before = posterior_kernel(step, denoised(step)[0]) - 0.8 * norm_gradient(step)
    target = alpha_s * Y + sigma_s * step.draws.normal("guidance", step.index, before) @ MATRIX.mT
    system = MATRIX @ MATRIX.mT + (alpha_s * NOISE / sigma_s) ** 2 * torch.eye(M, dtype=F64)
    theirs = before + torch.linalg.solve(system, (target - before @ MATRIX.mT).mT).mT @ MATRIX
    same(taken(MCG(0.8, guard=False), step), theirs)


@each_level
def test_the_guard_of_mcg_takes_no_more_of_the_projection_than_leads_to_the_noise(schedule, t, s):
    for noise_std in (0.0, 0.3, 100.0):
        step = a_step(schedule, t, s, noise_std=noise_std)
        alpha_s, sigma_s = step.level_s
        renewed = (sigma_s / alpha_s) ** 2 * (1 - (sigma_s * step.level_t[0] / (step.level_t[1] * alpha_s)) ** 2)
        system = MATRIX @ MATRIX.mT + noise_std**2 / renewed * torch.eye(M, dtype=F64)
        k = torch.linalg.solve(system, MATRIX).mT
        residual, before = Y - denoised(step)[0] @ MATRIX.mT, taken(DPS(1e-9), step)
        part = to_length(residual @ k.mT @ MATRIX.mT, residual, noise_std * math.sqrt(M)).clamp_max(1.0)
        n = step.draws.normal("guidance", step.index, before)
        move = (alpha_s * Y + (sigma_s * n - before) @ MATRIX.mT) @ k.mT
        same(taken(MCG(1e-9), step), before + part * move, 1e-6)
        assert bool((part < 1e-12).all()) == (noise_std == 100.0)


def test_mcg_takes_another_projection():
    step = a_step()
    same(taken(MCG(0.0, lambda step, x: 2 * x), step), 2 * posterior_kernel(step, denoised(step)[0]))


@each_level
@pytest.mark.parametrize("sampler", [Ancestral(), Ancestral("large"), DDIM(1.0)])
def test_dsg(schedule, t, s, sampler):
    step = a_step(schedule, t, s, sampler=sampler, steps=100)
    std, x_hat = float(step.std), denoised(step)[0]
    noise = std * step.draws.normal("kernel", step.index, step.x_t.detach())
    mean = posterior_kernel(step, x_hat) - r_std(step) * step.draws.normal("kernel", step.index, x_hat)
    g = norm_gradient(step)
    radius = std * math.sqrt(D)
    for w in (0.1, 1.0):
        direction = (1 - w) * noise - w * radius * g / g.norm(dim=1, keepdim=True)
        x_s = taken(DSG(w, guard=False), step)
        torch.testing.assert_close((x_s - mean).norm(dim=1), torch.full((B,), radius, dtype=F64), rtol=1e-6, atol=0)
        same(x_s, mean + radius * direction / direction.norm(dim=1, keepdim=True), 1e-6)


def r_std(step: Step) -> float:
    (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
    return math.sqrt(
        1 / ((alpha_t / alpha_s) ** 2 / (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2) + 1 / sigma_s**2)
    )


def test_dsg_guides_each_interval_counted_from_the_end_and_ends_on_the_mean():
    step = a_step()
    for index in range(10):
        at = replace(step, index=index, steps=10)
        guided = not torch.equal(taken(DSG(0.5, interval=4), at), taken(Unconditional(), at))
        assert guided == (index in (9, 5, 1))
    step = last_step()
    same(taken(DSG(0.5, guard=False), step), denoised(step)[0])


def test_the_guard_of_gradient_solvers_descends_to_the_noise_and_not_below():
    far, near = a_step(noise_std=0.3), a_step(noise_std=100.0)
    excess = (Y - denoised(far)[0] @ MATRIX.mT).norm(dim=1) - 0.3 * math.sqrt(M)
    gradient = norm_gradient(far)
    length = (excess.clamp_min(0) / gradient.square().sum(1)).clamp_max(50.0)
    assert bool((excess > 0).all())
    same(taken(DPS(50.0), far), posterior_kernel(far, denoised(far)[0]) - length[:, None] * gradient)
    same(taken(DPS(50.0), near), taken(Unconditional(), near))
    last, aim = last_step(noise_std=0.3), 0.3 * math.sqrt(M)
    x_hat, gradient = denoised(last)[0], norm_gradient(last)
    residual = Y - x_hat @ MATRIX.mT
    first = to_length(-gradient @ MATRIX.mT, residual, aim) * -gradient
    left = residual - first @ MATRIX.mT
    beyond = left.square().sum(1, keepdim=True) > 0.3**2 * (M + BEYOND * M**0.5)
    second = torch.stack([along_krylov(r, aim) if far else 0 * x_hat[0] for r, far in zip(left, beyond, strict=True)])
    for solver in (DPS(1e9), DSG(0.5)):
        same(taken(solver, last), x_hat + first + second, 1e-6)
    assert bool(beyond.any())


def test_a_residual_that_no_move_explains_is_followed_for_one_step():
    """Of a batch with one that some move explains, and one that the noise explains."""
    tall, noise = randn(12, 4, seed=1), 0.1
    aim = noise * math.sqrt(12)
    explained, orthogonal = tall @ randn(4, seed=2), randn(12, seed=3)
    orthogonal -= tall @ torch.linalg.lstsq(tall, orthogonal[:, None]).solution[:, 0]
    residual = torch.stack([explained + 20 * aim * orthogonal / orthogonal.norm(), explained, 0.5 * aim * explained])
    residual[2] /= explained.norm()
    measurement = Measurement(torch.zeros_like(residual), matrix_physics(tall, noise_std=noise), noise, (4,), (4,))
    move, pulled = along_residual(measurement, residual), residual @ tall
    same(move[:1], to_length(pulled[:1] @ tall.mT, residual[:1], aim) * pulled[:1], 1e-6)
    left = (residual - move @ tall.mT).norm(dim=1)
    torch.testing.assert_close(left[1] / aim, torch.ones((), dtype=F64), rtol=1e-4, atol=0)
    assert bool((move[2] == 0).all())


def along_krylov(residual: Tensor, aim: float) -> Tensor:
    """The move whose residual has the norm ``aim``, on the way through the least-squares solutions over the Krylov
    spaces of ``A^T r``, of one dimension more each."""
    before, basis, v = torch.zeros(D, dtype=residual.dtype), [], residual @ MATRIX
    for _ in range(M):
        basis.append(v / v.norm())
        v = basis[-1] @ MATRIX.mT @ MATRIX
        space = torch.linalg.qr(torch.stack(basis, 1))[0]
        best = space @ torch.linalg.lstsq(MATRIX @ space, residual[:, None]).solution[:, 0]
        if (residual - MATRIX @ best).norm() <= aim:
            left, measured = residual - MATRIX @ before, MATRIX @ (best - before)
            return before + to_length(measured[None], left[None], aim)[0] * (best - before)
        before = best
    return before


def to_length(pulled: Tensor, residual: Tensor, aim: float) -> Tensor:
    """The least ``l >= 0`` with ``|residual - l pulled| = aim``, or that of the least norm, (B, 1), by bisection."""
    high = ((pulled * residual).sum(1) / pulled.square().sum(1)).clamp_min(0.0)
    low = torch.zeros_like(high)
    for _ in range(80):
        middle = 0.5 * (low + high)
        above = (residual - middle[:, None] * pulled).norm(dim=1) > aim
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return high[:, None]


def test_the_guard_of_dsg_turns_no_further_than_to_the_noise():
    step = a_step(noise_std=0.3, steps=100)
    noise = r_std(step) * step.draws.normal("kernel", step.index, step.x_t.detach())
    mean = posterior_kernel(step, denoised(step)[0]) - noise
    g, radius = norm_gradient(step), r_std(step) * math.sqrt(D)
    excess = (Y - denoised(step)[0] @ MATRIX.mT).norm(dim=1) - 0.3 * math.sqrt(M)
    w = (excess.clamp_min(0) / g.norm(dim=1) / radius).clamp_max(1.0)[:, None]
    assert bool((w < 1).any())
    direction = (1 - w) * noise - w * radius * g / g.norm(dim=1, keepdim=True)
    same(taken(DSG(1.0), step), mean + radius * direction / direction.norm(dim=1, keepdim=True), 1e-6)
    near = a_step(noise_std=100.0, steps=100)
    same(taken(DSG(1.0), near), taken(DSG(1e-9), near), 1e-6)


@pytest.mark.parametrize("sampler", ["ddim", "probability-flow", "dpm-solver"])
def test_dsg_refuses_a_sampler_without_noise(sampler):
    prior, physics, y = problem("denoise")
    options: dict[str, Any] = {"value_range": None, "steps": 2, "sampler": sampler}
    with pytest.raises(ValueError, match="DSG uses the noise of the sampler"):
        restore(y, physics, prior, solver=DSG(), **options)
    restore(y, physics, prior, solver=DSG(0.0), **options)  # the sampler alone


@pytest.mark.parametrize("make", [DPS, PiGDM, MCG, CADPS, CADPSReleased])
def test_scale_zero_is_the_sampler_alone(make):
    step = a_step(graph=False)
    solver = make(scale=0.0)
    assert not solver.needs_graph
    if isinstance(solver, MCG):
        solver = replace(solver, project=lambda step, x: x)
    assert torch.equal(taken(solver, step), taken(Unconditional(), step))


# the number of steps


def moved(solver: Solver, steps: int) -> Tensor:
    step = a_step(steps=steps)
    return taken(solver, step) - taken(Unconditional(), step)


@pytest.mark.parametrize(
    "solver",
    [
        DPS(0.3, guard=False),
        DPS(Ramp(2.0, 0.5), guard=False),
        MCG(0.3, lambda step, x: x, guard=False),
        CADPSReleased(0.3),
    ],
    ids=label,
)
def test_a_step_size_is_that_of_a_run_of_1000_steps(solver):
    same(moved(solver, 40), 25 * moved(solver, 1000))


def test_the_rate_of_dsg_is_that_of_a_run_of_100_steps_and_shrinks_like_the_radius():
    for steps, rate in ((100, 0.2), (400, 0.1), (25, 0.4), (1, 1.0)):
        assert DSG(0.2).rate_at(a_step(steps=steps)) == pytest.approx(rate)
    same(moved(DSG(0.4, guard=False), 400), moved(DSG(0.2, guard=False), 100))


# half-quadratic splitting


@each_level
@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_dpir_denoises_and_then_fits_the_measurement_at_the_next_level(schedule, t, s, strength):
    step = a_step(schedule, t, s)
    z, (alpha_s, sigma_s) = denoised(step)[0], step.level_s
    penalty = strength * (alpha_s / sigma_s) ** 2
    system = MATRIX.mT @ MATRIX / NOISE**2 + penalty * torch.eye(D, dtype=F64)
    x = torch.linalg.solve(system, (Y @ MATRIX / NOISE**2 + penalty * z).mT).mT
    same(taken(DPIR(strength), step), alpha_s * x)
    step = last_step()
    same(taken(DPIR(strength), step), denoised(step)[0])


def in_the_dct_domain(schedule: Schedule | None = None) -> tuple[GaussianMixture, Tensor]:
    """A Gaussian whose covariance is diagonal in the DCT domain, with its second moments; and its covariance."""
    k, i = torch.arange(D, dtype=F64)[:, None], torch.arange(D, dtype=F64)
    q = torch.cos(math.pi / D * (i + 0.5) * k) * math.sqrt(2 / D)
    q[0] /= math.sqrt(2)
    variances = torch.linspace(1.5, 0.05, D, dtype=F64)
    cov = q.mT @ (variances[:, None] * q)
    prior: Any = GaussianMixture(torch.ones(1, dtype=F64), randn(1, D, seed=5), cov[None], schedule)
    return prior, cov


def test_dpir_of_one_level_is_the_wiener_estimate_fitted_and_denoised_once():
    """A Gaussian, for which each of the three is a linear map that is written out here."""
    prior, cov = in_the_dct_domain()
    measurement = measured(MATRIX, Y, NOISE)
    eye, mean = torch.eye(D, dtype=F64), prior.means[0]
    wiener = torch.stack([gaussian_posterior(mean, cov, MATRIX, y, NOISE)[0] for y in Y])
    torch.testing.assert_close(wiener_estimate(prior, measurement), wiener, rtol=0, atol=0.02)
    problem = problem_of(prior, measurement, initial=wiener)
    solver = DPIR(strength=1.0)
    (t,) = solver.times(problem, 1)
    (trace,) = sample(problem, solver, [t])
    alpha, sigma = prior.schedule(t)
    assert sigma / alpha == pytest.approx(0.4 * prior.variance**0.5, rel=1e-6)
    level = (sigma / alpha) ** 2 * eye
    fitted = torch.stack([gaussian_posterior(x, level, MATRIX, y, NOISE)[0] for x, y in zip(wiener, Y, strict=True)])
    theirs = torch.stack([gaussian_posterior(mean, cov, eye, x, sigma / alpha)[0] for x in fitted])
    same(trace.x_s, theirs)


def test_levels_of_dpir_fall_evenly_in_the_logarithm_to_the_noise_of_the_measurement():
    problem = problem_of(mixture(schedule=VE()), measured(MATRIX, Y, NOISE))
    unit = math.sqrt(problem.prior.variance)  # of a signal without a range
    times = torch.tensor(DPIR(start_level=4.0).times(problem, 5), dtype=F64)
    torch.testing.assert_close(times.log2(), torch.linspace(math.log2(4 * unit), math.log2(NOISE), 5, dtype=F64))


def test_draws_of_the_gaussian_posterior_make_exact_samples_in_any_number_of_steps():
    """``spread``, on Gaussian data; the last step takes the mean, and the level of that is all that is lost."""
    prior, cov = in_the_dct_domain(VP())
    count, solver = 4000, CADPS(Moments(tolerance=1e-8), spread=1.0)
    problem = problem_of(prior, measured(MATRIX, Y[:1].expand(count, M), NOISE), draws=Bulk(3))
    mean, theirs = gaussian_posterior(prior.means[0], cov, MATRIX, Y[0], NOISE)
    axes, values = torch.linalg.eigh(theirs)[1], torch.linalg.eigvalsh(theirs)
    for steps in (2, 5):
        times = solver.times(problem, steps)
        x = [trace.x_s for trace in sample(problem, solver, times)][-1]
        lost = 0.02**2 * prior.variance / 0.3
        assert float(((x.mean(0) - mean) @ axes / (values / count).sqrt()).abs().max()) < 4.5
        ratio = ((x - x.mean(0)) @ axes).var(0) / values
        assert float((ratio - 1).abs().max()) < 4.5 * (2 / count) ** 0.5 + lost / float(values.min())


@each_level
def test_every_step_with_second_moments_has_the_exact_posterior_mean_of_a_gaussian(schedule, t, s):
    prior, _ = in_the_dct_domain(schedule)
    for noise_std in (0.05, NOISE, 1.0):
        step = a_step(t=t, s=s, prior=prior, noise_std=noise_std, graph=False)
        for guard in (True, False):
            ours = CADPS(Moments(tolerance=1e-9), guard=guard).estimate(step)
            same(ours, posterior_means(step), 1e-6)


def test_a_row_does_not_see_its_neighbours():
    for name, solver in SOLVERS.items():
        together = taken(solver, a_step())
        one = step_at(mixture(), measured(MATRIX, Y[:1], NOISE), randn(B, D, seed=63)[:1], 400.0, 350.0)
        torch.testing.assert_close(
            taken(solver, one)[0], together[0], rtol=1e-7, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_what_cannot_be_meant_is_refused():
    wrong: list[tuple[type, dict[str, Any], str]] = [
        *[
            (solver, {"scale": scale}, "scale")
            for solver in (DPS, PiGDM, MCG, CADPS)
            for scale in (-1.0, math.nan, math.inf)
        ],
        (PiGDM, {"weight": "paper"}, "weight must be one of"),
        (PiGDM, {"data_variance": -1.0}, "data_variance"),
        (PiGDM, {"data_variance": 0.0}, "data_variance"),
        (PiGDM, {"covariance": "exact", "weight": "flow"}, "covariance replaces"),
        (PiGDM, {"covariance": "exact", "data_variance": 0.5}, "covariance replaces"),
        (PiGDM, {"covariance": "exact", "through_clip": True}, "covariance replaces"),
        (CADPS, {"covariance": "exat"}, "unknown covariance 'exat': did you mean exact"),
        (Isotropic, {"data_variance": 0.0}, "data_variance"),
        (Exact, {"iterations": 0}, "iterations must be at least 1"),
        (Hybrid, {"switch": 0.0}, "switch must be a noise level > 0"),
        (Hybrid, {"switch": math.nan}, "switch must be a number, received nan"),
        (Diagonal, {"probes": 0}, "probes >= 1"),
        (Diagonal, {"window": 4}, "odd window"),
        (Diagonal, {"floor": 0.0}, "floor in"),
        (CADPSReleased, {"scale": -1.0}, "scale"),
        (DPIR, {"strength": 0.0}, "strength must be a number > 0"),
        (DPIR, {"start_level": math.inf}, "start_level must be a number > 0"),
        (DPIR, {"start_level": -1.0}, "start_level must be a number > 0"),
        (DSG, {"rate": 1.5}, "rate in"),
        (DSG, {"rate": math.nan}, "rate must be a number"),
        (DSG, {"interval": 0}, "interval >= 1"),
    ]
    for solver, options, match in wrong:
        with pytest.raises(ValueError, match=match):
            solver(**options)
    for wrong_kind in (3, None, torch.eye(2)):
        with pytest.raises(TypeError, match="covariance must be a name or an object"):
            CADPS(wrong_kind)  # pyright: ignore[reportArgumentType]


# a user's own solver


@dataclass(frozen=True)
class Landweber(PosteriorMean):
    """A user's solver in one file: a gradient step on the denoised image."""

    def estimate(self, step: Step) -> Tensor:
        m, x = step.measurement, step.x_hat.detach()
        return x + 0.1 * m.At(m.residual(x))


@dataclass(frozen=True)
class White(Covariance):
    """A user's covariance: ``0.2 I``, as a matrix that is not declared."""

    def at(self, step: Step) -> Any:
        return replace(Isotropic(1.0).at(step), r2=0.2)


def test_a_users_own_solver_composes_with_cmi():
    step = a_step()
    x_hat = denoised(step)[0]
    theirs = posterior_kernel(step, x_hat + 0.1 * (Y - x_hat @ MATRIX.mT) @ MATRIX)
    same(taken(Landweber(), step), theirs)
    corrected = CMI(0.05)(step)
    assert corrected.correction is not None
    same(taken(Landweber(), corrected), theirs + step.coefficients[1] * corrected.correction)
    case = PHYSICS["inpaint-random"]
    prior, physics = three_images(case.shape), case.build(0.05)
    y = measure(prior.means[:1].reshape(1, *case.shape), physics)
    options: dict[str, Any] = {"solver": Landweber(), "steps": 20, "samples": 2, "value_range": None}
    base, with_cmi = (restore(y, physics, prior, cmi=cmi, **options) for cmi in (None, CMI(0.1)))
    assert bool(with_cmi.ok.all())
    assert not torch.equal(base.samples, with_cmi.samples)
    assert float(with_cmi.stats["cmi"].max()) > 0


def test_a_users_own_covariance_serves_every_solver_that_takes_one():
    step = a_step()
    x_hat = denoised(step)[0]
    gain = step.level_t[1] ** 2 / step.level_t[0]
    theirs = posterior_kernel(step, x_hat + gain * pull(step, 0.2 * torch.eye(D, dtype=F64)))
    for solver in (CADPS(White(), guard=False), PiGDM(covariance=White(), guard=False)):
        same(taken(solver, step), theirs)


class Deaf(Solver):
    """A solver that moves the state and does not use the corrected image."""

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        a, b = step.coefficients
        return a * step.x_t.detach() + b * step.x_hat.detach(), carry


class Excused(Deaf):
    """The same, and it says so."""

    refuses_cmi = "it takes no denoised image"


def test_cmi_is_used_or_refused_and_never_dropped():
    prior, physics, y = problem("inpaint-random")
    options: dict[str, Any] = {"value_range": None, "steps": 4, "cmi": CMI(0.1, window=(0.0, math.inf))}
    with pytest.raises(ValueError, match="Deaf does not use the correction of CMI"):
        restore(y, physics, prior, solver=Deaf(), **options)
    with pytest.raises(ValueError, match="CMI does not act on Excused: it takes no denoised image"):
        restore(y, physics, prior, solver=Excused(), **options)
    restore(y, physics, prior, solver=Excused(), value_range=None, steps=4, cmi=CMI(0.0))
    with pytest.raises(ValueError, match="cmi corrects samples, and none is drawn"):
        restore(y, physics, prior, **options)


@pytest.mark.parametrize("name", registry.SOLVERS)
def test_cmi_is_used_or_refused_by_every_registered_solver(name):
    prior, physics, y = problem("inpaint-random")
    solver = registry.SOLVERS.make(name)
    steps = 12 if name == "daps" else 6  # few of its levels lie where the information of this mixture is not flat
    options: dict[str, Any] = {"solver": solver, "value_range": None, "steps": steps}
    if solver.refuses_cmi:
        with pytest.raises(ValueError, match="CMI does not act on"):
            restore(y, physics, prior, cmi=CMI(0.1), **options)
        return
    base, with_cmi = (restore(y, physics, prior, cmi=cmi, **options) for cmi in (None, CMI(0.1)))
    assert float(with_cmi.stats["cmi"].max()) > 0
    assert not torch.equal(base.estimate, with_cmi.estimate)


# every solver x every physics


EXPLAINS = (
    *("pigdm", "pigdm-row-sum", "cadps", "cadps-diagonal", "cadps-isotropic", "cadps-exact", "cadps-switch", "dpir"),
)


@functools.cache
def problem(name: str) -> tuple[GaussianMixture, LinearPhysics, Tensor]:
    case = PHYSICS[name]
    prior, physics = three_images(case.shape), case.build(0.05)
    return prior, physics, measure(prior.sample(1, generator(3)), physics, seed=1)


@functools.cache
def restored(name: str, solver: str) -> tuple[Restoration, Tensor]:
    """The restoration, and the misfit of its samples."""
    prior, physics, y = problem(name)
    used, shape = SOLVERS[solver], PHYSICS[name].shape
    count, steps = (1, 8) if used.point else (max(4, used.default_samples), 25)
    result = restore(y, physics, prior, solver=used, steps=steps, samples=count, value_range=None, seed=100)
    given = Measurement(y.expand(count, *y.shape[1:]), physics, 0.05, shape, shape)
    return result, given.misfit(result.samples[0])


@pytest.mark.parametrize("name", PHYSICS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_with_every_physics(solver, name):
    """Finite samples that explain the measurement better than the prior's own; to the noise where ``S`` is solved. In
    25 steps one sample in 150 of the isotropic covariance ends in another of the three images, and none of this seed.
    """
    result, misfit = restored(name, solver)
    assert bool(result.ok.all())
    assert bool(result.samples.isfinite().all())
    assert result.samples.shape == (1, len(misfit), *PHYSICS[name].shape)
    if solver != "unconditional":
        assert float(misfit.square().mean()) < float(restored(name, "unconditional")[1].square().mean())
    if solver in EXPLAINS:
        assert float(misfit.square().mean()) < 2.5**2


@pytest.mark.parametrize("name", PHYSICS)
@pytest.mark.parametrize("solver", ["dps", "pigdm", "mcg", "dsg", "cadps", "cadps-exact"])
def test_every_kind_of_solver_composes_with_cmi_on_every_physics(solver, name):
    prior, physics, y = problem(name)
    options: dict[str, Any] = {"solver": SOLVERS[solver], "steps": 6, "value_range": None}
    base, moved = (restore(y, physics, prior, cmi=cmi, **options) for cmi in (None, CMI(0.05)))
    assert bool(moved.ok.all())
    assert float(moved.stats["cmi"].max()) > 0
    assert not torch.equal(moved.samples, base.samples)


@pytest.mark.parametrize("name", ["inpaint-box", "own", "super-resolution", "mri"])
def test_the_exact_covariance_finds_the_exact_posterior(name):
    """One image with Gaussian pixels around it, whose posterior is known."""
    case = PHYSICS[name]
    three = three_images(case.shape)
    means = three.means[:1].reshape(1, *case.shape)
    prior = GaussianMixture(three.weights[:1], means, torch.full_like(means, 0.01), VE(2e-3, 50.0))
    physics = case.build(0.05)
    x = prior.means[:1].reshape(1, *case.shape) + 0.1 * randn(1, *case.shape)
    y = measure(x, physics, seed=1)
    result = restore(
        y, physics, prior, solver=CADPS(Exact(20)), sampler=ProbabilityFlow(), steps=25, samples=24, value_range=None
    )
    matrix = dense_matrix(physics, case.shape)
    mean, cov = gaussian_posterior(prior.means[0], 0.01 * torch.eye(prior.d, dtype=F64), matrix, y.flatten(), 0.05)
    samples = result.samples[0].flatten(1)
    z = (samples.mean(0) - mean) / (cov.diagonal() / 24).sqrt()
    assert float(z.square().mean()) == pytest.approx(1.0, abs=0.5)
    assert float((samples.var(0) / cov.diagonal()).mean()) == pytest.approx(1.0, abs=0.2)


def test_rows_of_the_table_depend_on_their_seed_alone():
    case = PHYSICS["inpaint-random"]
    prior, physics = three_images(case.shape), case.build(0.05)
    y = measure(prior.means[:1].reshape(1, *case.shape), physics)
    options: dict[str, Any] = {"solver": MCG(0.003), "cmi": CMI(0.1), "steps": 10, "value_range": None, "seed": 7}
    together = restore(y, physics, prior, samples=3, **options).samples
    alone = restore(y, physics, prior, samples=1, first_sample=2, **options).samples
    torch.testing.assert_close(alone[0, 0], together[0, 2], rtol=1e-10, atol=1e-11)
    assert rows(1, 7).normal("kernel", 0, y).shape == y.shape


@functools.cache
def three_scans() -> tuple[GaussianMixture, LinearPhysics, Tensor]:
    """Three complex measurements of a scanner, each of its own image."""
    prior, physics = three_images(PHYSICS["mri"].shape), PHYSICS["mri"].build(0.05)
    return prior, physics, measure(prior.sample(3, generator(3)), physics, seed=[1, 2, 3])


def check_rows(solver: Solver, steps: int) -> None:
    """The second of three images, with CMI where it acts, is the same alone."""
    prior, physics, y = three_scans()
    cmi = None if solver.refuses_cmi or solver.point else CMI(0.1, window=(0.0, math.inf))
    count = 1 if solver.point else 4 if solver.together else 2
    options: dict[str, Any] = {"solver": solver, "cmi": cmi, "steps": steps, "value_range": None, "samples": count}
    together = restore(y, physics, prior, seed=[4, 5, 6], **options)
    alone = restore(y[1:2], physics, prior, seed=5, **options)
    assert bool(together.ok.all())
    same: dict[str, Any] = {"rtol": 0.0, "atol": 1e-6}  # the second difference of CMI divides rounding by 1e-7
    torch.testing.assert_close(alone.samples[0], together.samples[1], **same)
    torch.testing.assert_close(alone.estimate[0], together.estimate[1], **same)
    assert cmi is None or float(together.stats["cmi"].max()) > 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_restores_each_image_of_a_batch_as_if_alone(solver):
    check_rows(SOLVERS[solver], 5)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("solver", [CADPS, PiGDM, TDS])
def test_every_covariance_serves_each_image_of_a_batch_as_if_alone(solver, covariance):
    check_rows(solver(covariance=COVARIANCES[covariance]), 2)


def test_the_solvers_with_a_covariance_are_those_of_the_test_above():
    named = {type(s) for s in SOLVERS.values() if any(f.name == "covariance" for f in fields(cast(Any, s)))}
    assert named == {CADPS, PiGDM, TDS}


def test_dpir_of_white_noise_is_one_evaluation_at_its_level():
    """The posterior mean of ``y = x + n`` is the denoiser itself: exact on a mixture, whatever the number of steps."""
    prior, noise_std = three_images((3, 8, 8)), 0.2
    task = named.TASKS["denoise"]((3, 8, 8), noise_std=noise_std, dtype=F64)
    y = prior.sample(2, generator(3)) + noise_std * randn(2, 3, 8, 8, seed=4)
    found = restore(y, task, prior, solver="dpir", value_range=None, tile=None)
    t = prior.schedule.time(noise_std)
    alpha_t, _ = prior.schedule(t)
    torch.testing.assert_close(found.estimate, prior(alpha_t * y, t).mean, rtol=1e-9, atol=1e-9)
    assert found.stats["misfit"].shape[0] == 1
