"""Products with ``Sigma_post``, ``S^-1`` and ``S^-1/2`` against dense matrices, and what each covariance is."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidiff import registry
from cmidiff.covariance import (
    Bound,
    Convert,
    Diagonal,
    Exact,
    Hybrid,
    Isotropic,
    RowSum,
    SecondMoments,
    isotropic_variance,
)
from cmidiff.covariance.base import NOISE_FLOOR
from cmidiff.covariance.diagonal import BoundDiagonal, of_paper, smooth
from cmidiff.covariance.isotropic import BoundIsotropic
from cmidiff.covariance.moments import moments_of, wiener_estimate
from cmidiff.measurement import Measurement
from cmidiff.moments import SecondMoments as Moments
from cmidiff.physics import from_mask
from cmidiff.prior import GaussianMixture, NetworkPrior
from cmidiff.schedule import VE, VP, RectifiedFlow
from cmidiff.step import Step
from tests.cases import (
    COVARIANCES,
    F64,
    PHYSICS,
    Bulk,
    dense_matrix,
    gaussian_posterior,
    generator,
    measured,
    mixture,
    randn,
    spd,
    step_at,
)

D, M = 12, 5
MATRIX = randn(M, D, seed=11)


def a_step(noise_std: float = 0.3, schedule=None, t: float = 400.0, batch: int = 2, **options) -> Step:
    prior = mixture(schedule=schedule)
    given = measured(MATRIX, randn(batch, M, seed=12), noise_std)
    return step_at(prior, given, randn(batch, D, seed=13), t, 0.5 * t, **options)


def dense_products(sigma: Tensor, noise_std: float, v: Tensor, e: Tensor) -> list[Tensor]:
    """``Sigma v``, ``Sigma^-1 v``, ``A^T S^-1 e`` and ``A^T S^-1/2 e`` of each row."""
    out = []
    for matrix, v_b, e_b in zip(sigma, v, e, strict=True):
        values, vectors = torch.linalg.eigh(noise_std**2 * torch.eye(M, dtype=F64) + MATRIX @ matrix @ MATRIX.mT)
        inverse, root = ((vectors * values**p) @ vectors.mT for p in (-1.0, -0.5))
        out.append((matrix @ v_b, torch.linalg.solve(matrix, v_b), MATRIX.mT @ inverse @ e_b, MATRIX.mT @ root @ e_b))
    return [torch.stack(parts) for parts in zip(*out, strict=True)]


def assert_products(bound: Bound, sigma: Tensor, noise_std: float, rtol: float) -> None:
    v, e = randn(len(sigma), D, seed=20), randn(len(sigma), M, seed=21)
    ours = [bound.product(v), bound.inverse(v), bound.solve(e), bound.whiten(e)]
    for one, other in zip(ours, dense_products(sigma, noise_std, v, e), strict=True):
        assert float((one - other).norm() / other.norm()) < rtol


@pytest.mark.parametrize(
    ("schedule", "t"), [(None, 100.0), (None, 600.0), (VP(), 0.4), (VE(), 0.5), (RectifiedFlow(), 0.3)]
)
@pytest.mark.parametrize("noise_std", [0.05, 1.0])
def test_exact(schedule, t, noise_std):
    step = a_step(noise_std, schedule, t)
    prior = step.prior
    assert isinstance(prior, GaussianMixture)
    assert_products(Exact(40).at(step), prior.covariance(step.x_t.detach(), t), noise_std, 1e-6)


def test_exact_solve_is_exact_to_rounding_after_m_iterations():
    step, e = a_step(), randn(2, M, seed=21)
    prior = step.prior
    assert isinstance(prior, GaussianMixture)
    sigma = prior.covariance(step.x_t.detach(), step.t)
    s = 0.3**2 * torch.eye(M, dtype=F64) + MATRIX @ sigma @ MATRIX.mT
    torch.testing.assert_close(Exact(M).at(step).solve(e), torch.linalg.solve(s, e) @ MATRIX, rtol=1e-7, atol=1e-9)


def test_isotropic():
    step = a_step()
    assert_products(BoundIsotropic(step, 0.4), 0.4 * torch.eye(D, dtype=F64).expand(2, D, D), 0.3, 1e-7)


def test_diagonal():
    step, variance = a_step(), torch.rand(2, D, dtype=F64) + 0.1
    assert_products(BoundDiagonal(step, 100, variance), torch.diag_embed(variance), 0.3, 1e-6)


def test_a_noise_free_measurement_has_a_floor_in_iterated_systems():
    step, variance = a_step(0.0), torch.rand(2, D, dtype=F64) + 0.1
    e = randn(2, M, seed=21)
    theirs = dense_products(torch.diag_embed(variance), NOISE_FLOOR, e @ MATRIX, e)[2]
    torch.testing.assert_close(BoundDiagonal(step, 100, variance).solve(e), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("schedule", [None, VP(), VE(), RectifiedFlow()])
@pytest.mark.parametrize("variance", [1.0, 0.3])
def test_isotropic_variance_is_that_of_a_white_prior(schedule, variance):
    white = GaussianMixture(
        torch.ones(1, dtype=F64), torch.zeros(1, D, dtype=F64), torch.full((1, D), variance, dtype=F64), schedule
    )
    t = 300.0 if schedule is None else 0.4
    step = step_at(white, measured(MATRIX, randn(1, M), 0.3), randn(1, D), t, 0.5 * t)
    theirs = white.covariance(step.x_t.detach(), t)[0]
    torch.testing.assert_close(
        isotropic_variance(step, variance) * torch.eye(D, dtype=F64), theirs, rtol=1e-12, atol=1e-14
    )
    assert white.variance == pytest.approx(variance)
    for bound in (Isotropic().at(step), Isotropic(variance).at(step)):
        torch.testing.assert_close(bound.product(torch.eye(D, dtype=F64)), theirs, rtol=1e-12, atol=1e-14)


def test_diagonal_variance_is_the_diagonal_of_the_covariance_on_average():
    """Correlations small enough that no draw meets the bounds, which would bias the mean."""
    cov = torch.diag(torch.linspace(0.2, 0.6, D, dtype=F64)) + 0.01 * spd(D, seed=1)
    prior = GaussianMixture(torch.ones(1, dtype=F64), randn(1, D), cov[None])
    x_t = randn(1, D, seed=13).expand(4000, D)
    step = step_at(prior, measured(MATRIX, randn(1, M), 0.3), x_t, 300.0, 200.0, draws=Bulk(0))
    sigma = torch.linalg.inv(torch.linalg.inv(cov) + torch.eye(D, dtype=F64) / step.ratio**2)
    draws = of_paper().at(step).variance
    assert bool(((draws > 1e-4 * isotropic_variance(step)) & (draws < step.ratio**2)).all())
    averaged = Diagonal(probes=9, floor=1e-4).at(step).variance
    torch.testing.assert_close(averaged.std(0), draws.std(0) / 3, rtol=0.1, atol=0)
    z = (draws.mean(0) - sigma.diagonal()) / (draws.std(0) / 4000**0.5)
    assert float(z.abs().max()) < 4.5


def test_a_diagonal_is_exact_for_a_diagonal_prior_and_row_sums_are_those_of_the_covariance():
    variances = torch.rand(1, D, generator=generator(3), dtype=F64) + 0.2
    white = GaussianMixture(torch.ones(1, dtype=F64), randn(1, D), variances)
    for prior, choice in ((white, Diagonal()), (white, of_paper()), (white, RowSum()), (mixture(k=1), RowSum(1e-4))):
        step = step_at(prior, measured(MATRIX, randn(1, M), 0.3), randn(1, D), 300.0, 200.0)
        theirs = prior.covariance(step.x_t.detach(), 300.0)[0].sum(1)
        low = choice.floor * isotropic_variance(step)
        ours = choice.at(step).variance[0]
        torch.testing.assert_close(ours, theirs.clamp(low, step.ratio**2), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("choice", [Diagonal(), Diagonal(floor=1e-3), of_paper(), RowSum()], ids=str)
def test_a_diagonal_stays_within_its_bounds(choice):
    """A network whose Jacobian is negative or huge."""
    for slope in (-2.0, 50.0):
        prior = NetworkPrior(lambda x, t, slope=slope: slope * x, "x0", channels=None)
        step = step_at(prior, measured(MATRIX, randn(1, M), 0.3), randn(1, D), 300.0, 200.0)
        bound = choice.floor * isotropic_variance(step) if slope < 0 else step.ratio**2
        torch.testing.assert_close(choice.at(step).variance, torch.full((1, D), bound, dtype=F64))


def test_a_diagonal_is_averaged_over_the_neighbours_inside_the_image():
    values = randn(2, 3, 6, 7)
    ours = smooth(values, 3)
    for i, j in itertools.product(range(6), range(7)):
        near = values[..., max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        torch.testing.assert_close(ours[..., i, j], near.mean((-2, -1)))
    assert torch.equal(smooth(values, 1), values)
    assert torch.equal(smooth(randn(2, D), 5), randn(2, D))


def test_the_registered_covariances_are_in_the_table():
    registered = {type(registry.COVARIANCES.make(name)) for name in registry.COVARIANCES}
    assert registered == {type(choice) for choice in COVARIANCES.values()} | {Convert}  # Convert: a prior with a head


@pytest.mark.parametrize("name", COVARIANCES)
def test_solve_and_whiten_belong_to_the_product(name):
    """``A^T S^-1 e`` and ``A^T S^-1/2 e`` with ``S`` built from the covariance's own products."""
    for t in (50.0, 400.0, 800.0):
        step = a_step(t=t)
        bound = COVARIANCES[name].at(step)
        columns = torch.stack([bound.product(torch.eye(D, dtype=F64)[i].expand(2, D)) for i in range(D)], -1)
        assert_products(bound, columns, 0.3, 1e-6)


