"""The loop and the samplers against the solution for a Gaussian, which is known in closed form."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cmidiff import registry
from cmidiff.covariance import Exact
from cmidiff.information import CMI
from cmidiff.loop import Trace, sample
from cmidiff.prior import GaussianMixture, NetworkPrior, Prediction, Prior
from cmidiff.samplers import DDIM, Ancestral, DPMSolver, ProbabilityFlow, Renoise
from cmidiff.schedule import DDPM, VE, VP, RectifiedFlow, Schedule, karras
from cmidiff.solvers import CADPS, DPS, PiGDM, Solver, Unconditional
from cmidiff.solvers.base import noise
from cmidiff.step import Carry, Problem, Sampler, Step
from tests.cases import (
    F64,
    SAMPLERS,
    SOLVERS,
    Bulk,
    gaussian,
    gaussian_posterior,
    measured,
    mixture,
    problem_of,
    randn,
    rows,
    step_at,
)

D, M = 4, 2
MATRIX = randn(M, D, seed=81)
SCHEDULES: dict[str, Schedule] = {"ddpm": DDPM.linear(), "vp": VP(), "ve": VE(0.002, 50.0), "flow": RectifiedFlow()}
each_schedule = pytest.mark.parametrize("name", SCHEDULES)


class From(Solver):
    """A solver that starts from a given state."""

    def __init__(self, x: Tensor, solver: Solver) -> None:
        self.x, self.solver = x, solver

    @property
    def needs_graph(self) -> bool:
        return self.solver.needs_graph

    def start(self, problem: Problem, t: float) -> tuple[Tensor, Carry]:
        return self.x, None

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        return self.solver.step(step, carry)


def traces(
    prior, x_T: Tensor, times, sampler: Sampler, *, solver=None, draws=None, y=None, noise_std=0.5, cmi=None
) -> list[Trace]:
    measurement = measured(randn(M, x_T.shape[1], seed=81), randn(len(x_T), M) if y is None else y, noise_std)
    problem = problem_of(prior, measurement, sampler=sampler, draws=Bulk(0) if draws is None else draws)
    return list(sample(problem, From(x_T, Unconditional() if solver is None else solver), times, cmi))


def start(prior, t: float, draws: Bulk, like: Tensor) -> Tensor:
    return noise(problem_of(prior, measured(torch.eye(like.shape[1], dtype=F64), like, 0.5), draws=draws), t)


def flowed(prior: GaussianMixture, x_t: Tensor, r_t: float, r_s: float) -> Tensor:
    """``x / alpha`` after the probability flow of a Gaussian: each principal axis scales with its own spread."""
    values, axes = torch.linalg.eigh(prior.covariance_matrices()[0])
    gain = ((values + r_s**2) / (values + r_t**2)).sqrt()
    return prior.means[0] + (((x_t - prior.means[0]) @ axes) * gain) @ axes.mT


def flow_error(schedule: Schedule, sampler: Sampler, steps: int) -> float:
    prior = gaussian(D, schedule=schedule)
    times = [schedule.time(r) for r in karras(steps + 1, 0.3, 8.0)]
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(times[0]), schedule(times[-1])
    x_T = alpha_t * prior.means + 0.7 * sigma_t * randn(3, D, seed=82)
    x_s = traces(prior, x_T, times, sampler)[-2].x_s / alpha_s
    return float((x_s - flowed(prior, x_T / alpha_t, sigma_t / alpha_t, sigma_s / alpha_s)).norm())


@each_schedule
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(ProbabilityFlow(2), 2), (ProbabilityFlow(1), 1), (DDIM(), 1), (DPMSolver(2), 2), (DPMSolver(1), 1)],
    ids=str,
)
def test_order_of_convergence_of_the_probability_flow(name, sampler, order):
    errors = [flow_error(SCHEDULES[name], sampler, steps) for steps in (20, 40, 80)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


def test_eulers_rule_is_ddim_without_noise():
    for schedule in SCHEDULES.values():
        prior, times = gaussian(D, schedule=schedule), schedule.grid(7)
        x_T = schedule(times[0])[1] * randn(2, D, seed=83)
        euler, ddim, first = (
            traces(prior, x_T, times, sampler)[-1].x_s for sampler in (ProbabilityFlow(1), DDIM(), DPMSolver(1))
        )
        torch.testing.assert_close(euler, ddim, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(first, ddim, rtol=1e-12, atol=1e-12)


def test_ddim_with_full_noise_and_the_sde_solver_of_first_order_are_ancestral():
    for schedule in SCHEDULES.values():
        prior, times = mixture(D, schedule=schedule), schedule.grid(9)
        x_T = schedule(times[0])[1] * randn(2, D, seed=83)
        one, *others = (
            traces(prior, x_T, times, sampler, draws=rows(2))[-1].x_s
            for sampler in (Ancestral(), DDIM(1.0), DPMSolver(1, sde=True))
        )
        for other in others:
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


def test_the_registered_samplers_are_in_the_table():
    registered = {type(registry.SAMPLERS.make(name)) for name in registry.SAMPLERS}
    assert registered == {type(sampler) for sampler in SAMPLERS.values()}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_ends_on_the_denoised_image(name):
    last = traces(mixture(D), randn(2, D), [500.0, 300.0, 100.0], SAMPLERS[name])[-1]
    torch.testing.assert_close(last.x_s, last.x_hat, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_is_linear_in_the_state_and_the_denoised_image(name):
    """``x_s = a x_t + b x_hat' + std z`` with the stated coefficients, for a first step of each sampler of one
    evaluation; silent samplers have ``std = 0``."""
    step = step_at(mixture(D), measured(MATRIX, randn(2, M), 0.5), randn(2, D), 400.0, 350.0, sampler=SAMPLERS[name])
    x_hat, (a, b) = randn(2, D, seed=3), step.coefficients
    assert SAMPLERS[name].silent == (float(step.std) == 0.0)
    if isinstance(step.sampler, ProbabilityFlow) and step.sampler.order == 2:
        return
    theirs = a * step.x_t.detach() + b * x_hat + step.std * step.draws.normal("kernel", 0, x_hat)
    torch.testing.assert_close(step.advance(None, lambda step: x_hat)[0], theirs)


def test_renoising_keeps_nothing_of_the_state_but_its_denoised_image():
    for schedule in SCHEDULES.values():
        t, s = schedule.time(2.0), schedule.time(1.0)
        prior = gaussian(D, schedule=schedule)
        x_t, given = torch.ones(20000, D, dtype=F64), measured(MATRIX, randn(1, M), 0.5)
        step = step_at(prior, given, x_t, t, s, sampler=Renoise(), draws=Bulk(1))
        x_s, (alpha_s, sigma_s) = step.advance()[0], schedule(s)
        mean, eye = alpha_s * prior(x_t[:1], t).mean[0], torch.eye(D, dtype=F64)
        torch.testing.assert_close(x_s.mean(0), mean, rtol=0, atol=4.5 * sigma_s / 20000**0.5)
        torch.testing.assert_close(torch.cov(x_s.mT), sigma_s**2 * eye, rtol=0, atol=0.05 * sigma_s**2)


def test_second_order_extrapolates_from_the_last_two_images():
    """One step written out: ``D = D_t + h_t / (2 h_before) (D_t - D_before)`` in ``lambda = log(alpha / sigma)``."""
    prior, times = mixture(D), [600.0, 400.0, 250.0, 100.0]
    x_T = randn(2, D)
    run = traces(prior, x_T, times, DPMSolver())
    lam = [math.log(alpha / sigma) for alpha, sigma in map(prior.schedule, times)]
    before, now = run[0].x_hat, run[1].x_hat
    x_hat = now + (lam[2] - lam[1]) / (lam[1] - lam[0]) / 2 * (now - before)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = prior.schedule(400.0), prior.schedule(250.0)
    theirs = alpha_s * x_hat + sigma_s / sigma_t * (run[0].x_s - alpha_t * x_hat)
    torch.testing.assert_close(run[1].x_s, theirs)


# travel in time


def linear_gaussian(prior: GaussianMixture, times: list[float], variance: str) -> tuple[Tensor, Tensor]:
    """Mean and covariance that ancestral sampling has after its steps, which may go back in time, by Bayes' rule for
    each and no sample."""
    eye, mu, cov = torch.eye(D, dtype=F64), prior.means[0], prior.covariance_matrices()[0]
    m, p = torch.zeros(D, dtype=F64), eye
    for t, s in zip(times, [*times[1:], -1.0], strict=True):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = prior.schedule(t), prior.schedule(s)
        if s > t:
            kept = alpha_s / alpha_t
            m, p = kept * m, kept**2 * p + (sigma_s**2 - kept**2 * sigma_t**2) * eye
            continue
        gain = alpha_t * cov @ torch.linalg.inv(alpha_t**2 * cov + sigma_t**2 * eye)
        a = alpha_t / alpha_s
        beta = sigma_t**2 - a**2 * sigma_s**2
        weight_t, weight_0 = a * sigma_s**2 / sigma_t**2, alpha_s * beta / sigma_t**2
        step = weight_t * eye + weight_0 * gain
        noise = 0.0 if s < 0 else beta if variance == "large" else beta * sigma_s**2 / sigma_t**2
        m, p = step @ m + weight_0 * (mu - alpha_t * gain @ mu), step @ p @ step.mT + noise * eye
    return m, p


def test_a_step_back_in_time_renews_the_noise():
    for schedule in SCHEDULES.values():
        low, high = schedule.time(0.5), schedule.time(2.0)
        prior = gaussian(D, schedule=schedule)
        x = torch.ones(20000, D, dtype=F64)
        trace = traces(prior, x, [low, high], Ancestral(), draws=Bulk(1))[0]
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(low), schedule(high)
        kept = alpha_s / alpha_t
        std = math.sqrt(sigma_s**2 - kept**2 * sigma_t**2)
        z = (trace.x_s - kept * x) / std
        assert float(z.mean(0).abs().max()) < 4.5 / 20000**0.5
        assert float((torch.cov(z.mT) - torch.eye(D, dtype=F64)).abs().max()) < 0.05
        assert float(trace.guidance.max()) == 0
        assert float(trace.cmi.max()) == 0


def test_time_travel_has_the_moments_of_its_recursion():
    prior, count = gaussian(D), 20_000
    times = [999.0, 700.0, 400.0, 600.0, 300.0, 500.0, 200.0, 50.0]
    x_T = start(prior, times[0], Bulk(5), torch.zeros(count, D, dtype=F64))
    x = traces(prior, x_T, times, Ancestral("small"))[-1].x_s
    mean, cov = linear_gaussian(prior, times, "small")
    assert float(((x.mean(0) - mean) / (cov.diagonal() / count).sqrt()).abs().max()) < 4.5
    assert float((torch.cov(x.mT) - cov).abs().max()) < 4.5 * float(cov.diagonal().max()) * (2 / count) ** 0.5


@pytest.mark.parametrize("sampler", [Ancestral(), ProbabilityFlow(), DPMSolver()], ids=str)
def test_time_travel_leaves_the_exact_posterior_of_a_gaussian_as_it_is(sampler):
    """Exact samples of ``p(x_t | y)`` stay so when their noise is renewed and taken away again in fine steps."""
    count, noise_std, schedule = 1500, 0.4, VP()
    prior = gaussian(D, schedule=schedule)
    y = randn(1, M, seed=84)
    mean, cov = gaussian_posterior(prior.means[0], prior.covariance_matrices()[0], MATRIX, y[0], noise_std)
    down = [schedule.time(r) for r in karras(40, 0.05, 1.0)]
    low = down[-1]
    alpha, sigma = schedule(low)
    x_0 = mean + randn(count, D, seed=85) @ torch.linalg.cholesky(cov).mT
    x_t = alpha * x_0 + sigma * randn(count, D, seed=86)
    times = [low, *down, *down]
    solver = CADPS(Exact(M + 2))
    x = traces(prior, x_t, times, sampler, solver=solver, y=y.expand(count, M), noise_std=noise_std)[-1].x_s
    z = (x.mean(0) - mean) / (cov.diagonal() / count).sqrt()
    assert float(z.abs().max()) < 5.0
    axes, values = torch.linalg.eigh(cov)[1], torch.linalg.eigvalsh(cov)
    ratio = ((x - x.mean(0)) @ axes).var(0) / values
    assert float((ratio - 1).abs().max()) < 4.5 * (2 / count) ** 0.5 + 0.08  # the steps take a few per cent


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("solver", ["unconditional", "dps", "pigdm", "mcg", "cadps"])
def test_every_sampler_travels_in_time_with_every_kind_of_solver(name, solver):
    prior = mixture(D)
    run = traces(prior, randn(2, D), [800.0, 400.0, 600.0, 400.0, 600.0, 200.0], SAMPLERS[name], solver=SOLVERS[solver])
    assert len(run) == 6
    assert all(bool(trace.x_s.isfinite().all()) for trace in run)
    assert bool(run[-1].alive.all())


@each_schedule
@pytest.mark.parametrize(
    "sampler", [Ancestral(), DDIM(1.0), DDIM(), ProbabilityFlow(), DPMSolver(), DPMSolver(sde=True)], ids=str
)
def test_samples_of_a_gaussian_have_its_mean_and_covariance(name, sampler):
    schedule, count = SCHEDULES[name], 3000
    prior = gaussian(D, schedule=schedule)
    grid = [schedule.time(r) for r in karras(80, 0.01, 30.0)]
    times = [t for t, before in zip(grid, [math.inf, *grid], strict=False) if t < before]
    x_T = start(prior, times[0], Bulk(5), torch.zeros(count, D, dtype=F64))
    x = traces(prior, x_T, times, sampler)[-1].x_s
    mean, cov = prior.moments()
    scale = float(cov.diagonal().max())
    bias = 4.5 * (scale / count) ** 0.5 + 0.05  # the start forgets the mean at 1/30 of its size
    assert float((x.mean(0) - mean).abs().max()) < bias
    assert float((torch.cov(x.mT) - cov).abs().max()) < 0.15 * scale


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_chain_has_the_moments_of_its_linear_recursion(variance):
    """With few steps the sampler is biased, by an amount that is known exactly."""
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
            prior,
            measured(MATRIX, randn(1, M), 0.5),
            torch.zeros(20000, D, dtype=F64),
            t,
            0.9 * t,
            draws=Bulk(1),
            steps=10,
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


@pytest.mark.parametrize("sampler", [Ancestral(), ProbabilityFlow(), DPMSolver()], ids=str)
def test_cadps_with_the_exact_covariance_samples_the_exact_posterior(sampler):
    d, count, noise = 6, 1000, 0.4
    prior = gaussian(d, schedule=VP())
    matrix, y = randn(M, d, seed=81), randn(1, M, seed=84)
    times = [VP().time(r) for r in karras(120, 0.01, 100.0)]
    x_T = start(prior, times[0], Bulk(5), torch.zeros(count, d, dtype=F64))
    solver = CADPS(Exact(M + 2))
    x = traces(prior, x_T, times, sampler, solver=solver, y=y.expand(count, M), noise_std=noise)[-1].x_s
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
    options = {"draws": draws, "y": y, "cmi": CMI(0.2, window=(0, 1e9))}
    first = traces(prior, x_T, times, Ancestral(), solver=DPS(0.0018), **options)[0]
    corrected = traces(prior, x_T, times, Ancestral(), **options)[0]
    torch.testing.assert_close(first.guidance, (first.x_s - corrected.x_s).norm(dim=1), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(corrected.cmi, (corrected.x_s - plain[0].x_s).norm(dim=1), rtol=1e-6, atol=1e-12)
    x_hat = prior(x_T, times[0]).mean
    misfit = (y - x_hat @ MATRIX.mT).norm(dim=1) / (0.5 * M**0.5)
    torch.testing.assert_close(first.misfit, misfit)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("probability-flow", "churned")])
@pytest.mark.parametrize("clip", [None, (-0.3, 0.3)])
def test_the_statistic_of_cmi_is_the_move_of_the_state(name, clip):
    """``b |correction|`` after the clip, and the difference to the same step without CMI."""
    prior = mixture(D)
    measurement = measured(MATRIX, randn(2, M, seed=4), 0.5)
    problem = replace(problem_of(prior, measurement, sampler=SAMPLERS[name]), clip=clip)
    cmi = CMI(3.0, window=(0, 1e9), cap=10.0)
    for solver in (Unconditional(), PiGDM(grid="schedule")):
        base, moved = (next(sample(problem, solver, [300.0, 200.0], cmi)) for cmi in (None, cmi))
        difference = (moved.x_s - base.x_s).norm(dim=1)
        if isinstance(solver, Unconditional) or clip is None:  # a clip takes another part of a guided image's move
            torch.testing.assert_close(moved.cmi, difference, rtol=1e-9, atol=1e-12)
        step = cmi(step_at(prior, measurement, noise(problem, 300.0), 300.0, 200.0, sampler=SAMPLERS[name], clip=clip))
        assert step.correction is not None
        if clip is None:
            theirs = abs(step.coefficients[1]) * step.correction.norm(dim=1)
            torch.testing.assert_close(moved.cmi, theirs, rtol=1e-9, atol=1e-12)
        assert float(moved.cmi.min()) > 0


def test_rows_do_not_see_each_other():
    prior, draws = mixture(D), rows(3)
    times, x_T, y = prior.schedule.grid(10), randn(3, D), randn(3, M)
    options = {"solver": DPS(0.003), "cmi": CMI(0.2)}
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
    options = {"solver": CADPS(covariance), "cmi": CMI(0.1, covariance=covariance), "y": y}
    good, bad = (traces(prior, x, times, DDIM(), draws=rows(3), **options) for x in (x_T, sick))
    for row in (0, 2):
        torch.testing.assert_close(bad[-1].x_s[row], good[-1].x_s[row])
    assert bad[-1].alive.tolist() == [True, False, True]
    assert all(bool(trace.x_s.isfinite().all() and trace.x_hat.isfinite().all()) for trace in bad)


@pytest.mark.parametrize("name", SAMPLERS)
def test_divergence_is_seen_without_a_range(name):
    """The states of DPS, thrown far by steps that are too long, stay numbers; the bound is relative to the start."""
    well = mixture(D)
    run = traces(well, randn(2, D), well.schedule.grid(10), SAMPLERS[name], solver=DPS(1e6, guard=False))
    assert not bool(run[-1].alive.any())
    assert all(bool(trace.x_s.isfinite().all() and trace.x_hat.isfinite().all()) for trace in run)
    assert float(run[-1].x_hat.abs().max()) < 1e6
    assert bool(traces(well, 50 * randn(2, D), well.schedule.grid(10), SAMPLERS[name])[-1].alive.all())


def test_start_has_the_variance_of_the_noisiest_level():
    like = torch.zeros(20000, 2, dtype=F64)
    for schedule, std in ((DDPM.linear(), 1.0), (VP(), 1.0), (VE(), 80.0), (RectifiedFlow(), 0.999)):
        x_T = start(gaussian(2, schedule=schedule), schedule.grid(5)[0], Bulk(2), like)
        assert float(x_T.std()) == pytest.approx(std, rel=0.02)
