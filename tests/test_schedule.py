"""Schedules against their definitions and against the official grid."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from cmidiff.schedule import DDPM, VE, VP, RectifiedFlow, Schedule, karras, pairs
from cmidiff.step import Step
from tests.cases import gaussian, measured, randn, step_at

OPERATORS = Path(__file__).resolve().parents[2] / "shared" / "conformance" / "operators.npz"
SCHEDULES: dict[str, Schedule] = {
    "ddpm": DDPM.linear(),
    "cosine": DDPM.cosine(),
    "vp": VP(),
    "ve": VE(),
    "flow": RectifiedFlow(),
}


@pytest.fixture
def official():
    if not OPERATORS.is_file():
        pytest.skip("the reference file of the official codes is not present")
    return np.load(OPERATORS)


def a_step(t: float, s: float, schedule: Schedule | None = None) -> Step:
    prior = gaussian(2, schedule=schedule)
    return step_at(prior, measured(randn(1, 2), randn(1, 1), 0.1), randn(1, 2), t, s)


@pytest.mark.parametrize("steps", [16, 100])
def test_grid_is_the_official_one(official, steps):
    assert DDPM.linear().grid(steps)[::-1] == official[f"space_timesteps_{steps}"].tolist()


def test_ddim_grid_is_the_official_one(official):
    assert DDPM.linear().ddim_grid(50)[::-1] == official["space_timesteps_ddim50"].tolist()


def test_respaced_kernel_is_the_official_one(official):
    ddpm = DDPM.linear()
    steps = pairs(ddpm.grid(100), ddpm.end)[::-1]  # the official arrays begin with the cleanest level
    for i, (t, s) in enumerate(steps):
        step = a_step(t, s)
        a, b = step.coefficients
        np.testing.assert_allclose(step.transition[1] ** 2, official["betas_respaced_100"][i], rtol=1e-9)
        np.testing.assert_allclose(b, official["post_mean_coef1_100"][i], rtol=1e-9)
        np.testing.assert_allclose(a, official["post_mean_coef2_100"][i], rtol=1e-9, atol=1e-12)
        if i > 0:
            assert isinstance(step.std, float)
            np.testing.assert_allclose(2 * math.log(step.std), official["post_logvar_clipped_100"][i], rtol=1e-9)


def test_ddpm_levels_are_the_cumulated_betas():
    ddpm, abar = DDPM.linear(), 1.0
    for t, beta in enumerate(np.linspace(1e-4, 0.02, 1000)):
        abar *= 1 - beta
        alpha, sigma = ddpm(t)
        assert abs(alpha**2 - abar) < 1e-14
        assert abs(sigma**2 - (1 - abar)) < 1e-14
    assert ddpm(-1) == (1.0, 0.0)


def test_ddpm_between_levels_is_monotone_and_geometric():
    ddpm = DDPM.linear()
    halves = np.arange(-1.0, 999.5, 0.5)
    ratios = [ddpm(t)[1] / ddpm(t)[0] for t in halves]
    assert all(a < b for a, b in itertools.pairwise(ratios))
    for t in (0.5, 100.5, 998.5):
        assert ddpm(t)[0] ** 2 == pytest.approx(ddpm(t - 0.5)[0] * ddpm(t + 0.5)[0], rel=1e-13)


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_inverts_the_ratio(name):
    schedule = SCHEDULES[name]
    for t in [*schedule.grid(13), *(0.5 * (a + b) for a, b in pairs(schedule.grid(13), schedule.end))]:
        alpha, sigma = schedule(t)
        assert schedule.time(sigma / alpha) == pytest.approx(t, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_grid_falls_to_the_clean_end(name, steps):
    schedule = SCHEDULES[name]
    grid = schedule.grid(steps)
    ratios = [schedule(t)[1] / schedule(t)[0] for t in grid]
    assert len(grid) == steps
    assert all(a > b > 0 for a, b in itertools.pairwise(ratios))
    assert schedule(schedule.end) == (1.0, 0.0)
    assert pairs(grid, schedule.end)[-1] == (grid[-1], schedule.end)


def test_vp_integrates_its_beta():
    vp = VP(beta_min=0.3, beta_max=11.0)
    for t in (0.1, 0.5, 1.0):
        u = (np.arange(20000) + 0.5) * t / 20000
        integral = np.mean(vp.beta_min + (vp.beta_max - vp.beta_min) * u) * t
        alpha, sigma = vp(t)
        assert alpha == pytest.approx(math.exp(-0.5 * integral), rel=1e-9)
        assert alpha**2 + sigma**2 == pytest.approx(1.0, abs=1e-14)


def test_identities_of_ve_and_flow():
    for t in (1e-3, 0.3, 0.999):
        assert VE()(t) == (1.0, t)
        assert RectifiedFlow()(t) == (1 - t, t)


def test_karras_is_uniform_in_the_root():
    levels = karras(9, 0.02, 50.0, 5.0)
    roots = np.diff(np.array(levels) ** (1 / 5))
    assert (levels[0], levels[-1]) == (pytest.approx(50.0), pytest.approx(0.02))
    np.testing.assert_allclose(roots, roots[0], rtol=1e-10)


@pytest.mark.parametrize(("name", "t", "s"), [("ddpm", 700.0, 300.0), ("vp", 0.8, 0.4), ("ve", 9.0, 2.0)])
def test_transition_composes_the_forward_kernel(name, t, s):
    step = a_step(t, s, SCHEDULES[name])
    (alpha_t, sigma_t), (alpha_s, sigma_s) = SCHEDULES[name](t), SCHEDULES[name](s)
    a, std = step.transition
    assert a * alpha_s == pytest.approx(alpha_t, rel=1e-13)
    assert (a * sigma_s) ** 2 + std**2 == pytest.approx(sigma_t**2, rel=1e-13)


@pytest.mark.parametrize("steps", [0, -3, 2.5, True, "10"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_impossible_numbers_of_steps_are_refused(name, steps):
    with pytest.raises(ValueError, match="steps must be a positive integer"):
        SCHEDULES[name].grid(steps)


def test_more_steps_than_levels_are_refused():
    with pytest.raises(ValueError, match="1000 levels"):
        DDPM.linear().grid(1001)
    with pytest.raises(ValueError, match="no integer stride"):
        DDPM.linear().ddim_grid(999)


@pytest.mark.parametrize("abar", [[], [0.5, 0.6], [1.0, 0.5], [0.5, 0.0], [[0.5]], [0.9, math.nan]])
def test_levels_that_are_no_noise_schedule_are_refused(abar):
    with pytest.raises(ValueError, match="strictly decreasing"):
        DDPM(np.array(abar))


@pytest.mark.parametrize("t", [-1.5, 999.5, math.nan])
def test_times_outside_the_levels_are_refused(t):
    with pytest.raises(ValueError, match="t must lie in"):
        DDPM.linear()(t)
