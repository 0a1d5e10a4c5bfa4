"""The loop and its kernels against the solution for a Gaussian, which is known in closed form."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cmidiff.guidance import CADPS, DPS, Unconditional
from cmidiff.information import CMI
from cmidiff.prior import GaussianMixture, NetworkPrior, Prediction, Prior
from cmidiff.sampler import DDIM, Ancestral, ProbabilityFlow, Trace, sample, start
from cmidiff.schedule import DDPM, VE, VP, RectifiedFlow, Schedule, karras
from cmidiff.step import Kernel
from tests.cases import F64, Bulk, gaussian, gaussian_posterior, measured, mixture, randn, rows, step_at

D, M = 4, 2
MATRIX = randn(M, D, seed=81)
SCHEDULES: dict[str, Schedule] = {"ddpm": DDPM.linear(), "vp": VP(), "ve": VE(0.002, 50.0), "flow": RectifiedFlow()}
each_schedule = pytest.mark.parametrize("name", SCHEDULES)


def traces(
    prior, x_T: Tensor, times, kernel: Kernel, *, guidance=None, draws=None, y=None, noise_std=0.5, **kw
) -> list[Trace]:
    measurement = measured(randn(M, x_T.shape[1], seed=81), randn(len(x_T), M) if y is None else y, noise_std)
    return list(
        sample(
            prior,
            measurement,
            x_T,
            times,
            guidance=Unconditional() if guidance is None else guidance,
            kernel=kernel,
            draws=Bulk(0) if draws is None else draws,
            **kw,
        )
    )


def flowed(prior: GaussianMixture, x_t: Tensor, r_t: float, r_s: float) -> Tensor:
    """``x / alpha`` after the probability flow of a Gaussian: each principal axis scales with its own spread."""
    values, axes = torch.linalg.eigh(prior.covariance_matrices()[0])
    gain = ((values + r_s**2) / (values + r_t**2)).sqrt()
    return prior.means[0] + (((x_t - prior.means[0]) @ axes) * gain) @ axes.mT


def flow_error(schedule: Schedule, kernel: Kernel, steps: int) -> float:
    prior = gaussian(D, schedule=schedule)
    times = [schedule.time(r) for r in karras(steps + 1, 0.3, 8.0)]
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(times[0]), schedule(times[-1])
    x_T = alpha_t * prior.means + 0.7 * sigma_t * randn(3, D, seed=82)
    x_s = traces(prior, x_T, times, kernel)[-2].x_s / alpha_s
    return float((x_s - flowed(prior, x_T / alpha_t, sigma_t / alpha_t, sigma_s / alpha_s)).norm())


@each_schedule
@pytest.mark.parametrize(("kernel", "order"), [(ProbabilityFlow(2), 2), (ProbabilityFlow(1), 1), (DDIM(), 1)])
def test_order_of_convergence_of_the_probability_flow(name, kernel, order):
    errors = [flow_error(SCHEDULES[name], kernel, steps) for steps in (20, 40, 80)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


def test_eulers_rule_is_ddim_without_noise():
    for schedule in SCHEDULES.values():
        prior, times = gaussian(D, schedule=schedule), schedule.grid(7)
        x_T = schedule(times[0])[1] * randn(2, D, seed=83)
        euler, ddim = (traces(prior, x_T, times, kernel)[-1].x_s for kernel in (ProbabilityFlow(1), DDIM()))
        torch.testing.assert_close(euler, ddim, rtol=1e-8, atol=1e-9)


def test_ddim_with_full_noise_is_ancestral():
    for schedule in SCHEDULES.values():
        prior, times = mixture(D, schedule=schedule), schedule.grid(9)
        x_T = schedule(times[0])[1] * randn(2, D, seed=83)
        one, other = (traces(prior, x_T, times, kernel, draws=rows(2))[-1].x_s for kernel in (Ancestral(), DDIM(1.0)))
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


def test_the_last_step_ends_on_the_denoised_image():
    for kernel in (Ancestral(), Ancestral("large"), DDIM(), DDIM(1.0), ProbabilityFlow()):
        prior = mixture(D)
        last = traces(prior, randn(2, D), [500.0, 100.0], kernel)[-1]
        torch.testing.assert_close(last.x_s, last.x_hat, rtol=1e-10, atol=1e-12)


@each_schedule
@pytest.mark.parametrize("kernel", [Ancestral(), DDIM(1.0), DDIM(), ProbabilityFlow()])
def test_samples_of_a_gaussian_have_its_mean_and_covariance(name, kernel):
    schedule, count = SCHEDULES[name], 3000
    prior = gaussian(D, schedule=schedule)
    grid = [schedule.time(r) for r in karras(80, 0.01, 30.0)]
    times = [t for t, before in zip(grid, [math.inf, *grid], strict=False) if t < before]
    x_T = start(prior, times[0], Bulk(5), torch.zeros(count, D, dtype=F64))
    x = traces(prior, x_T, times, kernel)[-1].x_s
    mean, cov = prior.moments()
    scale = float(cov.diagonal().max())
    bias = 4.5 * (scale / count) ** 0.5 + 0.05  # the start forgets the mean at 1/30 of its size
    assert float((x.mean(0) - mean).abs().max()) < bias
    assert float((torch.cov(x.mT) - cov).abs().max()) < 0.15 * scale


def linear_gaussian(prior: GaussianMixture, times: list[float], variance: str) -> tuple[Tensor, Tensor]:
    """Mean and covariance that ancestral sampling has after its steps, by Bayes' rule for each and no sample."""
    eye, mu, cov = torch.eye(D, dtype=F64), prior.means[0], prior.covariance_matrices()[0]
    m, p = torch.zeros(D, dtype=F64), eye
    for t, s in zip(times, [*times[1:], -1.0], strict=True):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = prior.schedule(t), prior.schedule(s)
        gain = alpha_t * cov @ torch.linalg.inv(alpha_t**2 * cov + sigma_t**2 * eye)
        a = alpha_t / alpha_s
        beta = sigma_t**2 - a**2 * sigma_s**2
        weight_t, weight_0 = a * sigma_s**2 / sigma_t**2, alpha_s * beta / sigma_t**2
        step = weight_t * eye + weight_0 * gain
        noise = 0.0 if s < 0 else beta if variance == "large" else beta * sigma_s**2 / sigma_t**2
        m, p = step @ m + weight_0 * (mu - alpha_t * gain @ mu), step @ p @ step.mT + noise * eye
    return m, p


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_chain_has_the_moments_of_its_linear_recursion(variance):
    """With few steps the kernel is biased, by an amount that is known exactly."""
    prior, count = gaussian(D), 20_000
    times = prior.schedule.grid(12)
    x_T = start(prior, times[0], Bulk(5), torch.zeros(count, D, dtype=F64))
    x = traces(prior, x_T, times, Ancestral(variance))[-1].x_s
    mean, cov = linear_gaussian(prior, times, variance)
    assert float(((x.mean(0) - mean) / (cov.diagonal() / count).sqrt()).abs().max()) < 4.5
    assert float((torch.cov(x.mT) - cov).abs().max()) < 4.5 * float(cov.diagonal().max()) * (2 / count) ** 0.5


