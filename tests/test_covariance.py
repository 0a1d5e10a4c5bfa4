"""Products with ``Sigma_post``, ``S^-1`` and ``S^-1/2`` against dense matrices."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from cmidiff.covariance import NOISE_FLOOR, Diagonal, Exact, Isotropic, bind, diagonal_variance, isotropic_variance
from cmidiff.prior import GaussianMixture, NetworkPrior
from cmidiff.schedule import VE, VP, RectifiedFlow
from cmidiff.step import Step
from tests.cases import F64, Bulk, measured, mixture, randn, spd, step_at

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


def assert_products(covariance, sigma: Tensor, noise_std: float, rtol: float) -> None:
    v, e = randn(len(sigma), D, seed=20), randn(len(sigma), M, seed=21)
    ours = [covariance.product(v), covariance.inverse(v), covariance.solve(e), covariance.whiten(e)]
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
    assert_products(Exact(step, 40), prior.covariance(step.x_t.detach(), t), noise_std, 1e-6)


def test_exact_solve_is_exact_to_rounding_after_m_iterations():
    step, e = a_step(), randn(2, M, seed=21)
    prior = step.prior
    assert isinstance(prior, GaussianMixture)
    sigma = prior.covariance(step.x_t.detach(), step.t)
    s = 0.3**2 * torch.eye(M, dtype=F64) + MATRIX @ sigma @ MATRIX.mT
    torch.testing.assert_close(Exact(step, M).solve(e), torch.linalg.solve(s, e) @ MATRIX, rtol=1e-7, atol=1e-9)


def test_isotropic():
    step = a_step()
    assert_products(Isotropic(step, 0.4), 0.4 * torch.eye(D, dtype=F64).expand(2, D, D), 0.3, 1e-7)


def test_diagonal():
    step, variance = a_step(), torch.rand(2, D, dtype=F64) + 0.1
    assert_products(Diagonal(step, 100, variance), torch.diag_embed(variance), 0.3, 1e-6)


def test_a_noise_free_measurement_has_a_floor_in_iterated_systems():
    step, variance = a_step(0.0), torch.rand(2, D, dtype=F64) + 0.1
    e = randn(2, M, seed=21)
    theirs = dense_products(torch.diag_embed(variance), NOISE_FLOOR, e @ MATRIX, e)[2]
    torch.testing.assert_close(Diagonal(step, 100, variance).solve(e), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("schedule", [None, VP(), VE(), RectifiedFlow()])
@pytest.mark.parametrize("variance", [1.0, 0.3])
def test_isotropic_variance_is_that_of_a_white_prior(schedule, variance):
    white = GaussianMixture(
        torch.ones(1, dtype=F64), torch.zeros(1, D, dtype=F64), torch.full((1, D), variance, dtype=F64), schedule
    )
    t = 300.0 if schedule is None else 0.4
    step = step_at(white, measured(MATRIX, randn(1, M), 0.3), randn(1, D), t, 0.5 * t)
    ours = isotropic_variance(step, variance) * torch.eye(D, dtype=F64)
    torch.testing.assert_close(white.covariance(step.x_t.detach(), t)[0], ours, rtol=1e-12, atol=1e-14)


def test_diagonal_variance_is_the_diagonal_of_the_covariance_on_average():
    """Correlations small enough that no draw meets the bounds, which would bias the mean."""
    cov = torch.diag(torch.linspace(0.2, 0.6, D, dtype=F64)) + 0.01 * spd(D, seed=1)
    prior = GaussianMixture(torch.ones(1, dtype=F64), randn(1, D), cov[None])
    x_t = randn(1, D, seed=13).expand(4000, D)
    step = step_at(prior, measured(MATRIX, randn(1, M), 0.3), x_t, 300.0, 200.0, draws=Bulk(0))
    sigma = torch.linalg.inv(torch.linalg.inv(cov) + torch.eye(D, dtype=F64) / step.ratio**2)
    draws = diagonal_variance(step)
    assert bool(((draws > 1e-4 * step.ratio**2) & (draws < step.ratio**2)).all())
    z = (draws.mean(0) - sigma.diagonal()) / (draws.std(0) / 4000**0.5)
    assert float(z.abs().max()) < 4.5


def test_diagonal_variance_is_exact_for_a_diagonal_prior_and_the_ones_probe_gives_row_sums():
    variances = torch.rand(1, D, dtype=F64) + 0.2
    white = GaussianMixture(torch.ones(1, dtype=F64), randn(1, D), variances)
    cases: list[tuple[GaussianMixture, Literal["rademacher", "ones"]]] = [
        (white, "rademacher"),
        (white, "ones"),
        (mixture(k=1), "ones"),
    ]
    for prior, probe in cases:
        step = step_at(prior, measured(MATRIX, randn(1, M), 0.3), randn(1, D), 300.0, 200.0)
        sigma = prior.covariance(step.x_t.detach(), 300.0)[0]
        theirs = sigma.sum(1).clamp(1e-4 * step.ratio**2, step.ratio**2)
        torch.testing.assert_close(diagonal_variance(step, probe=probe)[0], theirs, rtol=1e-8, atol=1e-10)


def test_diagonal_variance_stays_within_its_bounds():
    """A network whose Jacobian is negative or huge."""
    for slope, bound in ((-2.0, 1e-4), (50.0, 1.0)):
        prior = NetworkPrior(lambda x, t, slope=slope: slope * x, "x0", channels=None)
        step = step_at(prior, measured(MATRIX, randn(1, M), 0.3), randn(1, D), 300.0, 200.0)
        torch.testing.assert_close(diagonal_variance(step), torch.full((1, D), bound * step.ratio**2, dtype=F64))


def test_bind():
    step = a_step()
    assert isinstance(bind("isotropic", step), Isotropic)
    assert isinstance(bind("diagonal", step), Diagonal)
    assert isinstance(bind("exact", step), Exact)
    with pytest.raises(ValueError, match="covariance must be"):
        bind("full", step)  # pyright: ignore[reportArgumentType]


def test_a_network_with_a_bad_jacobian_does_not_break_the_solve():
    """Neither symmetric nor positive: the solution stays finite and no longer than without any covariance."""
    weight = spd(D, seed=1) - 0.8 * torch.eye(D, dtype=F64) + 0.3 * torch.triu(randn(D, D))
    prior = NetworkPrior(lambda x, t: x @ weight.mT, "x0", channels=None)
    step = step_at(prior, measured(MATRIX, randn(3, M), 0.1), randn(3, D), 500.0, 400.0)
    e = randn(3, M, seed=30)
    solved = bind("exact", step).solve(e)
    assert bool(solved.isfinite().all())
    assert float(solved.norm()) <= float((e @ MATRIX).norm()) / 0.1**2