def test_a_hybrid_changes_at_its_noise_level():
    hybrid, step = Hybrid(), a_step(t=400.0)
    v = randn(2, D)
    for switch, other in ((0.9 * step.ratio, SecondMoments()), (1.1 * step.ratio, Exact())):
        bound = Hybrid(switch=switch).at(step)
        torch.testing.assert_close(bound.product(v), other.at(step).product(v))
    assert not hybrid.needs_graph(0.7)
    assert hybrid.needs_graph(0.5)
    assert Hybrid(high=Isotropic()).needs_graph(0.7)


# second moments


def dct_matrix(shape: tuple[int, ...]) -> Tensor:
    """The orthonormal DCT over all axes, (d, d), from its definition."""
    whole = torch.ones(1, 1, dtype=F64)
    for n in shape:
        k, i = torch.arange(n, dtype=F64)[:, None], torch.arange(n, dtype=F64)
        one = torch.cos(math.pi * k * (2 * i + 1) / (2 * n)) * (torch.where(k == 0, 1.0, 2.0) / n).sqrt()
        whole = torch.kron(whole, one)
    return whole


def stationary(shape: tuple[int, ...] = (3, 8, 8), schedule=None) -> tuple[GaussianMixture, Tensor]:
    """A Gaussian whose covariance is diagonal in the DCT domain, falling with the frequency, and that covariance."""
    q, d = dct_matrix(shape), math.prod(shape)
    table = torch.ones(shape, dtype=F64)
    for axis, n in enumerate(shape):
        table = table / (1 + torch.arange(n, dtype=F64).reshape([-1 if i == axis else 1 for i in range(len(shape))]))
    cov = q.mT @ (table.flatten()[:, None] * q)
    prior: Any = GaussianMixture(
        torch.ones(1, dtype=F64), 0.3 * randn(1, *shape, seed=5), cov.reshape(1, d, d), schedule
    )
    prior._moments = Moments(prior.means[0].reshape(shape), table)
    return prior, cov


