"""Each solver's step against a dense formula, and every solver with every physics through ``restore``."""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from cmidiff import CMI, DDIM, Ancestral, ProbabilityFlow, Restoration, measure, restore
from cmidiff.guidance import CADPS, DPS, DSG, MCG, Guidance, PiGDM, Unconditional, misfit_gradient
from cmidiff.measurement import Measurement
from cmidiff.prior import GaussianMixture
from cmidiff.schedule import VE, VP, RectifiedFlow, Schedule
from cmidiff.step import Step
from tests.cases import (
    F64,
    PHYSICS,
    SOLVERS,
    dense_denoiser,
    dense_matrix,
    exported_solvers,
    gaussian,
    gaussian_posterior,
    generator,
    measured,
    mixture,
    pictures,
    randn,
    rows,
    step_at,
)

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


def test_every_entry_is_a_guidance():
    assert all(isinstance(solver, Guidance) for solver in SOLVERS.values())


# one step, one formula


@each_level
def test_unconditional(schedule, t, s):
    step = a_step(schedule, t, s)
    same(Unconditional()(step), posterior_kernel(step, denoised(step)[0]))


@each_level
def test_dps(schedule, t, s):
    step = a_step(schedule, t, s)
    same(DPS(0.7)(step), posterior_kernel(step, denoised(step)[0]) - 0.7 * norm_gradient(step))


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
    same(DPS(0.7)(step), posterior_kernel(step, denoised(step)[0].clamp(-0.5, 0.5)) - 0.7 * norm_gradient(step))


def test_dps_at_a_perfect_fit_does_not_divide_by_zero():
    step = a_step()
    fitted = replace(step, measurement=replace(step.measurement, y=step.measurement.A(step.x_hat.detach())))
    same(DPS(0.7)(fitted), Unconditional()(step))


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
        torch.testing.assert_close(misfit_gradient(replace(step, measurement=given)), theirs, rtol=1e-9, atol=1e-11)
    for solver in (PiGDM(), MCG(), CADPS()):
        with pytest.raises(TypeError, match="needs a linear physics"):
            solver(replace(step, measurement=given))


def r2(step: Step, v: float = 1.0) -> float:
    """The variance of ``x_0 | x_t`` for ``x_0 ~ N(0, v)``, by adding precisions."""
    alpha, sigma = step.prior.schedule(step.t)
    return 1 / (1 / v + alpha**2 / sigma**2)


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
            ours = PiGDM(0.8, weight, v)(step)  # pyright: ignore[reportArgumentType]
            same(ours, posterior_kernel(step, x_hat + 0.8 * w * g))
        additive = posterior_kernel(step, x_hat) + 0.8 * alpha * alpha_s * variance * g
        same(PiGDM(0.8, "additive", v)(step), additive)


@each_level
def test_pigdm_is_the_posterior_mean_for_a_white_prior(schedule, t, s):
    white = GaussianMixture(
        torch.ones(1, dtype=F64), torch.zeros(1, D, dtype=F64), torch.ones(1, D, dtype=F64), schedule
    )
    step = a_step(t=t, s=s, prior=white)
    same(PiGDM().estimate(step), posterior_means(step))


@each_level
def test_pigdm_adds_the_likelihood_score_to_the_priors(schedule, t, s):
    """``x_hat'`` and the score move agree: ``score_weight grad log p(y | x_t)`` on the kernel's mean."""
    step = a_step(schedule, t, s)
    g = pull(step, r2(step) * torch.eye(D, dtype=F64))
    same(PiGDM()(step) - Unconditional()(step), step.score_weight * g)


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
    same(CADPS("exact", iterations=20).estimate(step), posterior_means(step), 1e-6)


