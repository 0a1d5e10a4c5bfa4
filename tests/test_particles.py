"""Particle solvers against posteriors and evidences that are known, and the rows of a run that interact."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidiff import restore
from cmidiff.covariance import Exact
from cmidiff.loop import Trace, sample
from cmidiff.physics import TASKS, measure
from cmidiff.prior import GaussianMixture, Prediction
from cmidiff.schedule import VP, pairs
from cmidiff.solvers import FPS, TDS, MCGDiff, Unconditional
from cmidiff.solvers.particles import Particles, direction, stratified, systematic
from cmidiff.step import Group, Problem
from tests.cases import F64, Bulk, gaussian_posterior, measured, mixture, problem_of, randn, rows, spd, three_images

pytestmark = pytest.mark.filterwarnings("ignore::cmidiff.result.RestorationWarning")
D, M, NOISE, K = 4, 2, 0.3, 800
MATRIX = randn(M, D, seed=61)
Y = randn(1, M, seed=62)


def gaussian_prior() -> GaussianMixture:
    return GaussianMixture(torch.ones(1, dtype=F64), randn(1, D, seed=5), spd(D, seed=6)[None], VP())


def cloud(solver: Particles, count: int = K, prior: Any = None, y: Tensor = Y) -> Problem:
    """``count`` particles of one image."""
    given = measured(MATRIX, y.expand(count, M), NOISE)
    problem = problem_of(gaussian_prior() if prior is None else prior, given, sampler=solver.sampler, draws=Bulk(3))
    return replace(problem, images=(0,) * count)


def times_of(prior: Any, steps: int) -> list[float]:
    alpha, sigma = prior.schedule(1.0)
    levels = torch.logspace(math.log10(sigma / alpha), -2, steps, dtype=F64).tolist()
    return [prior.schedule.time(r) for r in levels]


def run(solver: Particles, steps: int = 25, **options: Any) -> Trace:
    problem = cloud(solver, **options)
    *_, last = sample(problem, solver, times_of(problem.prior, steps))
    return last


def prior_of_the_sampler(steps: int = 25) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what `Ancestral` samples: a linear map a step, written out."""
    prior = gaussian_prior()
    mu, c, eye = prior.means[0], prior.covariance_matrices()[0], torch.eye(D, dtype=F64)
    mean, cov = torch.zeros(D, dtype=F64), eye
    for t, s in pairs(times_of(prior, steps), 0.0):
        (alpha, sigma), (alpha_s, sigma_s) = prior.schedule(t), prior.schedule(s)
        between = sigma**2 - (alpha / alpha_s * sigma_s) ** 2
        a, b = alpha / alpha_s * sigma_s**2 / sigma**2, alpha_s * between / sigma**2
        gain = alpha * c @ torch.linalg.inv(alpha**2 * c + sigma**2 * eye)
        step = a * eye + b * gain
        mean = step @ mean + b * (mu - alpha * gain @ mu)
        cov = step @ cov @ step.mT + between * sigma_s**2 / sigma**2 * eye
    return mean, cov


def test_systematic_resampling_keeps_each_weight_to_one_particle():
    w = torch.softmax(randn(3, 50, seed=1), 1)
    u = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=F64)
    counts = torch.stack([torch.nn.functional.one_hot(systematic(w, v.expand(3)), 50).sum(1) for v in u])
    assert bool(((counts - 50 * w).abs() < 1).all())
    torch.testing.assert_close(counts.to(F64).mean(0), 50 * w, rtol=0, atol=0.15)
    even = torch.full((1, 50), 1 / 50, dtype=F64)
    assert torch.equal(systematic(even, torch.tensor([0.999], dtype=F64))[0], torch.arange(50))


