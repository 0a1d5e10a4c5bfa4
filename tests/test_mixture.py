"""The exact prior against log-densities written out here, automatic differentiation and large samples."""

import math

import pytest
import torch
from torch import Tensor

from cmidiff.prior import GaussianMixture
from cmidiff.prior.mixture import dense
from cmidiff.schedule import VE, VP, RectifiedFlow
from tests.cases import F64, PHYSICS, dense_denoiser, generator, matrix_physics, mixture, randn, spd

TIMES = [(None, 20.0), (None, 400.0), (VP(), 0.5), (VE(), 0.7), (RectifiedFlow(), 0.6)]


def log_normal(x: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    r = x - mean
    quadratic = (r * torch.linalg.solve(cov, r.mT).mT).sum(-1)
    return -0.5 * (quadratic + torch.logdet(cov) + len(cov) * math.log(2 * math.pi))


def log_density(prior: GaussianMixture, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
    """``log sum_k w_k N(x; alpha mu_k, alpha^2 C_k + sigma^2 I)``, dense."""
    eye = torch.eye(prior.d, dtype=F64)
    parts = [
        w.log() + log_normal(x, alpha * m, alpha**2 * c + sigma**2 * eye)
        for w, m, c in zip(prior.weights, prior.means, prior.covariance_matrices(), strict=True)
    ]
    return torch.logsumexp(torch.stack(parts), 0)


@pytest.mark.parametrize(("schedule", "t"), TIMES)
def test_density_score_denoiser_and_covariance(schedule, t):
    prior = mixture(schedule=schedule)
    alpha, sigma = prior.schedule(t)
    x_t = alpha * prior.sample(3, generator(1)) + sigma * randn(3, 12, seed=2)
    torch.testing.assert_close(prior.log_prob(x_t, t), log_density(prior, x_t, alpha, sigma), rtol=1e-11, atol=1e-11)
    x = x_t.clone().requires_grad_()
    score = torch.autograd.grad(log_density(prior, x, alpha, sigma).sum(), x)[0]
    torch.testing.assert_close(prior.score(x_t, t), score, rtol=1e-10, atol=1e-10)
    x_hat, jacobian = dense_denoiser(prior, x_t, t)
    torch.testing.assert_close(prior(x_t, t).mean, x_hat, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(prior.covariance(x_t, t), sigma**2 / alpha * jacobian, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("schedule", "t"), TIMES)
def test_posterior_covariance_is_the_denoisers_jacobian(schedule, t):
    prior = mixture(schedule=schedule)
    alpha, sigma = prior.schedule(t)
    for x_t in randn(3, 12, seed=3):
        jacobian = torch.autograd.functional.jacobian(lambda x: prior(x[None], t).mean[0], x_t)
        covariance = prior.covariance(x_t[None], t)[0]
        assert float((covariance - sigma**2 / alpha * jacobian).abs().max()) <= 1e-12


def test_denoiser_is_the_mean_of_a_one_dimensional_integral():
    prior = GaussianMixture(
        torch.tensor([0.3, 0.7], dtype=F64),
        torch.tensor([[-1.0], [0.8]], dtype=F64),
        torch.tensor([[0.04], [0.3]], dtype=F64),
        VP(),
    )
    alpha, sigma = prior.schedule(0.4)
    x_0 = torch.linspace(-8, 8, 200001, dtype=F64)
    density = sum(
        w * torch.exp(-0.5 * (x_0 - m) ** 2 / v) / v.sqrt()
        for w, m, v in zip(prior.weights, prior.means[:, 0], prior.eigenvalues[:, 0], strict=True)
    )
    for x_t in (-0.5, 0.1, 1.2):
        p = density * torch.exp(-0.5 * (x_t - alpha * x_0) ** 2 / sigma**2)
        mean = (p * x_0).sum() / p.sum()
        variance = (p * (x_0 - mean) ** 2).sum() / p.sum()
        at = torch.tensor([[x_t]], dtype=F64)
        torch.testing.assert_close(prior(at, 0.4).mean[0, 0], mean, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(prior.covariance(at, 0.4)[0, 0, 0], variance, rtol=1e-9, atol=1e-10)


def test_a_row_of_a_batch_is_on_its_own():
    prior, x_t = mixture(), randn(4, 12)
    torch.testing.assert_close(prior(x_t, 300.0).mean[2:3], prior(x_t[2:3], 300.0).mean, rtol=1e-13, atol=1e-13)


def test_diagonal_is_dense_with_diagonal_matrices():
    means, variances = randn(3, 2, 3), torch.rand(3, 2, 3, generator=generator(0), dtype=F64) + 0.1
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    thin = GaussianMixture(weights, means, variances)
    full = GaussianMixture(weights, means, torch.diag_embed(variances.flatten(1)))
    x_t, physics = randn(4, 2, 3, seed=5), matrix_physics(randn(2, 6, seed=6), (2, 3))
    for name in ("log_prob", "score", "covariance"):
        torch.testing.assert_close(getattr(thin, name)(x_t, 300.0), getattr(full, name)(x_t, 300.0))
    torch.testing.assert_close(thin(x_t, 300.0).mean, full(x_t, 300.0).mean)
    for ours, theirs in zip(thin.moments(), full.moments(), strict=True):
        torch.testing.assert_close(ours, theirs)
    y = randn(1, 2, seed=7)
    for ours, theirs in zip(
        thin.posterior(y, physics, 0.2).moments(), full.posterior(y, physics, 0.2).moments(), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("noise_std", [0.05, 0.5])
@pytest.mark.parametrize("m", [2, 5, 15])
def test_posterior_is_bayes_rule(m, noise_std):
    """``log p(x | y) - log p(x) - log N(y; A x, s^2 I)`` does not depend on ``x``."""
    prior, matrix = mixture(), randn(m, 12, seed=4)
    y = (matrix @ prior.sample(1, generator(3))[0] + noise_std * randn(m, seed=5))[None]
    posterior = prior.posterior(y, matrix, noise_std)
    x = posterior.sample(50, generator(6))
    likelihood = log_normal(y.expand(50, m), x @ matrix.mT, noise_std**2 * torch.eye(m, dtype=F64))
    evidence = log_density(posterior, x) - log_density(prior, x) - likelihood
    assert float(evidence.std()) < 1e-6
    torch.testing.assert_close(prior.posterior(y, matrix_physics(matrix), noise_std).means, posterior.means)


def test_posterior_evidence_is_the_density_of_the_measurement():
    prior, matrix, s = mixture(), randn(3, 12, seed=4), 0.3
    y, x = randn(1, 3, seed=9), randn(1, 12, seed=8)
    at = log_normal(y, x @ matrix.mT, s**2 * torch.eye(3, dtype=F64))
    evidence = log_density(prior, x) + at - log_density(prior.posterior(y, matrix, s), x)
    parts = [
        w.log() + log_normal(y, (matrix @ m)[None], matrix @ c @ matrix.mT + s**2 * torch.eye(3, dtype=F64))
        for w, m, c in zip(prior.weights, prior.means, prior.covariance_matrices(), strict=True)
    ]
    torch.testing.assert_close(evidence, torch.logsumexp(torch.stack(parts), 0), rtol=1e-9, atol=1e-9)


def test_moments_and_samples_agree():
    prior = mixture(d=5, k=3)
    mean, covariance = prior.moments()
    direct = sum(w * m for w, m in zip(prior.weights, prior.means, strict=True))
    second = sum(
        w * (c + torch.outer(m, m))
        for w, m, c in zip(prior.weights, prior.means, prior.covariance_matrices(), strict=True)
    )
    torch.testing.assert_close(mean, direct)
    torch.testing.assert_close(covariance, second - torch.outer(mean, mean))
    count = 200_000
    x = prior.sample(count, generator(0))
    assert float(((x.mean(0) - mean) / (covariance.diagonal() / count).sqrt()).abs().max()) < 4.5
    sampled = torch.cov(x.mT)
    assert float((sampled - covariance).abs().max()) < 0.02 * float(covariance.diagonal().max())
    below = (x[:, 0] < mean[0]).to(F64).mean()  # a mixture's own shape, not only its moments
    normal = torch.distributions.Normal(prior.means[:, 0], prior.covariance_matrices()[:, 0, 0].sqrt())
    assert abs(float(below - (prior.weights * normal.cdf(mean[0])).sum())) < 4.5 * 0.5 / count**0.5


def test_shapes_of_signals_are_kept():
    means = randn(2, 3, 4, 5)
    prior = GaussianMixture(torch.ones(2, dtype=F64), means, torch.full_like(means, 0.1))
    assert prior.sample(7, generator(0)).shape == (7, 3, 4, 5)
    assert prior.moments()[0].shape == (3, 4, 5)
    assert prior(randn(2, 3, 4, 5), 10.0).mean.shape == (2, 3, 4, 5)


def test_degenerate_components_are_allowed():
    """A covariance of rank one: the denoiser stays on its line."""
    direction = randn(6, seed=1)
    prior = GaussianMixture(
        torch.ones(1, dtype=F64), torch.zeros(1, 6, dtype=F64), torch.outer(direction, direction)[None]
    )
    x_hat = prior(randn(3, 6), 200.0).mean
    along = (x_hat @ direction / direction.square().sum())[:, None] * direction
    torch.testing.assert_close(x_hat, along, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["deblur-motion", "colorize", "tomography"])
def test_dense_matrix_of_a_physics(name):
    case = PHYSICS[name]
    physics, x = case.build(0.1), randn(1, *case.shape)
    torch.testing.assert_close(dense(physics, case.shape) @ x.flatten(), physics.A(x).flatten())


def refused(weights, means, covariances, match):
    with pytest.raises(ValueError, match=match):
        GaussianMixture(
            torch.as_tensor(weights, dtype=F64),
            torch.as_tensor(means, dtype=F64),
            torch.as_tensor(covariances, dtype=F64),
        )


def test_what_is_no_mixture_is_refused():
    eye = torch.eye(2)[None]
    refused([1.0, 1.0], torch.zeros(1, 2), eye, "weights must have shape")
    refused([1.0], torch.zeros(1, 2), torch.eye(3)[None], "covariances must have shape")
    refused([1.0], torch.tensor([[0.0, math.nan]]), eye, "means must be finite")
    refused([-1.0], torch.zeros(1, 2), eye, "weights must be positive")
    refused([1.0], torch.zeros(1, 2), -eye, "positive semi-definite")
    refused([1.0], torch.zeros(1, 2), torch.tensor([[[1.0, 0.9], [-0.9, 1.0]]]), "symmetric")
    with pytest.raises(ValueError, match="noise_std > 0"):
        mixture().posterior(randn(1, 2), randn(2, 12), 0.0)


def test_a_covariance_in_one_precision_of_symmetry_is_accepted():
    c = spd(4, seed=0).to(torch.float32)
    c[0, 1] += 1e-7
    GaussianMixture(torch.ones(1), torch.zeros(1, 4), c[None])