def test_churn_keeps_the_distribution():
    prior, count = gaussian(D, schedule=VE()), 3000
    times = karras(40, 0.01, 30.0)
    x_T = start(prior, times[0], Bulk(5), torch.zeros(count, D, dtype=F64))
    run = traces(prior, x_T, times, ProbabilityFlow(churn=20.0))
    mean, cov = prior.moments()
    assert run[10].t == pytest.approx(times[10] * min(1 + 20 / 40, math.sqrt(2)))
    assert float((run[-1].x_s.mean(0) - mean).abs().max()) < 4.5 * float(cov.diagonal().max() / count) ** 0.5 + 0.05
    assert float((torch.cov(run[-1].x_s.mT) - cov).abs().max()) < 0.15 * float(cov.diagonal().max())


def test_churned_state_has_the_variance_of_its_level():
    for schedule in SCHEDULES.values():
        prior, t = gaussian(D, schedule=schedule), schedule.time(2.0)
        step = step_at(
            prior, measured(MATRIX, randn(1, M), 0.5), torch.zeros(20000, D, dtype=F64), t, 0.9 * t, draws=Bulk(1)
        )
        churned = ProbabilityFlow(churn=3.0).prepare(step)  # a level 1.3 times as high
        alpha, sigma = schedule(churned.t)
        assert sigma / alpha == pytest.approx(2.6, rel=1e-9)
        assert float(churned.x_t.std()) == pytest.approx(alpha * math.sqrt(2.6**2 - 2.0**2), rel=0.02)