@pytest.mark.parametrize(("count", "d"), [(40, 7), (7, 40), (24, 24)])
@pytest.mark.parametrize("gap", [0.5, 1e-2, 1e-5])
def test_the_direction_is_the_leading_eigenvector(count, d, gap):
    """Also where the second eigenvalue is nearly as large, whatever the scale, and for each image alone."""
    rank = min(count - 1, d)
    values = torch.cat([torch.tensor([1.0, 1 - gap]), torch.linspace(0.9 - 0.5 * gap, 0.01, rank - 2)]).to(F64)
    images = []
    for k, scale in enumerate((1.0, 1e-9, 1e9)):
        particles = randn(count, rank, seed=k)
        axes = torch.linalg.qr(particles - particles.mean(0))[0]  # orthogonal to the constant: the spread is `values`
        basis = torch.linalg.qr(randn(d, rank, seed=10 + k))[0]
        images.append(scale * ((axes * values.sqrt()) @ basis.mT + 3.0))
    x = torch.stack(images)
    found = direction(x)
    for image, v in zip(x, found[:, 0], strict=True):
        centred = (image - image.mean(0)).double()
        exact = torch.linalg.eigh(centred.mT @ centred)[1][:, -1]
        assert float((v @ exact).abs()) == pytest.approx(1.0, abs=1e-9)
    for k in range(3):
        torch.testing.assert_close(direction(x[k : k + 1])[0], found[k], rtol=0, atol=1e-9)
    shuffled = direction(x[:, torch.randperm(count, generator=torch.Generator().manual_seed(1))])
    torch.testing.assert_close(shuffled, found, rtol=0, atol=1e-6)


def test_the_direction_of_float32_and_of_particles_that_do_not_spread():
    x = randn(2, 30, 5, seed=3) * torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0], dtype=F64)
    torch.testing.assert_close(direction(x.float()), direction(x).float(), rtol=0, atol=1e-5)
    assert torch.equal(direction(torch.ones(2, 4, 3)), torch.zeros(2, 1, 3))
    twice = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=F64)[None]  # two equal eigenvalues
    assert float(direction(twice).norm()) == pytest.approx(1.0)
    both = direction(torch.stack([x[0], torch.ones(30, 5, dtype=F64)]))  # one image still, the other not
    torch.testing.assert_close(both[0], direction(x[:1])[0], rtol=0, atol=1e-12)


def test_stratified_noise_is_standard_normal_for_each_particle_and_even_for_all():
    """Along the direction of largest spread; across it the noise stays as it is."""
    count, images = 64, 300
    owners = tuple(p for p in range(images) for _ in range(count))
    problem = replace(problem_of(gaussian_prior(), measured(MATRIX, Y.expand(len(owners), M), NOISE)), images=owners)
    group = Group((replace(problem, draws=Bulk(1)),), 3, False)
    x = (randn(count, 3, seed=2) * torch.tensor([5.0, 1.0, 1.0], dtype=F64)).repeat(images, 1)
    z = randn(len(owners), 3, seed=3)
    found = stratified(group, x, z, x).reshape(images, count, 3)
    v = direction(x[:count][None])[0, 0]
    cov = torch.einsum("pki,pkj->kij", found, found) / images
    torch.testing.assert_close(found.mean(0), torch.zeros_like(found[0]), rtol=0, atol=4.5 / images**0.5)
    torch.testing.assert_close(cov, torch.eye(3, dtype=F64).expand_as(cov), rtol=0, atol=6.5 / images**0.5)
    across = found.flatten(0, 1) - z
    torch.testing.assert_close(across, (across @ v)[:, None] * v, rtol=0, atol=1e-12)
    order = (x[:count] @ v).argsort()
    near = torch.special.ndtr(found @ v)[:, order].unfold(1, 8, 1).sort(-1).values  # of 8 neighbours
    even = (torch.arange(8, dtype=F64) + 0.5) / 8
    assert float((near - even).abs().max()) < 0.17  # 0.06 for a grid; independent numbers exceed 0.5
    lone = replace(problem, images=tuple(range(len(owners))), draws=Bulk(1))
    assert torch.equal(stratified(Group((lone,), 0, False), x, z, x), z)


