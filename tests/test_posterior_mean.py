"""DiffPIR, DDNM, TMPD, MMPS, SITCOM and Free Hunch against dense formulas, and the covariances that came with them."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidiff import CMI, Ancestral, ProbabilityFlow, restore
from cmidiff.covariance import Analytic, Convert, FreeHunch, Hybrid, Isotropic, Wavelet, isotropic_variance
from cmidiff.covariance.free_hunch import updates
from cmidiff.covariance.wavelet import bands, haar, inverse_haar
from cmidiff.krylov import gmres
from cmidiff.loop import sample
from cmidiff.moments import SecondMoments as Moments
from cmidiff.prior import GaussianMixture, NetworkPrior, Prediction
from cmidiff.samplers import DDIM, Renoise
from cmidiff.schedule import DDPM, VE, VP
from cmidiff.solvers import CADPS, DDNM, MMPS, SITCOM, TMPD, DiffPIR, PiGDM, Solver, Unconditional
from cmidiff.solvers.base import travel
from cmidiff.step import Seen, Step
from tests.cases import (
    F64,
    PHYSICS,
    SAMPLERS,
    dense_matrix,
    gaussian,
    gaussian_posterior,
    measured,
    mixture,
    problem_of,
    randn,
    spd,
    step_at,
    with_measurement,
)
from tests.test_solvers import (
    MATRIX,
    NOISE,
    B,
    D,
    M,
    Y,
    a_step,
    denoised,
    each_level,
    in_the_dct_domain,
    last_step,
    posterior_means,
    problem,
    same,
    taken,
)

pytestmark = pytest.mark.filterwarnings("ignore::cmidiff.result.RestorationWarning")  # runs of few steps
EYE = torch.eye(D, dtype=F64)
NEW: dict[str, Solver] = {
    **{"diffpir": DiffPIR(), "ddnm": DDNM(), "tmpd": TMPD(), "mmps": MMPS(), "sitcom": SITCOM(iterations=3)},
    "free-hunch": CADPS(FreeHunch(tolerance=1e-10)),
}


# one step, one formula


@each_level
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_diffpir(schedule, t, s, strength):
    step = a_step(schedule, t, s, sampler=DiffPIR(strength, zeta=0.4).sampler)
    x_hat, level = denoised(step)[0], step.ratio**2 / strength * EYE
    fitted = torch.stack([gaussian_posterior(x, level, MATRIX, y, NOISE)[0] for x, y in zip(x_hat, Y, strict=True)])
    (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
    eps = (step.x_t.detach() - alpha_t * fitted) / sigma_t
    theirs = alpha_s * fitted + sigma_s * (math.sqrt(0.6) * eps + math.sqrt(0.4) * step.z)
    same(taken(DiffPIR(strength), step), theirs)
    half = DiffPIR(strength, scale=0.5).estimate(step)
    same(half, 0.5 * (x_hat + fitted))


def test_levels_of_diffpir_are_even_and_its_zero_strength_takes_the_grid():
    run = problem_of(mixture(), measured(MATRIX, Y, NOISE))
    ratios = torch.tensor([math.log(s / a) for a, s in map(run.prior.schedule, DiffPIR().times(run, 5))], dtype=F64)
    unit = math.sqrt(run.prior.variance / 0.3)
    torch.testing.assert_close(ratios, torch.linspace(math.log(4 * unit), math.log(0.02 * unit), 5, dtype=F64))
    assert list(DiffPIR(scale=0.0).times(run, 5)) == run.prior.schedule.grid(5)


def test_diffpir_without_noise_satisfies_the_measurement():
    step = a_step(noise_std=0.0)
    torch.testing.assert_close(DiffPIR().estimate(step) @ MATRIX.mT, Y, rtol=1e-8, atol=1e-8)


def shaped(step: Step) -> Tensor:
    """DDNM's ``x_s`` by the full singular value decomposition, a direction at a time; the rule with the noise of the
    sampler in place of ``eta``."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
    u, w, vh = torch.linalg.svd(MATRIX)
    noise, std = step.measurement.noise_std, float(step.std)
    own = math.sqrt(max(sigma_s**2 - std**2, 0.0))
    x_hat = denoised(step)[0]
    z = step.draws.normal("guidance" if step.sampler.silent else "kernel", step.index, x_hat)
    eps = (step.x_t.detach() - alpha_t * x_hat) / sigma_t
    inside, z, eps = x_hat @ vh.mT, z @ vh.mT, eps @ vh.mT
    target = Y @ u / w
    out = alpha_s * inside + own * eps + std * z
    for i, value in enumerate(w.tolist()):
        carried = alpha_s * noise / value
        if noise == 0:
            out[:, i] = alpha_s * target[:, i] + own * eps[:, i] + std * z[:, i]
        elif carried < sigma_s:
            out[:, i] = alpha_s * target[:, i] + math.sqrt(sigma_s**2 - carried**2) * z[:, i]
        else:
            out[:, i] = (
                alpha_s * inside[:, i] + own / carried * alpha_s * (target - inside[:, :M])[:, i] + std * z[:, i]
            )
    return out @ vh