# learned variance


class Headed(Prior):
    """A prior whose head asks for a given fraction of the log-variance."""

    def __init__(self, fraction: Tensor) -> None:
        self.schedule, self.fraction = DDPM.linear(), fraction

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        return Prediction(0.5 * x_t, self.fraction.expand_as(x_t))


def test_learned_variance_is_between_the_bounds_in_the_logarithm():
    fraction = torch.tensor([0.0, 0.3, 1.0, 1.2], dtype=F64)
    step = step_at(Headed(fraction), measured(MATRIX, randn(2, M), 0.5), randn(2, D), 400.0, 350.0)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
    large = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
    small = large * sigma_s**2 / sigma_t**2
    variance = large**fraction * small ** (1 - fraction)
    for name in ("auto", "learned"):
        torch.testing.assert_close(torch.as_tensor(Ancestral(name).std(step))[0] ** 2, variance)
    assert Ancestral("small").std(step) == pytest.approx(small**0.5)
    assert Ancestral("large").std(step) == pytest.approx(large**0.5)
    assert Ancestral().std(replace(step, t=0.0, s=-1.0)) == 0.0
    headless = step_at(gaussian(D), step.measurement, randn(2, D), 400.0, 350.0)
    with pytest.raises(ValueError, match="learned-variance head"):
        Ancestral("learned").std(headless)


def test_networks_predict_the_clean_image_in_each_parametrisation():
    x_0, eps, schedule = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1), VP()
    for t in (0.1, 0.9):
        alpha, sigma = schedule(t)
        x_t = alpha * x_0 + sigma * eps
        for name, out in {"eps": eps, "x0": x_0, "v": alpha * eps - sigma * x_0, "flow": eps - x_0}.items():
            prior = NetworkPrior(lambda x, t, out=out: out, name, schedule)  # pyright: ignore[reportArgumentType]
            torch.testing.assert_close(prior(x_t, t).mean, x_0, rtol=1e-10, atol=1e-10)
    both = NetworkPrior(lambda x, t: torch.cat([eps, 0.4 * torch.ones_like(x)], 1), learned_variance=True)
    fraction = both(x_0, 10.0).variance_fraction
    assert fraction is not None
    torch.testing.assert_close(fraction, torch.full_like(x_0, 0.7))


# posteriors


@pytest.mark.parametrize("kernel", [Ancestral(), ProbabilityFlow()])
def test_cadps_with_the_exact_covariance_samples_the_exact_posterior(kernel):
    d, count, noise = 6, 1000, 0.4
    prior = gaussian(d, schedule=VP())
    matrix, y = randn(M, d, seed=81), randn(1, M, seed=84)
    times = [VP().time(r) for r in karras(120, 0.01, 100.0)]
    x_T = start(prior, times[0], Bulk(5), torch.zeros(count, d, dtype=F64))
    guidance = CADPS("exact", iterations=M + 2)
    x = traces(prior, x_T, times, kernel, guidance=guidance, y=y.expand(count, M), noise_std=noise)[-1].x_s
    mean, cov = gaussian_posterior(prior.means[0], prior.covariance_matrices()[0], matrix, y[0], noise)
    axes, values = torch.linalg.eigh(cov)[1], torch.linalg.eigvalsh(cov)
    z = ((x.mean(0) - mean) @ axes) / (values / count).sqrt()
    assert float(z.abs().max()) < 5.0
    ratio = ((x - x.mean(0)) @ axes).var(0) / values
    assert float((ratio - 1).abs().max()) < 4.5 * (2 / count) ** 0.5 + 0.06  # the steps take a few per cent


