"""``I(x_0; y | x_t)``, its gradient and its estimators against Theorems 1 and 2 as printed, with dense inverses."""

import functools
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from cmidiff import load_prior
from cmidiff.covariance import Exact, Isotropic
from cmidiff.covariance.isotropic import BoundIsotropic
from cmidiff.information import CMI, Contraction, Estimator, contract, estimate, exact, gradient, gradient_at, value_at
from cmidiff.loop import sample
from cmidiff.physics import inpaint_random, measured_count
from cmidiff.prior import GaussianMixture, NetworkPrior
from cmidiff.samplers import DDIM, Ancestral, ProbabilityFlow, Renoise
from cmidiff.schedule import VE, VP, RectifiedFlow, Schedule
from cmidiff.solvers import DPS, PiGDM, Solver, Unconditional
from cmidiff.step import Sampler, Step
from tests.cases import (
    COVARIANCES,
    F64,
    gaussian,
    matrix_physics,
    measured,
    mixture,
    problem_of,
    randn,
    rows,
    step_at,
    with_measurement,
)

D, M, NOISE = 12, 5, 0.3
MATRIX = randn(M, D, seed=41)
X_T = randn(1, D, seed=42)
LEVELS: list[tuple[Schedule | None, float]] = [
    (None, 300.0),
    (None, 700.0),
    (VP(), 0.4),
    (VE(), 0.6),
    (RectifiedFlow(), 0.35),
]


def given(noise_std: float = NOISE, batch: int = 1):
    return measured(MATRIX, randn(1, M, seed=43).expand(batch, M), noise_std)


def a_step(
    batch: int = 1, t: float = 400.0, *, noise_std: float = NOISE, probe_seed: int = 0, prior=None, **kw
) -> Step:
    prior = mixture() if prior is None else prior
    return step_at(
        prior, given(noise_std, batch), X_T.expand(batch, D), t, t - 10.0, draws=rows(batch, probe_seed), **kw
    )


def printed(prior: GaussianMixture, x_t: Tensor, t: float, noise_std: float) -> tuple[Tensor, Tensor]:
    """Value (Theorem 1) and gradient (Theorem 2) with the inverses in them; ``Sigma`` from the components."""

    def sigma_of(x: Tensor) -> Tensor:
        return prior.covariance(x[None], t)[0]

    sigma = sigma_of(x_t)
    d_sigma = torch.autograd.functional.jacobian(sigma_of, x_t).movedim(-1, 0)
    given_x, gain = torch.linalg.inv(sigma), MATRIX.mT @ MATRIX / noise_std**2
    sigma_y = torch.linalg.inv(given_x + gain)
    d_sigma_y = sigma_y @ given_x @ d_sigma @ given_x @ sigma_y
    value = 0.5 * torch.logdet(sigma) - 0.5 * torch.logdet(sigma_y)
    first = torch.einsum("ij,kji->k", given_x, d_sigma)
    second = torch.einsum("ij,kji->k", torch.linalg.inv(sigma_y), d_sigma_y)
    return value, 0.5 * (first - second)