def test_stratified_noise_lowers_the_error_of_the_modes():
    count, images = 32, 60
    prior = GaussianMixture(
        torch.tensor([0.7, 0.3], dtype=F64), torch.tensor([[2.0, 0.5], [-2.0, -0.5]], dtype=F64),
        torch.full((2, 2), 0.1, dtype=F64), VP(),
    )  # fmt: skip
    matrix, y = torch.tensor([[0.0, 1.0]], dtype=F64), torch.tensor([[0.2]], dtype=F64)
    exact = prior.posterior(y, matrix, 0.6).weights
    errors = []
    for even in (False, True):
        solver = TDS(covariance=Exact(1), even=even)
        problem = problem_of(prior, measured(matrix, y.expand(count * images, 1), 0.6), draws=Bulk(5))
        problem = replace(problem, images=tuple(p for p in range(images) for _ in range(count)))
        *_, last = sample(problem, solver, times_of(prior, 30))
        shares = (last.x_s[:, 0] > 0).reshape(images, count).to(F64).mean(1)
        assert float((shares.mean() - exact[0]).abs()) < 4.5 * float(shares.std()) / images**0.5 + 0.02
        errors.append(float((shares - exact[0]).square().mean()))
    assert errors[1] < 0.7 * errors[0]
    assert errors[1] < 0.5 * float(exact[0] * exact[1]) / count  # of independent exact samples


@pytest.mark.parametrize(
    "solver", [TDS(covariance=Exact(8)), TDS(covariance="isotropic"), MCGDiff()], ids=["tds-exact", "tds", "mcgdiff"]
)
def test_particles_have_the_exact_posterior_of_a_gaussian(solver):
    """That of the sampler's own prior, in few steps. The isotropic covariance is wrong here, which the weights undo."""
    mean, cov = gaussian_posterior(*prior_of_the_sampler(), MATRIX, Y[0], NOISE)
    values, axes = torch.linalg.eigh(cov)
    last = run(solver)
    effective = K * min(float(last.own["ess"][0]), 0.25)  # particles that share ancestors count less
    z = (last.x_s.mean(0) - mean) @ axes / (values / effective).sqrt()
    assert float(z.abs().max()) < 4.5
    ratio = ((last.x_s - last.x_s.mean(0)) @ axes).var(0) / values
    assert float((ratio - 1).abs().max()) < 4.5 * (2 / effective) ** 0.5


@pytest.mark.parametrize("covariance", [Exact(8), "isotropic"])
def test_the_evidence_is_that_of_the_measurement(covariance):
    mean, cov = prior_of_the_sampler()
    s = MATRIX @ cov @ MATRIX.mT + NOISE**2 * torch.eye(M, dtype=F64)
    exact = torch.distributions.MultivariateNormal(MATRIX @ mean, s).log_prob(Y[0])
    found = run(TDS(covariance=covariance)).own["log_evidence"]
    assert float(found[0]) == pytest.approx(float(exact), abs=0.15)
    assert torch.equal(found, found[:1].expand(K))


@pytest.mark.parametrize("covariance", [Exact(2), "isotropic"])
def test_the_evidence_of_a_mixture_is_exact(covariance):
    """Against the sum over its components, with many steps: no Gaussian twisting function knows it."""
    prior = mixture(D, 3, seed=4, schedule=VP(), spread=2.0)
    s = MATRIX @ prior.covariance_matrices() @ MATRIX.mT + NOISE**2 * torch.eye(M, dtype=F64)
    y = prior.sample(1, torch.Generator().manual_seed(1)) @ MATRIX.mT + NOISE * randn(1, M, seed=2)
    parts = torch.distributions.MultivariateNormal(prior.means @ MATRIX.mT, s).log_prob(y)
    exact = torch.logsumexp(prior.weights.log() + parts, 0)
    found = run(TDS(covariance=covariance), steps=120, prior=prior, y=y).own["log_evidence"]
    assert found.dtype == F64
    assert float(found[0]) == pytest.approx(float(exact), abs=0.15)