@each_level
@pytest.mark.parametrize("sampler", [DDNM().sampler, Ancestral("small"), DDIM(), Renoise(), ProbabilityFlow(1)])
@pytest.mark.parametrize("noise_std", [0.0, 0.3, 2.0])
def test_ddnm(schedule, t, s, sampler, noise_std):
    step = a_step(schedule, t, s, sampler=sampler, noise_std=noise_std)
    same(taken(DDNM(), step), shaped(step), 1e-7)


def test_ddnm_ends_on_the_measurement_without_noise_and_on_the_denoised_image_with_it():
    torch.testing.assert_close(taken(DDNM(), last_step(noise_std=0.0)) @ MATRIX.mT, Y, rtol=1e-9, atol=1e-9)
    step = last_step()
    same(taken(DDNM(), step), denoised(step)[0])


@pytest.mark.parametrize("name", ["deblur-gaussian", "super-resolution", "inpaint-random", "reflect-blur", "mri"])
def test_functions_of_the_operator_are_those_of_its_matrix(name):
    case = PHYSICS[name]
    physics, v = case.build(0.05), randn(2, *case.shape, seed=3)
    matrix = dense_matrix(physics, case.shape)
    if matrix.is_complex():
        matrix = torch.cat([matrix.real, matrix.imag])
    y = physics.A(torch.zeros_like(v))
    measurement = replace(measured(MATRIX, Y, 0.1, case.shape), y=y, physics=physics)
    values, vectors = torch.linalg.eigh(matrix.mT @ matrix)
    values = torch.where(values > 1e-12 * values.max(), values, 0.0)
    for f in (lambda w2: 1 / (0.1 + w2), lambda w2: torch.where(w2 > 0, 0.3 / (1 + w2), 1.0)):
        theirs = (v.flatten(1) @ vectors * f(values)) @ vectors.mT
        same(measurement.filter(v, f).flatten(1), theirs, 1e-6)