@each_level
def test_cadps(schedule, t, s):
    step = a_step(schedule, t, s)
    assert isinstance(step.prior, GaussianMixture)
    gain, x_hat = step.level_t[1] ** 2 / step.level_t[0], denoised(step)[0]
    sigma = step.prior.covariance(step.x_t.detach(), t)
    same(CADPS("exact", 0.9, iterations=20)(step), posterior_kernel(step, x_hat + 0.9 * gain * pull(step, sigma)), 1e-6)
    white = posterior_kernel(step, x_hat + gain * pull(step, r2(step, 0.7) * torch.eye(D, dtype=F64)))
    same(CADPS("isotropic", data_variance=0.7)(step), white)
    same(CADPS("exact", switch=0.5 * step.ratio, data_variance=0.7)(step), white)


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
    whole = CADPS("exact", complete=True, iterations=8, data_variance=0.7).estimate(step)
    added = whole - CADPS("exact", iterations=8, data_variance=0.7).estimate(step)
    most = 3 * math.sqrt(r2(step, 0.7) * len(MATRIX))
    torch.testing.assert_close(added.norm(dim=1), torch.full((2,), most, dtype=F64), rtol=1e-9, atol=0)


def test_cadps_diagonal_is_the_posterior_mean_for_a_diagonal_prior():
    thin = GaussianMixture(torch.ones(1, dtype=F64), randn(1, D), torch.linspace(0.1, 0.9, D, dtype=F64)[None])
    step = a_step(prior=thin)
    same(CADPS().estimate(step), posterior_means(step), 1e-6)


def test_cadps_released_weighs_the_gradient_with_the_change_of_noise():
    for step in (a_step(), last_step()):
        x_t = step.x_t.detach()
        (alpha, sigma), (alpha_s, sigma_s) = step.level_t, step.level_s
        factor = 1 + (x_t - alpha * denoised(step)[0]) / sigma
        if not step.last:
            assert isinstance(step.prior, GaussianMixture)
            factor = factor - (x_t - alpha_s * dense_denoiser(step.prior, x_t, step.s)[0]) / sigma_s
        theirs = posterior_kernel(step, denoised(step)[0]) - 0.6 * norm_gradient(step) * factor
        same(CADPS("released", 0.6)(step), theirs)


@each_level
def test_mcg_projects_exactly_without_noise(schedule, t, s):
    step = a_step(schedule, t, s, noise_std=0.0)
    alpha_s, sigma_s = step.level_s
    n = step.draws.normal("guidance", step.index, step.x_t.detach())
    for scale in (0.0, 0.8):
        x_s = MCG(scale)(step)
        torch.testing.assert_close(x_s @ MATRIX.mT, alpha_s * Y + sigma_s * n @ MATRIX.mT, rtol=1e-9, atol=1e-10)
        before = posterior_kernel(step, denoised(step)[0]) - (scale * norm_gradient(step) if scale else 0)
        moved = x_s - before  # only along the rows of A
        along = moved @ torch.linalg.pinv(MATRIX) @ MATRIX
        torch.testing.assert_close(moved, along, rtol=1e-8, atol=1e-9)


def test_mcg_ends_on_the_measurement_without_noise_and_leaves_the_end_alone_with_it():
    step = last_step(noise_std=0.0)
    torch.testing.assert_close(MCG(0.5)(step) @ MATRIX.mT, Y, rtol=1e-9, atol=1e-10)
    step = last_step()
    same(MCG(0.5)(step), denoised(step)[0] - 0.5 * norm_gradient(step))


@each_level
def test_mcg_with_noise_weighs_the_measurement_against_the_state(schedule, t, s):
    step = a_step(schedule, t, s)
    alpha_s, sigma_s = step.level_s
    before = posterior_kernel(step, denoised(step)[0]) - 0.8 * norm_gradient(step)
    target = alpha_s * Y + sigma_s * step.draws.normal("guidance", step.index, before) @ MATRIX.mT
    system = MATRIX @ MATRIX.mT + (alpha_s * NOISE / sigma_s) ** 2 * torch.eye(M, dtype=F64)
    theirs = before + torch.linalg.solve(system, (target - before @ MATRIX.mT).mT).mT @ MATRIX
    same(MCG(0.8)(step), theirs)


def test_mcg_takes_another_projection():
    step = a_step()
    same(MCG(0.0, lambda step, x: 2 * x)(step), 2 * posterior_kernel(step, denoised(step)[0]))