@pytest.mark.parametrize(("schedule", "t"), LEVELS)
@pytest.mark.parametrize("noise_std", [0.05, 1.0])
def test_exact_is_theorems_1_and_2(schedule, t, noise_std):
    prior, x_t = mixture(schedule=schedule), randn(2, D, seed=44)
    values, gradients = exact(prior, given(noise_std), x_t, t)
    for x, value, grad in zip(x_t, values, gradients, strict=True):
        v, g = printed(prior, x, t, noise_std)
        torch.testing.assert_close(value, v, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(grad, g, rtol=1e-9, atol=1e-10 * max(1.0, float(g.abs().max())))


def test_the_gradient_is_the_slope_of_the_printed_value():
    prior, h = mixture(), 1e-4
    direction = randn(D, seed=45)
    up, down = (printed(prior, X_T[0] + sign * h * direction, 400.0, NOISE)[0] for sign in (1, -1))
    grad = exact(prior, given(), X_T, 400.0)[1][0]
    torch.testing.assert_close(grad @ direction, (up - down) / (2 * h), rtol=1e-6, atol=1e-8)


def test_information_of_a_gaussian_is_the_textbook_one_and_has_no_gradient():
    prior = gaussian(D)
    alpha, sigma = prior.schedule(400.0)
    cov = torch.linalg.inv(
        torch.linalg.inv(prior.covariance_matrices()[0]) + alpha**2 / sigma**2 * torch.eye(D, dtype=F64)
    )
    textbook = 0.5 * torch.logdet(torch.eye(M, dtype=F64) + MATRIX @ cov @ MATRIX.mT / NOISE**2)
    value, grad = exact(prior, given(), X_T, 400.0)
    torch.testing.assert_close(value[0], textbook, rtol=1e-11, atol=1e-12)
    assert float(grad.abs().max()) < 1e-11
    step = a_step(prior=prior)
    for estimator in get_args(Estimator):
        ours = gradient_at(step, Exact(40).at(step), estimator=estimator, contraction="double-backward")
        assert float(ours.abs().max()) < 1e-10


def test_a_useless_measurement_carries_no_information():
    prior = mixture()
    for noise_std, bound in ((1e2, 1e-1), (1e4, 1e-5)):
        value, grad = exact(prior, given(noise_std), X_T, 400.0)
        assert 0 <= float(value) < bound
        assert float(grad.abs().max()) < bound
    blind = replace(given(), physics=measured(torch.zeros(M, D, dtype=F64), given().y, NOISE).physics)
    value, grad = exact(prior, blind, X_T, 400.0)
    assert float(value.abs().max()) == 0
    assert float(grad.abs().max()) == 0


def test_a_noise_free_measurement_carries_infinite_information():
    step = a_step(noise_std=0.0)
    with pytest.raises(ValueError, match="infinite"):
        exact(step.prior, step.measurement, X_T, 400.0)
    with pytest.raises(ValueError, match="infinite"):
        value_at(step, BoundIsotropic(step, 0.5))


# estimators

PROBES = 3000
BIAS_FREE = [(estimator, probe) for estimator in get_args(Estimator) for probe in ("rademacher", "gaussian")]


@functools.cache
def rows_of_probes(estimator, probe, covariance="exact") -> tuple[Tensor, Step]:
    step = a_step(PROBES)
    own = Exact(24).at(step) if covariance == "exact" else BoundIsotropic(step, 0.3)
    return gradient_at(step, own, estimator=estimator, probe=probe, contraction="double-backward"), step


@pytest.mark.parametrize(("estimator", "probe"), BIAS_FREE)
def test_each_estimator_is_unbiased(estimator, probe):
    draws, _ = rows_of_probes(estimator, probe)
    grad = printed(mixture(), X_T[0], 400.0, NOISE)[1]
    z = (draws.mean(0) - grad) / (draws.std(0) / PROBES**0.5)
    assert float(z.abs().max()) < 4.5


def test_the_estimators_rank_as_measured():
    """Symmetric < measurement and shared probe < the paper's two terms, and random signs beat Gaussian probes."""
    grad = printed(mixture(), X_T[0], 400.0, NOISE)[1]
    spreads = {
        case: float((rows_of_probes(*case)[0] - grad).square().sum(1).mean().sqrt() / grad.norm()) for case in BIAS_FREE
    }
    for probe in ("rademacher", "gaussian"):
        s = {estimator: spreads[estimator, probe] for estimator in get_args(Estimator)}
        assert s["measurement-symmetric"] < s["measurement"] < s["two-term"]
        assert s["measurement-symmetric"] < s["shared-probe"] < s["two-term"]
    for estimator in get_args(Estimator):
        assert spreads[estimator, "rademacher"] < spreads[estimator, "gaussian"]
    assert spreads["two-term", "rademacher"] > 2 * spreads["measurement-symmetric", "rademacher"]


@pytest.mark.parametrize("estimator", ["measurement-symmetric", "measurement", "shared-probe"])
def test_another_covariance_changes_s_alone(estimator):
    """With ``Sigma ~ r^2 I`` inside ``S``: ``1/2 Tr(A^T S^-1 A d_k Sigma)`` with the true ``d_k Sigma``."""
    draws, _ = rows_of_probes(estimator, "rademacher", "isotropic")
    prior = mixture()
    d_sigma = torch.autograd.functional.jacobian(lambda x: prior.covariance(x[None], 400.0)[0], X_T[0]).movedim(-1, 0)
    s = NOISE**2 * torch.eye(M, dtype=F64) + 0.3 * MATRIX @ MATRIX.mT
    grad = 0.5 * torch.einsum("ij,kji->k", MATRIX.mT @ torch.linalg.solve(s, MATRIX), d_sigma)
    z = (draws.mean(0) - grad) / (draws.std(0) / PROBES**0.5)
    assert float(z.abs().max()) < 4.5


def test_probes_average_and_differ():
    step = a_step(5)

    def second(stream: str, index: int, like: Tensor, inner: int = 0) -> Tensor:
        return step.draws.normal(stream, index, like, inner + 1)

    later = replace(step, problem=replace(step.problem, draws=SimpleNamespace(normal=second)))
    single = [gradient_at(one, BoundIsotropic(one, 0.3), probes=1) for one in (step, later)]
    both = gradient_at(step, BoundIsotropic(step, 0.3), probes=2)
    torch.testing.assert_close(both, 0.5 * (single[0] + single[1]))
    assert float((single[0] - single[1]).norm()) > 1e-3 * float(single[0].norm())
    assert float((single[0][0] - single[0][1]).norm()) > 1e-3 * float(single[0].norm())


# contractions


@pytest.mark.parametrize(("schedule", "t"), LEVELS)
def test_contractions_against_the_third_derivative(schedule, t):
    """``C(a, b)_k = sum_ij b_i a_j d_k J_ij`` with ``J`` from the components' covariance."""
    prior = mixture(schedule=schedule)
    step = step_at(prior, given(batch=2), randn(2, D, seed=46), t, 0.9 * t)
    alpha, sigma = prior.schedule(t)
    a, b = randn(2, D, seed=47), randn(2, D, seed=48)
    theirs = []
    for row, x in enumerate(step.x_t.detach()):
        third = torch.autograd.functional.jacobian(lambda x: prior.covariance(x[None], t)[0], x) * alpha / sigma**2
        theirs.append(
            (torch.einsum("i,ijk,j->k", b[row], third, a[row]), torch.einsum("i,ijk,j->k", a[row], third, a[row]))
        )
    mixed, same = (torch.stack(parts) for parts in zip(*theirs, strict=True))
    tolerances: dict[Contraction, float] = {
        "double-backward": 1e-10,
        "reverse-over-forward": 1e-10,
        "finite-difference": 1e-6,
    }
    for how, rtol in tolerances.items():
        assert float((contract(step, a, b, how) - mixed).norm() / mixed.norm()) < rtol
    assert float((contract(step, a, a, "second-difference") - same).norm() / same.norm()) < 1e-4


def test_finite_differences_converge_at_second_order():
    step, a, b = a_step(), randn(1, D, seed=47), randn(1, D, seed=48)
    truth = contract(step, a, b, "double-backward")
    errors = [float((contract(step, a, b, "finite-difference", size) - truth).norm()) for size in (0.02, 0.01)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)
    truth = contract(step, a, a, "double-backward")
    errors = [float((contract(step, a, a, "second-difference", size) - truth).norm()) for size in (0.02, 0.01)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("how", get_args(Contraction))
def test_a_linear_denoiser_has_no_third_derivative(how):
    weight = randn(D, D, seed=1)
    for network in (lambda x, t: x @ weight.mT, lambda x, t: torch.ones_like(x) + 0 * x):
        step = a_step(prior=NetworkPrior(network, "x0", channels=None))
        a = randn(1, D, seed=47)
        assert float(contract(step, a, a, how).abs().max()) < 1e-4


@pytest.mark.parametrize("how", get_args(Contraction))
def test_a_zero_direction_gives_zero(how):
    step = a_step()
    assert float(contract(step, torch.zeros_like(X_T), torch.zeros_like(X_T), how).abs().max()) == 0


def test_contractions_work_without_gradient_mode():
    step, a, b = a_step(), randn(1, D, seed=47), randn(1, D, seed=48)
    for how in get_args(Contraction):
        with torch.no_grad():
            inside = contract(step, a, a if how == "second-difference" else b, how)
        torch.testing.assert_close(inside, contract(step, a, a if how == "second-difference" else b, how))


# the value at any size


def test_quadrature_estimates_the_exact_value():
    step = a_step(400)
    value, error = value_at(step, Exact(24).at(step), probes=20, iterations=M)
    truth = printed(mixture(), X_T[0], 400.0, NOISE)[0]
    assert abs(float(value.mean() - truth)) < 4.5 * float(value.std() / 400**0.5)
    assert float(error.mean()) == pytest.approx(float(value.std()), rel=0.15)


def test_quadrature_of_a_multiple_of_the_identity_has_no_error():
    physics = measured(torch.linalg.qr(MATRIX.mT)[0].mT, given().y, NOISE)
    step = with_measurement(a_step(), physics)
    value, error = value_at(step, BoundIsotropic(step, 0.7), probes=3)
    torch.testing.assert_close(value[0], torch.tensor(0.5 * M * math.log(1 + 0.7 / NOISE**2), dtype=F64))
    assert float(error) < 1e-10


# the correction


def r2(step: Step, v: float) -> float:
    """The variance of ``x_0 | x_t`` for ``x_0 ~ N(0, v)``, by adding precisions."""
    alpha, sigma = step.level_t
    return 1 / (1 / v + alpha**2 / sigma**2)


def moved(cmi: CMI, step: Step) -> Tensor:
    """The move of ``x_s`` by CMI: that of the denoised image, times its coefficient."""
    correction = cmi(step).correction
    assert correction is not None
    return step.coefficients[1] * correction


def test_the_move_is_the_weighted_gradient():
    step = a_step()
    grad = gradient_at(step, BoundIsotropic(step, r2(step, step.prior.variance)))
    beta = 1 - (step.level_t[0] / step.level_s[0]) ** 2
    weights = {"reverse-sde": beta / math.sqrt(1 - beta), "constant": 1.0}
    weights["snr"] = weights["reverse-sde"] * step.level_t[0] ** 2
    for name, weight in weights.items():
        cmi = CMI(0.01, weight=name, cap=math.inf)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(moved(cmi, step), 0.01 * weight * grad, rtol=1e-8, atol=1e-12)
    cmi = CMI(-0.01, weight=lambda t: (t / 100) ** 3, cap=math.inf)
    torch.testing.assert_close(moved(cmi, step), -0.01 * 64 * grad, rtol=1e-10, atol=1e-12)


def test_the_covariance_inside_s_has_the_variance_of_the_prior_or_the_stated_one():
    step = a_step()
    for cmi, v in ((CMI(), step.prior.variance), (CMI(covariance=Isotropic(0.9)), 0.9)):
        grad = gradient_at(step, BoundIsotropic(step, r2(step, v)))
        weight = step.score_weight
        cmi = replace(cmi, cap=math.inf)
        torch.testing.assert_close(moved(cmi, step), 0.1 * weight * grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("sampler", [Ancestral(), DDIM(0.5), ProbabilityFlow(1), Renoise()], ids=str)
@pytest.mark.parametrize("solver", [Unconditional(), DPS(0.4), PiGDM(), PiGDM(weight="additive")], ids=str)
def test_the_state_moves_by_the_gradient_whatever_the_sampler(sampler, solver):
    step = a_step(sampler=sampler)
    base, corrected = solver.step(step, None)[0], solver.step(CMI(0.5, cap=math.inf)(step), None)[0]
    grad = gradient_at(step, BoundIsotropic(step, r2(step, step.prior.variance)))
    torch.testing.assert_close(corrected - base, 0.5 * step.score_weight * grad, rtol=1e-6, atol=1e-9)


def test_a_clipped_image_moves_by_what_the_clip_leaves():
    clip = (-0.3, 0.3)
    step = CMI(50.0, cap=math.inf)(a_step(clip=clip))
    assert step.correction is not None
    inside = step.x_hat.detach().clamp(*clip)
    left = (inside + step.correction).clamp(*clip) - inside
    assert not torch.allclose(left, step.correction)
    torch.testing.assert_close(step.corrected(step.x_hat), inside + left)
    torch.testing.assert_close(step.record.corrections[0], left)


def test_cap_bounds_each_image_alone():
    step = step_at(mixture(), given(batch=3), randn(3, D, seed=50), 400.0, 300.0)
    free, capped = moved(CMI(1e3, cap=math.inf), step), moved(CMI(1e3, cap=0.5), step)
    alpha_ts = step.level_t[0] / step.level_s[0]
    most = 0.5 * math.sqrt(D * (step.level_t[1] ** 2 - alpha_ts**2 * step.level_s[1] ** 2))
    torch.testing.assert_close(capped.norm(dim=1), torch.full((3,), most, dtype=F64))
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(capped, free), torch.ones(3, dtype=F64))
    torch.testing.assert_close(moved(CMI(1e-6, cap=0.5), step), 1e-9 * free, rtol=1e-9, atol=0)


def test_window_every_and_the_last_step():
    step = a_step()
    r = step.ratio
    assert CMI(window=(0.9 * r, 1.1 * r))(step).correction is not None
    assert CMI(window=(1.1 * r, 2 * r))(step).correction is None
    assert CMI(window=(0.0, 0.9 * r))(step).correction is None
    assert CMI(every=3)(replace(step, index=4)).correction is None
    third = replace(step, index=3)
    each = moved(CMI(0.01, cap=math.inf), third)
    torch.testing.assert_close(moved(CMI(0.01, every=3, cap=math.inf), third), 3 * each)
    assert CMI()(replace(step, s=step.prior.schedule.end)).correction is None


def run(cmi: CMI | None, sampler: Sampler, solver: Solver) -> Tensor:
    prior = mixture()
    problem = problem_of(prior, given(batch=2), sampler=sampler)
    *_, last = sample(problem, solver, prior.schedule.grid(12), cmi)
    return last.x_s


@pytest.mark.parametrize("sampler", [Ancestral(), ProbabilityFlow()])
@pytest.mark.parametrize("solver", [Unconditional(), DPS(0.3), PiGDM()])
def test_eta_zero_is_the_base_solver_bit_for_bit(sampler, solver):
    base = run(None, sampler, solver)
    for covariance in COVARIANCES:
        assert torch.equal(run(CMI(0.0, covariance=covariance), sampler, solver), base)
    assert not torch.equal(run(CMI(0.1), sampler, solver), base)


def test_heuns_rule_corrects_the_image_at_both_ends():
    """For a Gaussian prior ``grad I`` vanishes, so a correction given by hand is followed through both slopes."""
    prior = gaussian(D, schedule=VE())
    step = step_at(prior, given(), 2 * X_T, 2.0, 1.9, sampler=ProbabilityFlow())
    c = 1e-3 * randn(1, D, seed=51)
    plain, corrected = step.advance()[0], replace(step, correction=c).advance()[0]
    # dx/dr = (x - x_hat(x) - c) / r at both ends, x_hat linear for a Gaussian
    jacobian = torch.linalg.inv(torch.eye(D, dtype=F64) + 1.9**2 * torch.linalg.inv(prior.covariance_matrices()[0]))
    euler = (1 - 1.9 / 2.0) * c
    theirs = (1.9 - 2.0) * 0.5 * (-c / 2.0 + (euler - euler @ jacobian.mT - c) / 1.9)
    torch.testing.assert_close(corrected - plain, theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("contraction", get_args(Contraction))
def test_every_covariance_goes_with_every_contraction(covariance, contraction):
    base = run(None, Ancestral(), DPS(1.2e-3))
    changed = run(CMI(0.01, covariance=covariance, contraction=contraction), Ancestral(), DPS(1.2e-3))
    assert bool(changed.isfinite().all())
    assert not torch.equal(changed, base)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"estimator": "both"}, "estimator must be one of"),
        ({"contraction": "forward"}, "contraction must be one of"),
        ({"probe": "sphere"}, "probe must be one of"),
        ({"covariance": "exat"}, "unknown covariance 'exat': did you mean exact"),
        ({"weight": "beta"}, "weight must be one of"),
        ({"eta": math.nan}, "eta must be a number"),
        ({"eta": math.inf}, "eta must be finite"),
        ({"probes": 0}, "at least 1"),
        ({"every": 0}, "at least 1"),
        ({"cap": 0.0}, "cap > 0"),
        ({"cap": math.nan}, "cap must be a number"),
        ({"window": (2.0, 1.0)}, r"window\[0\]"),
        ({"window": (-1.0, 1.0)}, r"window\[0\]"),
        ({"window": (0.0, math.nan)}, "window must be a tuple"),
        ({"contraction": "second-difference", "estimator": "measurement"}, "same direction"),
        ({"contraction": "second-difference", "estimator": "two-term"}, "same direction"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        CMI(**options)


# coordinates, units, the door

ESTIMATORS_OF_Y = ("measurement-symmetric", "measurement")


@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_as_many_coordinates_as_numbers_are_exact(estimator):
    step, truth = a_step(batch=2), printed(mixture(), X_T[0], 400.0, NOISE)[1]
    count = M if estimator in ESTIMATORS_OF_Y else D
    for probes in (count, count + 3):
        ours = gradient_at(
            step,
            Exact(40).at(step),
            estimator=estimator,
            probe="coordinate",
            probes=probes,
            contraction="double-backward",
        )
        for row in ours:
            torch.testing.assert_close(row, truth, rtol=1e-8, atol=1e-9 * float(truth.abs().max()))


def test_fewer_coordinates_are_unbiased_and_without_replacement():
    step = a_step(PROBES)
    spread = []
    for probes in (1, M - 1):
        draws = gradient_at(step, Exact(24).at(step), probe="coordinate", probes=probes, contraction="double-backward")
        error = draws - printed(mixture(), X_T[0], 400.0, NOISE)[1]
        assert float((error.mean(0) / (error.std(0) / PROBES**0.5)).abs().max()) < 4.5
        spread.append(float(error.square().sum(1).mean()))
    # without replacement the variance of a mean of r out of m falls by (m - r) / (m - 1) beyond 1 / r
    assert spread[1] / spread[0] == pytest.approx(1 / (M - 1) / (M - 1), rel=0.1)


def test_coordinates_skip_what_a_mask_hides():
    shape = (1, 4, 4)
    prior = GaussianMixture(torch.ones(3, dtype=F64), randn(3, *shape, seed=5), torch.full((3, *shape), 0.2, dtype=F64))
    hidden = inpaint_random(shape, hidden=0.7, noise_std=NOISE, seed=3, dtype=F64)
    x_t = randn(2, *shape, seed=6)
    m = int(measured_count(hidden, hidden.A(x_t))[0])
    assert 0 < m < 16
    grad = gradient(prior, hidden, x_t, 400.0, probe="coordinate", probes=m, contraction="double-backward")
    torch.testing.assert_close(grad, exact(prior, hidden, x_t, 400.0)[1], rtol=1e-7, atol=1e-9)


def test_a_batch_is_its_rows():
    x_t = randn(3, D, seed=44)
    together = exact(mixture(), given(), x_t, 400.0)
    for k in range(3):
        for whole, one in zip(together, exact(mixture(), given(), x_t[k : k + 1], 400.0), strict=True):
            torch.testing.assert_close(whole[k : k + 1], one, rtol=1e-12, atol=1e-12)


def test_the_door_takes_a_physics_and_gives_bits():
    prior, physics = mixture(), matrix_physics(MATRIX, noise_std=NOISE)
    value, grad = exact(prior, physics, X_T, 400.0)
    torch.testing.assert_close(value[0], printed(prior, X_T[0], 400.0, NOISE)[0], rtol=1e-10, atol=1e-10)
    bits = exact(prior, physics, X_T, 400.0, unit="bits")
    torch.testing.assert_close(bits[0] * math.log(2), value)
    torch.testing.assert_close(bits[1] * math.log(2), grad)
    estimated, error = estimate(prior, physics, X_T, 400.0, probes=60, iterations=M)
    assert abs(float(estimated - value)) < 4 * float(error)
    inbits = estimate(prior, physics, X_T, 400.0, probes=60, iterations=M, unit="bits")[0]
    torch.testing.assert_close(inbits * math.log(2), estimated)
    at_the_door = gradient(prior, physics, X_T, 400.0, probe="coordinate", probes=M, contraction="double-backward")
    torch.testing.assert_close(at_the_door, grad, rtol=1e-8, atol=1e-9)
    louder = exact(prior, physics, X_T, 400.0, noise_std=2 * NOISE)[0]
    assert float(louder) < float(value)


def test_the_door_refuses():
    prior, physics = mixture(), matrix_physics(MATRIX, noise_std=NOISE)
    with pytest.raises(ValueError, match="nats or bits"):
        exact(prior, physics, X_T, 400.0, unit="nit")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="second-difference needs"):
        gradient(prior, physics, X_T, 400.0, estimator="two-term", contraction="second-difference")
    with pytest.raises(ValueError, match="noise_std is not known"):
        exact(prior, LinearPhysics(A=lambda x: x, A_adjoint=lambda y: y), X_T, 400.0)


def test_a_window_in_times_and_a_weight_in_times():
    seen = []

    def weight(t: float) -> float:
        seen.append(t)
        return 1.0

    step = a_step(t=400.0)
    assert CMI(times=(300.0, 400.0)).active(step)
    assert not CMI(times=(401.0, 900.0)).active(step)
    assert CMI(0.5, weight=weight).eta_t(step) == 0.5
    assert seen == [400.0]
    with pytest.raises(ValueError, match="times"):
        CMI(times=(2.0, 1.0))


def test_a_nonlinear_physics_is_linearised_at_x_hat():
    """Its derivative is dense here: ``A(x) = tanh(B x)``, ``dA/dx = diag(1 - tanh^2(B x_hat)) B``."""

    class Saturating(Physics):
        img_size = (D,)

        def A(self, x: Tensor, **_: object) -> Tensor:
            return torch.tanh(x @ MATRIX.mT)

    prior, t = mixture(), 400.0
    x_hat = prior(X_T, t).mean[0]
    slope = (1 - torch.tanh(MATRIX @ x_hat) ** 2)[:, None] * MATRIX
    theirs = exact(prior, matrix_physics(slope, noise_std=NOISE), X_T, t)
    for ours, value in zip(exact(prior, Saturating(), X_T, t, noise_std=NOISE), theirs, strict=True):
        torch.testing.assert_close(ours, value, rtol=1e-9, atol=1e-10)
    step = step_at(prior, replace(given(), physics=Saturating()), X_T, t, t - 10)
    linear = step_at(prior, replace(given(), physics=matrix_physics(slope, noise_std=NOISE)), X_T, t, t - 10)
    cmi = CMI(0.3, covariance="exact")
    torch.testing.assert_close(moved(cmi, step), moved(cmi, linear), rtol=1e-6, atol=1e-8)
    assert cmi(step).measurement is step.measurement


# half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ratio", [0.3, 2.0])
def test_the_gradient_of_a_network_in_half_precision_is_that_in_single_precision(dtype, ratio):
    physics = inpaint_random((3, 16, 16), hidden=0.5, seed=0)

    def at(precision: torch.dtype, contraction: Contraction | None = None) -> Tensor:
        prior = load_prior("natural-64", dtype=precision)
        alpha, sigma = prior.schedule(t := prior.schedule.time(ratio))
        image = torch.linspace(-0.8, 0.8, 16).expand(1, 3, 16, 16)
        x_t = alpha * image + sigma * randn(1, 3, 16, 16, seed=5).float()
        return gradient(prior, physics, x_t, t, noise_std=0.1, contraction=contraction, seed=3)

    exact_one, found = at(torch.float32, "double-backward"), at(dtype)
    assert float((found - exact_one).norm() / exact_one.norm()) < 0.15
    coarse = at(dtype, "second-difference")  # the default of single precision
    assert float((coarse - exact_one).norm() / exact_one.norm()) > 0.4