def test_power_zero_is_the_unconditional_sampler_bit_for_bit():
    solver = TDS(scale=0.0)
    problem = cloud(solver, 9)
    times = problem.prior.schedule.grid(8)
    *_, free = sample(replace(problem, draws=rows(9)), Unconditional(), times)
    *_, none = sample(replace(problem, draws=rows(9)), solver, times)
    assert torch.equal(none.x_s, free.x_s)


@pytest.mark.parametrize("solver", [TDS(), MCGDiff(), FPS()], ids=["tds", "mcgdiff", "fps"])
def test_a_cloud_depends_on_its_image_and_seed_alone(solver, monkeypatch):
    """Not on the other images of a batch, nor on the parts in which its particles are computed."""
    shape = (1, 8, 8)
    prior, task = three_images(shape), TASKS["inpaint-random"](shape, hidden=0.5, noise_std=0.05, seed=1, dtype=F64)
    y = measure(prior.sample(2, torch.Generator().manual_seed(2)), task, seed=2)
    options: dict[str, Any] = {"solver": solver, "steps": 6, "value_range": None, "samples": 5}
    both = restore(y, task, prior, seed=[4, 7], **options)
    for b, seed in enumerate((4, 7)):
        alone = restore(y[b : b + 1], task, prior, seed=seed, **options)
        torch.testing.assert_close(alone.samples[0], both.samples[b], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(alone.stats["ess"][:, 0], both.stats["ess"][:, b], rtol=1e-9, atol=1e-10)
    monkeypatch.setattr("cmidiff.restoration.SMALL", 2 * 64)
    parts = restore(y[:1], task, prior, seed=4, **options)
    torch.testing.assert_close(parts.samples[0], both.samples[0], rtol=1e-9, atol=1e-10)
    assert both.stats["ess"].shape == (6, 2, 5)
    assert ("log_evidence" in both.stats) == isinstance(solver, TDS)
    assert restore(y[:1], task, prior, solver=solver, steps=2, value_range=None).samples.shape[1] == 16


def test_rows_of_a_group_are_those_of_their_image():
    problem = cloud(TDS(), 4)
    parts = tuple(replace(problem, images=images) for images in ((1, 0), (0, 1)))
    assert Group(parts, 0, False).rows.tolist() == [[1, 2], [0, 3]]


def test_a_particle_that_diverges_is_replaced():
    class Breaks(GaussianMixture):
        def __call__(self, x_t: Tensor, t: float) -> Prediction:
            mean = super().__call__(x_t, t).mean
            broken = torch.zeros(len(mean), 1, dtype=torch.bool)
            broken[3] = t < 0.5
            return Prediction(torch.where(broken, torch.nan, mean))

    own = gaussian_prior()
    prior = Breaks(own.weights, own.means, own.covariance_matrices(), VP())
    last = run(TDS(), steps=10, count=20, prior=prior)
    assert bool(last.alive.all())
    assert bool(last.x_s.isfinite().all())


def test_what_has_no_meaning_is_refused():
    wrong: list[tuple[type, dict[str, Any], str]] = [
        (TDS, {"threshold": 1.5}, "threshold must be in"),
        (TDS, {"scale": -1.0}, "scale"),
        (MCGDiff, {"kappa": 0.0}, "kappa must be a number > 0"),
        (FPS, {"renewal": 0.0}, "renewal must be in"),
    ]
    for solver, options, match in wrong:
        with pytest.raises(ValueError, match=match):
            solver(**options)
    shape = (1, 8, 8)
    task = TASKS["denoise"](shape, noise_std=0.1, dtype=F64)
    y = 0 * task.A(torch.ones(1, *shape, dtype=F64))
    for name in ("tds", "mcgdiff", "fps"):
        with pytest.raises(ValueError, match="uses the noise of the sampler"):
            restore(y, task, three_images(shape), solver=name, sampler="ddim")