@each_level
@pytest.mark.parametrize("kernel", [Ancestral(), Ancestral("large"), DDIM(1.0)])
def test_dsg(schedule, t, s, kernel):
    step = a_step(schedule, t, s, kernel=kernel)
    std, x_hat = float(step.std), denoised(step)[0]
    noise = std * step.draws.normal("kernel", step.index, step.x_t.detach())
    mean = posterior_kernel(step, x_hat) - r_std(step) * step.draws.normal("kernel", step.index, x_hat)
    g = norm_gradient(step)
    radius = std * math.sqrt(D)
    for w in (0.1, 1.0):
        direction = (1 - w) * noise - w * radius * g / g.norm(dim=1, keepdim=True)
        x_s = DSG(w)(step)
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
        guided = not torch.equal(DSG(0.5, interval=4)(at), Unconditional()(at))
        assert guided == (index in (9, 5, 1))
    step = last_step()
    same(DSG(0.5)(step), denoised(step)[0])


@pytest.mark.parametrize("kernel", [DDIM(), ProbabilityFlow()])
def test_dsg_refuses_a_kernel_without_noise(kernel):
    with pytest.raises(ValueError, match=r"DSG turns the kernel's noise"):
        DSG()(a_step(kernel=kernel))


@pytest.mark.parametrize("make", [DPS, PiGDM, MCG, CADPS, lambda scale: CADPS("released", scale)])
def test_scale_zero_is_the_sampler_alone(make):
    step = a_step(graph=False)
    solver = make(scale=0.0) if isinstance(make, type) else make(0.0)
    assert not solver.needs_graph
    if isinstance(solver, MCG):
        solver = replace(solver, project=lambda step, x: x)
    assert torch.equal(solver(step), Unconditional()(step))


def test_a_row_does_not_see_its_neighbours():
    for name, solver in SOLVERS.items():
        together = solver(a_step())
        one = step_at(mixture(), measured(MATRIX, Y[:1], NOISE), randn(B, D, seed=63)[:1], 400.0, 350.0)
        torch.testing.assert_close(solver(one)[0], together[0], rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


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
        (CADPS, {"covariance": "full"}, "covariance must be one of"),
        (CADPS, {"data_variance": 0.0}, "data_variance"),
        (CADPS, {"iterations": 0}, "iterations >= 1"),
        (CADPS, {"switch": 0.0}, "switch > 0"),
        (DSG, {"rate": 1.5}, "rate in"),
        (DSG, {"rate": math.nan}, "rate in"),
        (DSG, {"interval": 0}, "interval >= 1"),
    ]
    for solver, options, match in wrong:
        with pytest.raises(ValueError, match=match):
            solver(**options)


# a user's own solver


@dataclass(frozen=True)
class Landweber:
    """A user's guidance in one file: gradient steps on the denoised image."""

    needs_graph: bool = False

    def __call__(self, step: Step) -> Tensor:
        m, x = step.measurement, step.x_hat.detach()
        return step.advance(lambda step: x + 0.1 * m.At(m.residual(x)))


def test_a_users_own_guidance_composes_with_cmi():
    step = a_step()
    x_hat = denoised(step)[0]
    theirs = posterior_kernel(step, x_hat + 0.1 * (Y - x_hat @ MATRIX.mT) @ MATRIX)
    same(Landweber()(step), theirs)
    moved = CMI(0.05)(step)
    assert moved.shift is not None
    same(Landweber()(moved), theirs + moved.shift)
    case = PHYSICS["inpaint-random"]
    prior, physics = pictures(case.shape), case.build(0.05)
    y = measure(prior.means[:1].reshape(1, *case.shape), physics)
    options: dict[str, Any] = {"solver": Landweber(), "steps": 20, "samples": 2, "value_range": None}
    base, with_cmi = (restore(y, physics, prior, cmi=cmi, **options) for cmi in (None, CMI(0.1)))
    assert bool(with_cmi.ok.all())
    assert not torch.equal(base.samples, with_cmi.samples)
    assert float(with_cmi.stats["cmi"].max()) > 0


# every solver x every physics


EXPLAINS = ("pigdm", "cadps", "cadps-isotropic", "cadps-exact", "cadps-switch")