def test_time_travel_repeats_each_stretch_from_the_end():
    grid = [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    assert travel(grid, 1, 1) == grid
    assert travel([3.0, 2.0, 1.0, 0.0], 2, 2) == [3.0, 2.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0]
    top, middle, low = [7, 6, 5, 4] + 2 * [5, 6, 5, 4], [3, 2] + 2 * [3, 4, 3, 2], [1, 0] + 2 * [1, 2, 1, 0]
    assert travel(grid, 2, 3) == top + middle + low
    prior, physics, y = problem("inpaint-box")
    result = restore(y, physics, prior, solver=DDNM(length=2, repeat=2), steps=10, value_range=None)
    assert bool(result.ok.all())
    assert len(result.stats["misfit"]) == len(travel(prior.schedule.grid(10), 2, 2))


@each_level
def test_tmpd(schedule, t, s):
    step = a_step(schedule, t, s)
    x_hat, jacobian = denoised(step)
    gain = step.covariance_gain
    sums = gain * torch.einsum("md,bed,ne->bmn", MATRIX, jacobian, MATRIX).sum(2)  # A J^T A^T 1
    sums = gain * torch.einsum("md,bed,e->bm", MATRIX, jacobian, MATRIX.sum(0))
    u = (Y - x_hat @ MATRIX.mT) / (NOISE**2 + sums)
    theirs = x_hat + 0.9 * gain * torch.einsum("bed,be->bd", jacobian, u @ MATRIX)
    same(TMPD(0.9, guard=False).estimate(step), theirs)
    assert bool((TMPD().variances(step) >= sums - 1e-12).all())


def test_tmpd_is_the_posterior_mean_where_the_measured_numbers_are_independent():
    thin = GaussianMixture(torch.ones(1, dtype=F64), randn(1, D), torch.linspace(0.4, 0.9, D, dtype=F64)[None])
    rows = EYE[:M] * torch.linspace(0.8, 1.2, M, dtype=F64)[:, None]
    step = with_measurement(a_step(prior=thin), measured(rows, Y, NOISE))
    precision = torch.cat([rows / NOISE, EYE / step.ratio])
    data = torch.cat([Y / NOISE, step.x_t.detach() / step.level_t[1]], 1)
    mean, cov = thin.means[0], thin.covariance_matrices()[0]
    theirs = torch.stack([gaussian_posterior(mean, cov, precision, d, 1.0)[0] for d in data])
    for guard in (True, False):
        same(TMPD(guard=guard).estimate(step), theirs)


@each_level
@pytest.mark.parametrize("method", ["gmres", "cg"])
@pytest.mark.parametrize("noise_std", [0.05, 1.0])
def test_mmps_is_the_posterior_mean_for_a_gaussian_prior(schedule, t, s, method, noise_std):
    step = a_step(t=t, s=s, prior=gaussian(D, schedule=schedule), noise_std=noise_std)
    for guard in (True, False):
        same(MMPS(M, method, guard=guard).estimate(step), posterior_means(step), 1e-6)


def test_mmps_takes_the_transposed_jacobian_of_a_network_that_is_not_symmetric():
    weight = 0.3 * EYE + 0.1 * randn(D, D, seed=4)
    prior = NetworkPrior(lambda x, t: x @ weight.mT, "x0", channels=None)
    step = step_at(prior, measured(MATRIX, Y, NOISE), randn(B, D, seed=5), 500.0, 400.0)
    x_hat, gain = step.x_t.detach() @ weight.mT, step.covariance_gain
    system = NOISE**2 * torch.eye(M, dtype=F64) + gain * MATRIX @ weight.mT @ MATRIX.mT
    u = torch.linalg.solve(system, (Y - x_hat @ MATRIX.mT).mT).mT
    same(MMPS(M, guard=False).estimate(step), x_hat + gain * u @ MATRIX @ weight)


def test_gmres_has_the_least_residual_of_the_krylov_space():
    system, b = 3 * EYE + randn(D, D, seed=6), randn(3, D, seed=7)
    for count in (1, 3, D, D + 4):
        found = gmres(lambda v: v @ system.mT, b, iterations=count)
        for one, ours, left in zip(b, found.x, found.residual, strict=True):
            space = [one / one.norm()]
            for _ in range(min(count, D) - 1):
                space.append(system @ space[-1] / (system @ space[-1]).norm())
            basis = torch.stack(space, 1)
            least = basis @ torch.linalg.lstsq(system @ basis, one).solution
            torch.testing.assert_close(ours, least, rtol=1e-6, atol=1e-8)
            assert float(left) == pytest.approx(float((one - system @ ours).norm() / one.norm()), abs=1e-9)
    assert bool((gmres(lambda v: v @ system.mT, 0 * b, iterations=3).x == 0).all())


@each_level
def test_sitcom_is_adam_on_the_input_of_the_denoiser(schedule, t, s):
    step = a_step(schedule, t, s, noise_std=1e-3)
    for penalty in (0.0, 0.7):
        v = step.x_t.detach().clone().requires_grad_()
        adam, x_hat = torch.optim.Adam([v], lr=0.03), v
        for k in range(6):
            x_hat = step.prior(v, t).mean
            loss = (Y - x_hat @ MATRIX.mT).square().sum() + penalty * (v - step.x_t.detach()).square().sum()
            if k < 5:
                adam.zero_grad()
                loss.backward()
                adam.step()
        same(SITCOM(0.03, 6, penalty).estimate(step), x_hat.detach())


def test_sitcom_stops_each_image_where_its_residual_is_the_noise():
    step = a_step()
    target = step.measurement.A(step.x_hat.detach()) + 0.5 * NOISE
    mixed = torch.cat([target[:1], Y[1:]])
    given = with_measurement(step, replace(step.measurement, y=mixed))
    found, alone = SITCOM(iterations=4).estimate(given), SITCOM(iterations=4).estimate(step)
    torch.testing.assert_close(found[0], step.x_hat.detach()[0])
    torch.testing.assert_close(found[1:], alone[1:])


# Free Hunch


def calls_of(prior: GaussianMixture, count: int, levels: list[float]) -> list[Seen]:
    """Calls of the denoiser at random states, in the order of falling noise."""
    out = []
    for k in range(count):
        t = levels[k % len(levels)]
        x_t = randn(B, D, seed=80 + k)
        out.append(Seen(x_t, t, prior(x_t, t).mean))
    return out


def hunch(prior: Any, past: list[Seen], rank: int, t: float = 300.0) -> tuple[Step, Any]:
    step = step_at(prior, measured(MATRIX, Y, NOISE), randn(B, D, seed=63), t, 0.5 * t, graph=False)
    step = replace(step, past=tuple(past))
    return step, FreeHunch(rank, tolerance=1e-12).at(step)


def test_free_hunch_of_a_gaussian_with_the_known_moments_is_exact_and_stays_so():
    prior, cov = in_the_dct_domain()
    step, bound = hunch(prior, calls_of(prior, 5, [900.0, 500.0]), 4)
    sigma = torch.linalg.inv(torch.linalg.inv(cov) + EYE / step.ratio**2)
    torch.testing.assert_close(bound.product(EYE[:B]), sigma[:B], rtol=1e-7, atol=1e-9)
    same(CADPS(FreeHunch(tolerance=1e-12)).estimate(step), posterior_means(step), 1e-7)


def test_free_hunch_agrees_with_the_denoiser_along_its_last_move():
    """The secant equation, at other noise levels than those of the calls, on a Gaussian whose moments in the DCT domain
    tell little; and its error falls with the calls."""
    prior: Any = gaussian(D)
    prior._moments = Moments(prior.means[0], torch.ones(D, dtype=F64))
    past = calls_of(prior, 12, [900.0, 700.0, 500.0])
    errors = []
    for rank in (0, 4, 12):
        step, bound = hunch(prior, past, rank)
        sigma = torch.linalg.inv(torch.linalg.inv(prior.covariance_matrices()[0]) + EYE / step.ratio**2)
        found = torch.stack([bound.product(row.expand(B, D)) for row in EYE], 1)
        errors.append(float((found - sigma).norm()))
        if rank > 0:
            move = step.x_hat - past[-1].x_hat
            precision = torch.linalg.inv(sigma)
            torch.testing.assert_close(bound.inverse(move), move @ precision, rtol=1e-6, atol=1e-8)
            same(bound.inverse(bound.product(move)), move)
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.85 * errors[0]


def test_free_hunch_stays_positive_on_a_mixture():
    """Where the density is not log-concave the secant equation asks for a negative variance."""
    prior: Any = mixture(D, spread=3.0)
    for t in (50.0, 300.0, 800.0):
        step, bound = hunch(prior, calls_of(prior, 9, [900.0, 600.0, 400.0]), 8, t)
        dense = torch.stack([bound.product(row.expand(B, D)) for row in EYE], 1)
        values = torch.linalg.eigvalsh(0.5 * (dense + dense.mT))
        assert float(values.min()) > 0
        assert float(values.max()) <= step.ratio**2 * (1 + 1e-9)


def test_an_image_that_did_not_move_leaves_the_covariance_alone():
    still = randn(B, D), randn(B, D)
    vectors, signs = updates(torch.ones(D, dtype=F64), [still, still])
    assert bool((vectors == 0).all())
    assert signs.tolist() == [-1.0, 1.0]


def test_the_run_hands_over_as_many_calls_as_are_asked_for():
    prior, physics, _ = problem("inpaint-box")
    seen = []

    class Listening(FreeHunch):
        def at(self, step: Step) -> Any:
            seen.append([one.t for one in step.past])
            return super().at(step)

    measurement = measured(dense_matrix(physics, (3, 8, 8)), physics.A(prior.sample(1)).flatten(1), 0.05, (3, 8, 8))
    solver = CADPS(Listening(rank=2))
    run = problem_of(prior, measurement)
    times = [900.0, 700.0, 500.0, 300.0]
    list(sample(run, solver, times))
    assert seen == [[], [900.0], [900.0, 700.0], [700.0, 500.0]]
    seen.clear()
    list(sample(run, PiGDM(), times, CMI(0.1, window=(0.0, 1e9), covariance=Listening(rank=1))))
    assert seen == [[], [900.0], [700.0], [500.0]][: len(seen)]
    assert len(seen) >= 3
    assert Hybrid(FreeHunch(3), Isotropic()).memory == 3


# the covariances of optimal variances


def test_haar_is_orthonormal_and_knows_its_bands():
    for shape in ((2, 3, 8, 12), (2, 12), (2, 7), (1, 2, 6, 6)):
        x, y = randn(*shape, seed=1), randn(*shape, seed=2)
        for levels in (1, 3):
            c = haar(x, levels)
            torch.testing.assert_close(inverse_haar(c, levels), x)
            torch.testing.assert_close((c * haar(y, levels)).sum(), (x * y).sum())
            count = torch.zeros(shape)
            for band in bands(shape, levels):
                count[band] += 1
            assert bool((count == 1).all()), "each coefficient belongs to one band"
    flat = haar(torch.ones(1, 1, 8, 8, dtype=F64), 3)
    assert float(flat[0, 0, 0, 0]) == pytest.approx(8.0)
    assert float(flat.flatten()[1:].abs().max()) < 1e-12


def test_the_wavelet_covariance_is_exact_for_a_gaussian_that_is_independent_in_that_basis():
    basis = haar(torch.eye(16, dtype=F64), 3).mT  # rows: coefficients
    variances = torch.linspace(0.1, 1.0, 16, dtype=F64)
    cov = basis.mT @ (variances[:, None] * basis)
    prior = GaussianMixture(torch.ones(1, dtype=F64), randn(1, 16), cov[None])
    step = step_at(prior, measured(randn(M, 16), Y, NOISE), randn(B, 16, seed=3), 300.0, 200.0)
    sigma = torch.linalg.inv(torch.linalg.inv(cov) + torch.eye(16, dtype=F64) / step.ratio**2)
    bound = Wavelet(window=1, floor=1e-3).at(step)
    for v in torch.eye(16, dtype=F64)[:4]:
        torch.testing.assert_close(bound.product(v.expand(B, 16)), (sigma @ v).expand(B, 16), rtol=1e-6, atol=1e-8)


def test_analytic_is_the_mean_squared_error_of_the_denoiser():
    white = GaussianMixture(torch.ones(1, dtype=F64), torch.zeros(1, D, dtype=F64), torch.full((1, D), 0.6, dtype=F64))
    many = white.sample(4000, torch.Generator().manual_seed(1))
    measured_once = Analytic.measure(white, many)
    for t in (20.0, 300.0, 700.0, 990.0):
        step = step_at(white, measured(MATRIX, Y, NOISE), randn(B, D), t, 0.5 * t)
        assert measured_once.at(step).r2 == pytest.approx(isotropic_variance(step), rel=0.05)
        assert Analytic(((0.1, 0.01), (10.0, 0.01))).at(step).r2 == pytest.approx(0.01 * min(step.ratio / 0.1, 1) ** 2)
        assert 0 < Analytic().at(step).r2 <= step.ratio**2


class Headed(GaussianMixture):
    """The exact denoiser with the exact head: the optimal variance of the kernel between neighbouring levels."""

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        schedule, t = self.schedule, max(t, 1.0)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(t - 1)
        beta = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
        small, weight = beta * sigma_s**2 / sigma_t**2, alpha_s * beta / sigma_t**2
        optimal = small + weight**2 * self.covariance(x_t, t).diagonal(dim1=1, dim2=2)
        fraction = (optimal / small).log() / math.log(beta / small)
        return Prediction(super().__call__(x_t, t).mean, fraction)


def test_convert_gives_the_variances_of_an_optimal_head():
    covariances = torch.stack([spd(D, seed=k, low=0.05, high=0.6) for k in range(3)])
    prior = Headed(torch.ones(3, dtype=F64), 0.3 * randn(3, D), covariances)
    for t in (1.0, 150.0, 600.0, 950.0):
        step = step_at(prior, measured(MATRIX, Y, NOISE), 0.5 * randn(B, D, seed=4), t, 0.5 * t)
        theirs = prior.covariance(step.x_t.detach(), t).diagonal(dim1=1, dim2=2)
        theirs = theirs.clamp(1e-3 * isotropic_variance(step), step.ratio**2)
        torch.testing.assert_close(Convert(1e-3).at(step).variance, theirs, rtol=1e-6, atol=1e-12)
    diagonal = Headed(torch.ones(1, dtype=F64), randn(1, D), torch.linspace(0.2, 0.9, D, dtype=F64)[None])
    step = a_step(prior=diagonal)
    for solver in (CADPS(Convert()), PiGDM(covariance="convert")):
        same(solver.estimate(step), posterior_means(step), 1e-6)
    with pytest.raises(ValueError, match="Convert needs a prior with a learned-variance head on a discrete grid"):
        CADPS("convert").estimate(a_step())
    vp = Headed(torch.ones(1, dtype=F64), randn(1, D), torch.full((1, D), 0.5, dtype=F64), DDPM.linear())
    vp.schedule = VP()
    with pytest.raises(ValueError, match="discrete grid"):
        Convert().at(step_at(vp, measured(MATRIX, Y, NOISE), randn(B, D), 2.0, 1.5))


# what holds for all of them


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("noise_std", [0.0, 1e-4, NOISE])
def test_no_step_diverges_whatever_the_noise(name, noise_std):
    for t in (0.0, 40.0, 500.0, 999.0):
        step = a_step(t=t, s=max(t - 30.0, -1.0), noise_std=noise_std, sampler=NEW[name].sampler)
        free, ours = taken(Unconditional(), step), taken(NEW[name], step)
        assert bool(ours.isfinite().all())
        assert float((ours - free).norm()) < 1e3


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_cmi_moves_the_state_by_what_the_statistics_say(name, sampler):
    """The corrected step is the plain one plus ``b`` times the correction, for every sampler; with Heun's rule the
    corrected half step leads to another second half."""
    solver, used = NEW[name], SAMPLERS[sampler]
    step = a_step(sampler=used)
    corrected = CMI(0.05, window=(0.0, 100.0))(step)
    assert corrected.correction is not None
    plain, moved = taken(solver, step), taken(solver, corrected)
    said = step.coefficients[1] * corrected.record.corrections[0]
    torch.testing.assert_close(corrected.record.corrections[0], corrected.correction, rtol=1e-12, atol=1e-14)
    if sampler in ("probability-flow", "churned"):
        assert not torch.equal(plain, moved)
    else:
        torch.testing.assert_close(moved - plain, said, rtol=1e-6, atol=1e-9)
    prior, physics, y = problem("inpaint-random")
    if sampler == "ancestral":
        run = restore(y, physics, prior, solver=solver, cmi=CMI(0.1), steps=6, value_range=None)
        assert float(run.stats["cmi"].max()) > 0


@pytest.mark.parametrize("name", NEW)
def test_a_solvers_own_sampler_is_the_default_of_a_run(name):
    prior, physics, y = problem("inpaint-random")
    options: dict[str, Any] = {"solver": NEW[name], "steps": 4, "value_range": None}
    default, named = (
        restore(y, physics, prior, **options),
        restore(y, physics, prior, sampler=NEW[name].sampler, **options),
    )
    assert torch.equal(default.samples, named.samples)
    if NEW[name].sampler != Ancestral():
        other = restore(y, physics, prior, sampler="ancestral", **options)
        assert not torch.equal(default.samples, other.samples)


@pytest.mark.parametrize("solver", [MMPS(20), CADPS(FreeHunch(tolerance=1e-9))], ids=["mmps", "free-hunch"])
@pytest.mark.parametrize("name", ["inpaint-box", "own"])
def test_samples_have_the_exact_posterior_of_a_gaussian(solver, name):
    case = PHYSICS[name]
    means = 0.5 * torch.ones(1, *case.shape, dtype=F64)
    prior = GaussianMixture(torch.ones(1, dtype=F64), means, torch.full_like(means, 0.01), VE(2e-3, 50.0))
    physics = case.build(0.05)
    y = physics.A(means + 0.1 * randn(1, *case.shape))
    options: dict[str, Any] = {"sampler": ProbabilityFlow(), "steps": 25, "samples": 24, "value_range": None}
    samples = restore(y, physics, prior, solver=solver, **options).samples[0].flatten(1)
    matrix = dense_matrix(physics, case.shape)
    mean, cov = gaussian_posterior(prior.means[0], 0.01 * torch.eye(prior.d, dtype=F64), matrix, y.flatten(), 0.05)
    z = (samples.mean(0) - mean) / (cov.diagonal() / 24).sqrt()
    assert float(z.square().mean()) == pytest.approx(1.0, abs=0.5)
    assert float((samples.var(0) / cov.diagonal()).mean()) == pytest.approx(1.0, abs=0.2)


def test_what_cannot_be_meant_is_refused():
    wrong: list[tuple[type, dict[str, Any], str]] = [
        *[(solver, {"scale": -1.0}, "scale") for solver in (DiffPIR, DDNM, TMPD, MMPS)],
        (DiffPIR, {"strength": 0.0}, "strength must be a number > 0"),
        (DiffPIR, {"zeta": 1.5}, "zeta must be in"),
        (Renoise, {"zeta": -0.1}, "zeta must be in"),
        (DDNM, {"eta": 2.0}, "eta must be in"),
        (DDNM, {"length": 0}, "length must be a whole number >= 1"),
        (DDNM, {"repeat": 1.5}, "repeat must be a whole number"),
        (MMPS, {"iterations": 0}, "iterations must be at least 1"),
        (MMPS, {"method": "lu"}, "method must be one of gmres, cg"),
        (SITCOM, {"rate": -1.0}, "rate"),
        (SITCOM, {"iterations": 0}, "iterations must be a whole number >= 1"),
        (SITCOM, {"penalty": math.nan}, "penalty"),
        (FreeHunch, {"rank": -1}, "rank must be a whole number >= 0"),
        (FreeHunch, {"iterations": 0}, "iterations must be at least 1"),
        (Convert, {"floor": 0.0}, "floor must be in"),
        (Wavelet, {"levels": 0}, "levels >= 1"),
        (Wavelet, {"window": 2}, "odd window"),
        (Analytic, {"table": ((1.0, 0.5), (0.5, 0.2))}, "noise levels ascending"),
        (Analytic, {"table": ((1.0, -0.5),)}, "positive"),
    ]
    for kind, options, match in wrong:
        with pytest.raises(ValueError, match=match):
            kind(**options)