@pytest.mark.parametrize(
    ("schedule", "t"), [(None, 100.0), (None, 900.0), (VP(), 0.4), (VE(), 0.5), (RectifiedFlow(), 0.3)]
)
@pytest.mark.parametrize("noise_std", [0.05, 1.0])
def test_second_moments_against_dense_matrices(schedule, t, noise_std):
    q, variances = dct_matrix((D,)), torch.linspace(1.5, 0.05, D, dtype=F64)
    prior: Any = mixture(schedule=schedule)
    prior._moments = Moments(torch.zeros(D, dtype=F64), variances)
    step = step_at(prior, measured(MATRIX, randn(2, M), noise_std), randn(2, D), t, 0.5 * t, graph=False)
    sigma = q.mT @ torch.diag(1 / (1 / variances + 1 / step.ratio**2)) @ q
    bound = SecondMoments(tolerance=1e-10).at(step)
    assert_products(bound, sigma.expand(2, D, D), noise_std, 1e-7)
    w = randn(2, D, seed=31)
    torch.testing.assert_close(bound.move(w), w @ sigma)
    assert not SecondMoments().needs_graph(step.ratio)


@pytest.mark.parametrize("name", ["denoise", "deblur-gaussian", "super-resolution", "inpaint-random", "own"])
def test_second_moments_have_the_exact_posterior_mean_at_every_step(name):
    """``x_hat'`` of Gaussian data, of images and at three noise levels."""
    prior, _ = stationary()
    case = PHYSICS[name]
    physics, noise = case.build(0.05), 0.05
    matrix, eye = dense_matrix(physics, case.shape), torch.eye(prior.d, dtype=F64)
    measurement = measured(matrix, physics.A(prior.sample(2, generator(7))).flatten(1), noise, case.shape)
    mean, cov = prior.means[0], prior.covariance_matrices()[0]
    for t in (100.0, 400.0, 990.0):
        step = step_at(prior, measurement, randn(2, *case.shape, seed=8), t, 0.5 * t, graph=False)
        bound = SecondMoments(tolerance=1e-10, iterations=400).at(step)
        x_hat = step.x_hat.detach()
        ours = x_hat + bound.move(bound.solve(measurement.residual(x_hat)))
        alpha, sigma = step.level_t
        stacked = torch.cat([matrix / noise, alpha / sigma * eye])
        data = torch.cat([measurement.y / noise, step.x_t.flatten(1) / sigma], 1)
        theirs = torch.stack([gaussian_posterior(mean, cov, stacked, one, 1.0)[0] for one in data])
        assert float((ours.flatten(1) - theirs).norm() / theirs.norm()) < 1e-6