@functools.cache
def problem(name: str) -> tuple[GaussianMixture, LinearPhysics, Tensor]:
    case = PHYSICS[name]
    prior, physics = pictures(case.shape), case.build(0.05)
    return prior, physics, measure(prior.sample(1, generator(3)), physics, seed=1)


@functools.cache
def restored(name: str, solver: str) -> tuple[Restoration, Tensor]:
    """The restoration, and the misfit of its samples."""
    prior, physics, y = problem(name)
    result = restore(y, physics, prior, solver=SOLVERS[solver], steps=25, samples=4, value_range=None)
    shape = PHYSICS[name].shape
    given = Measurement(y.expand(4, *y.shape[1:]), physics, 0.05, shape, shape)
    return result, given.misfit(result.samples[0])


@pytest.mark.parametrize("name", PHYSICS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_with_every_physics(solver, name):
    """Finite samples that explain the measurement better than the prior's own; to the noise where ``S`` is solved."""
    result, misfit = restored(name, solver)
    assert bool(result.ok.all())
    assert bool(result.samples.isfinite().all())
    assert result.samples.shape == (1, 4, *PHYSICS[name].shape)
    if solver != "unconditional":
        assert float(misfit.square().mean()) < float(restored(name, "unconditional")[1].square().mean())
    if solver in EXPLAINS:
        assert float(misfit.square().mean()) < 2.5**2


@pytest.mark.parametrize("name", PHYSICS)
@pytest.mark.parametrize("solver", ["dps", "pigdm", "mcg", "dsg", "cadps-exact"])
def test_every_kind_of_solver_composes_with_cmi_on_every_physics(solver, name):
    prior, physics, y = problem(name)
    options: dict[str, Any] = {"solver": SOLVERS[solver], "steps": 6, "value_range": None}
    base, moved = (restore(y, physics, prior, cmi=cmi, **options) for cmi in (None, CMI(0.05)))
    assert bool(moved.ok.all())
    assert float(moved.stats["cmi"].max()) > 0
    assert not torch.equal(moved.samples, base.samples)


@pytest.mark.parametrize("name", ["inpaint-box", "own", "super-resolution", "mri"])
def test_the_exact_covariance_finds_the_exact_posterior(name):
    """One picture with Gaussian pixels around it, whose posterior is known."""
    case = PHYSICS[name]
    three = pictures(case.shape)
    means = three.means[:1].reshape(1, *case.shape)
    prior = GaussianMixture(three.weights[:1], means, torch.full_like(means, 0.01), VE(2e-3, 50.0))
    physics = case.build(0.05)
    x = prior.means[:1].reshape(1, *case.shape) + 0.1 * randn(1, *case.shape)
    y = measure(x, physics, seed=1)
    solver = CADPS("exact", iterations=20)
    result = restore(y, physics, prior, solver=solver, kernel=ProbabilityFlow(), steps=25, samples=24, value_range=None)
    matrix = dense_matrix(physics, case.shape)
    mean, cov = gaussian_posterior(prior.means[0], 0.01 * torch.eye(prior.d, dtype=F64), matrix, y.flatten(), 0.05)
    samples = result.samples[0].flatten(1)
    z = (samples.mean(0) - mean) / (cov.diagonal() / 24).sqrt()
    assert float(z.square().mean()) == pytest.approx(1.0, abs=0.5)
    assert float((samples.var(0) / cov.diagonal()).mean()) == pytest.approx(1.0, abs=0.2)


def test_rows_of_the_table_depend_on_their_seed_alone():
    case = PHYSICS["inpaint-random"]
    prior, physics = pictures(case.shape), case.build(0.05)
    y = measure(prior.means[:1].reshape(1, *case.shape), physics)
    options: dict[str, Any] = {"solver": MCG(0.3), "cmi": CMI(0.1), "steps": 10, "value_range": None, "seed": 7}
    together = restore(y, physics, prior, samples=3, **options).samples
    alone = restore(y, physics, prior, samples=1, first_sample=2, **options).samples
    torch.testing.assert_close(alone[0, 0], together[0, 2], rtol=1e-10, atol=1e-11)
    assert rows(1, 7).normal("kernel", 0, y).shape == y.shape