def test_the_trace_tells_what_moved():
    prior, draws = mixture(D), rows(2)
    times = prior.schedule.grid(6)
    x_T, y = randn(2, D), randn(2, M)
    plain = traces(prior, x_T, times, Ancestral(), draws=draws, y=y)
    assert all(float(trace.guidance.max()) < 1e-12 for trace in plain)
    assert all(float(trace.cmi.max()) == 0 for trace in plain)
    first = traces(prior, x_T, times, Ancestral(), draws=draws, y=y, guidance=DPS(0.3), cmi=CMI(0.2, window=(0, 1e9)))[
        0
    ]
    corrected = traces(prior, x_T, times, Ancestral(), draws=draws, y=y, cmi=CMI(0.2, window=(0, 1e9)))[0]
    torch.testing.assert_close(first.guidance, (first.x_s - corrected.x_s).norm(dim=1), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(corrected.cmi, (corrected.x_s - plain[0].x_s).norm(dim=1), rtol=1e-6, atol=1e-12)
    x_hat = prior(x_T, times[0]).mean
    misfit = (y - x_hat @ MATRIX.mT).norm(dim=1) / (0.5 * M**0.5)
    torch.testing.assert_close(first.misfit, misfit)


def test_rows_do_not_see_each_other():
    prior, draws = mixture(D), rows(3)
    times, x_T, y = prior.schedule.grid(10), randn(3, D), randn(3, M)
    options = {"guidance": DPS(0.3), "cmi": CMI(0.2)}
    together = traces(prior, x_T, times, Ancestral(), draws=draws, y=y, **options)[-1].x_s
    for k in range(3):
        own = replace(draws, rows=draws.rows[k : k + 1])
        alone = traces(prior, x_T[k : k + 1], times, Ancestral(), draws=own, y=y[k : k + 1], **options)[-1].x_s
        torch.testing.assert_close(alone[0], together[k], rtol=1e-9, atol=1e-10)


class Sick(GaussianMixture):
    """A mixture whose answer is not a number for states that are marked, in the second half of the run."""

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        mean = super().__call__(x_t, t).mean
        marked = (x_t.abs() > 100).any(1, keepdim=True) & (t < 900)
        return Prediction(torch.where(marked, math.nan, mean))


@pytest.mark.parametrize("covariance", ["isotropic", "exact"])
def test_a_row_that_diverges_costs_the_others_nothing(covariance):
    well = mixture(D)
    prior = Sick(well.weights, well.means, well.covariance_matrices())
    times, x_T, y = prior.schedule.grid(8), randn(3, D), randn(3, M)
    sick = x_T.clone()
    sick[1] = 9e3
    options = {"guidance": CADPS(covariance), "cmi": CMI(0.1, covariance=covariance), "y": y}
    good, bad = (traces(prior, x, times, DDIM(), draws=rows(3), **options) for x in (x_T, sick))
    for row in (0, 2):
        torch.testing.assert_close(bad[-1].x_s[row], good[-1].x_s[row])
    assert bad[-1].alive.tolist() == [True, False, True]
    assert all(bool(trace.x_s.isfinite().all() and trace.x_hat.isfinite().all()) for trace in bad)


def test_start_has_the_variance_of_the_noisiest_level():
    like = torch.zeros(20000, 2, dtype=F64)
    for schedule, std in ((DDPM.linear(), 1.0), (VP(), 1.0), (VE(), 80.0), (RectifiedFlow(), 0.999)):
        x_T = start(gaussian(2, schedule=schedule), schedule.grid(5)[0], Bulk(2), like)
        assert float(x_T.std()) == pytest.approx(std, rel=0.02)


def test_draws_depend_on_their_names_and_on_nothing_else():
    like = torch.zeros(2, 500, dtype=F64)
    draws = rows(2, seed=3)
    first = draws.normal("kernel", 4, like)
    draws.normal("cmi", 4, like)
    assert torch.equal(draws.normal("kernel", 4, like), first)
    others = [draws.normal("cmi", 4, like), draws.normal("kernel", 5, like), rows(2, seed=4).normal("kernel", 4, like)]
    flat = torch.stack([*first, *(row for other in others for row in other)])
    correlation = np.corrcoef(flat.numpy())
    assert np.abs(correlation - np.eye(len(flat))).max() < 4.5 / 500**0.5
    assert abs(float(flat.mean())) < 4.5 / flat.numel() ** 0.5
    assert abs(float(flat.var()) - 1) < 4.5 * (2 / flat.numel()) ** 0.5