def test_the_wiener_estimate_is_the_posterior_mean_of_a_gaussian():
    prior, cov = stationary()
    case = PHYSICS["super-resolution"]
    physics = case.build(0.05)
    matrix = dense_matrix(physics, case.shape)
    y = physics.A(prior.sample(2, generator(7))).flatten(1)
    theirs = torch.stack([gaussian_posterior(prior.means[0], cov, matrix, one, 0.05)[0] for one in y])
    ours = wiener_estimate(prior, measured(matrix, y, 0.05, case.shape), iterations=400)
    assert float((ours.flatten(1) - theirs).norm() / theirs.norm()) < 1e-3


def test_the_wiener_estimate_continues_the_surroundings_into_a_large_hole():
    """In single precision, where the inside of the hole hardly shows in the residual of the linear system."""
    k = torch.arange(48, dtype=torch.float64).clamp_min(0.5)
    spectrum = 100 / (k[:, None] ** 2 + k**2)  # the law of photographs, from hundreds to less than the noise
    prior: Any = SimpleNamespace(second_moments=Moments(torch.zeros(3), spectrum.expand(3, 48, 48)), variance=0.3)
    seen = torch.ones(1, 1, 48, 48)
    seen[..., 8:40, 8:40] = 0
    colour = torch.tensor([0.8, -0.3, -0.7]).reshape(1, 3, 1, 1)
    physics = from_mask(seen, (3, 48, 48), noise_std=0.02)
    measurement = Measurement(physics.A(colour.expand(1, 3, 48, 48)), physics, 0.02, (3, 48, 48), (3, 48, 48))
    assert float((wiener_estimate(prior, measurement) - colour).abs().max()) < 0.15


def test_moments_that_do_not_come_with_a_prior_are_those_of_its_samples():
    prior, _ = stationary()
    known: Any = prior.second_moments
    prior._moments = None  # pyright: ignore[reportAttributeAccessIssue]
    found = moments_of(prior, (3, 8, 8))
    assert moments_of(prior, (3, 8, 8)) is found
    ratio = found.variances / known.variances  # of 32 samples, chi-squared, in 20 steps
    assert float(ratio.log().mean().abs()) < 0.3
    assert bool(((ratio < 3) & (ratio > 1 / 3)).all())


def test_a_network_with_a_bad_jacobian_does_not_break_the_solve():
    """Neither symmetric nor positive: the solution stays finite and no longer than without any covariance."""
    weight = spd(D, seed=1) - 0.8 * torch.eye(D, dtype=F64) + 0.3 * torch.triu(randn(D, D))
    prior = NetworkPrior(lambda x, t: x @ weight.mT, "x0", channels=None)
    step = step_at(prior, measured(MATRIX, randn(3, M), 0.1), randn(3, D), 500.0, 400.0)
    e = randn(3, M, seed=30)
    solved = Exact().at(step).solve(e)
    assert bool(solved.isfinite().all())
    assert float(solved.norm()) <= float((e @ MATRIX).norm()) / 0.1**2


@pytest.mark.parametrize("name", ["isotropic", "moments", "diagonal", "exact"])
def test_what_is_scattered_has_the_covariance_of_the_posterior(name: str) -> None:
    """``(Sigma^-1 / scale + A^T A / sigma_y^2)^-1``; of the Jacobian its diagonal is taken."""
    count, scale, noise = 20000, 2.0, 0.3
    prior = GaussianMixture(torch.ones(1, dtype=F64), randn(1, D, seed=3), torch.linspace(0.2, 1.5, D, dtype=F64)[None])
    given = measured(MATRIX, randn(1, M, seed=12).expand(count, M), noise)
    step = step_at(prior, given, randn(1, D, seed=13).expand(count, D), 400.0, 350.0, draws=Bulk(5))
    bound = COVARIANCES[name].at(step)
    found = bound.scatter(scale)
    assert found is not None
    eye = torch.eye(D, dtype=F64)
    dense = (Diagonal(probes=1) if name == "exact" else COVARIANCES[name]).at(
        step_at(prior, measured(MATRIX, randn(D, M), noise), randn(1, D, seed=13).expand(D, D), 400.0, 350.0)
    )
    sigma = dense.product(eye)
    theirs = torch.linalg.inv(torch.linalg.inv(scale * sigma) + MATRIX.mT @ MATRIX / noise**2)
    ours = found.mT @ found / count
    assert float((ours - theirs).norm() / theirs.norm()) < 5 * math.sqrt(D / count)
    assert float(found.mean(0).norm()) < 5 * math.sqrt(float(theirs.trace()) / count)
