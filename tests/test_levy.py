"""Lévy processes: the exact denoiser and the Gibbs references against quadrature, the scores against known values."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cmidiff import CADPS, CMI, GaussianMixture, restore
from cmidiff.laboratory import Settings, levy
from cmidiff.laboratory.increments import (
    BernoulliLaplace,
    Gaussian,
    Increments,
    Laplace,
    Student,
    normal,
)
from cmidiff.laboratory.levy import COLUMNS, FLOOR, FREE, FURTHER, RATIO, Job, Method, methods, search
from cmidiff.laboratory.levy_gibbs import Model, split_r_hat
from cmidiff.laboratory.levy_prior import REACH, Chain, LevyPrior, grid_of
from cmidiff.laboratory.levy_problems import FAMILIES, LOWEST, TASKS, matrix_of, problems_of
from cmidiff.laboratory.levy_scores import SAMPLES, coverage, score, within
from cmidiff.physics import from_matrix
from cmidiff.prior import from_callable
from cmidiff.registry import SOLVERS
from cmidiff.result import RestorationWarning
from cmidiff.schedule import VE

ROUGH: list[Increments] = [Laplace(), Student(1.0), Student(3.0), BernoulliLaplace()]
PROCESSES: list[Increments] = [Gaussian(), *ROUGH]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moments(increments: Increments, matrix: Tensor, y: Tensor, noise_std: float, width: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of ``p(x | y)`` by sums over fine grids of the increments, one for each set of increments
    that are zero."""
    d = matrix.shape[1]
    total, first, second = (torch.zeros(d, d, dtype=torch.float64)[(0,) * k] for k in (2, 1, 0))
    # a grid that has a point at zero, where the densities have kinks
    line = torch.linspace(-width, width, {2: 801, 3: 101}[d], dtype=torch.float64)
    step = float(line[1] - line[0])
    for on in itertools.product((True, False) if increments.atom else (True,), repeat=d):
        axes = [line if o else torch.zeros(1, dtype=torch.float64) for o in on]
        u = torch.cartesian_prod(*axes).reshape(-1, d)
        logs = sum(
            (increments.log_density(u[:, i]) + math.log(step)) if o else math.log(increments.atom)
            for i, o in enumerate(on)
        )
        x = u.cumsum(1)
        w = (logs - 0.5 * (y - x @ matrix.mT).square().sum(1) / noise_std**2).exp()
        total, first = total + w.sum(), first + w @ x
        second = second + torch.einsum("n,ni,nj->ij", w, x, x)
    mean = first / total
    return mean, second / total - mean[:, None] * mean


@pytest.mark.parametrize("increments", PROCESSES, ids=str)
def test_the_characteristic_function_and_the_scales_are_those_of_the_density(increments: Increments):
    u = torch.linspace(-400, 400, 1_600_001, dtype=torch.float64)
    density = increments.log_density(u).exp() * 5e-4
    for omega in (0.3, 1.0, 2.5):
        found = float((density * torch.cos(omega * u)).sum()) + increments.atom
        assert found == pytest.approx(float(increments.characteristic(np.array(omega))), abs=2e-3)
    g = generator(0)
    drawn = increments.draw((100_000,), g)
    assert float((drawn == 0).double().mean()) == pytest.approx(increments.atom, abs=5e-3)
    moving = drawn[drawn != 0]
    marks = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    again = increments.scales_given(moving, g).quantile(marks)  # tau of p(u) p(tau | u) has its own distribution
    torch.testing.assert_close(again, increments.scales((100_000,), g).quantile(marks), rtol=0.05, atol=0)


@pytest.mark.parametrize("rho", [0.3, 2.0])
@pytest.mark.parametrize("increments", ROUGH, ids=str)
def test_the_denoiser_is_that_of_quadrature(increments: Increments, rho: float):
    x = increments.draw((2, 2), generator(3)).cumsum(1)
    v = x + rho * normal((2, 2), generator(4))
    mean, jacobian = Chain(grid_of(increments, rho, 2, 1.4), 0.6).mean_and_jacobian(0.6 * v)
    for row in range(2):
        width = float(v[row].abs().max()) + 8 * rho
        exact, covariance = moments(increments, torch.eye(2, dtype=torch.float64), v[row], rho, width)
        torch.testing.assert_close(mean[row], exact, rtol=0, atol=3e-4 * rho)
        torch.testing.assert_close(jacobian[row] * 0.6 * rho**2, covariance, rtol=0, atol=3e-4 * rho**2)


def test_three_sites_against_quadrature():
    x = torch.tensor([0.4, 0.4, 1.9], dtype=torch.float64)
    for increments in (BernoulliLaplace(), Student(3.0)):
        exact, _ = moments(increments, torch.eye(3, dtype=torch.float64), x, 0.5, 5.0)
        mean = Chain(grid_of(increments, 0.5, 3, 1.4), 1.0).mean(x[None])
        torch.testing.assert_close(mean[0], exact, rtol=0, atol=3e-3)


@pytest.mark.parametrize("increments", ROUGH, ids=str)
def test_a_finer_grid_changes_nothing(increments: Increments):
    for rho in (0.05, 1.0, 20.0):
        v = increments.draw((4, 24), generator(5)).cumsum(1) + rho * normal((4, 24), generator(6))
        found, finer = (Chain(grid_of(increments, rho, 24, r), 1.0).mean(v) for r in (1.4, 2.8))
        assert float((found - finer).abs().max()) < 2e-4 * rho


def test_messages_of_a_gaussian_process_are_the_closed_form():
    prior = LevyPrior(Gaussian(), d=12)
    x = normal((3, 1, 12), generator(0))
    for t in (100, 500):
        alpha, sigma = prior.schedule(t)
        chain = Chain(grid_of(prior.increments, sigma / alpha, 12, 1.4), alpha)
        torch.testing.assert_close(prior(x, t).mean[:, 0], chain.mean(x[:, 0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("increments", ROUGH, ids=str)
def test_all_derivatives_are_those_of_differences(increments: Increments):
    prior, t, h = LevyPrior(increments, d=10), 300, 1e-4
    alpha, sigma = prior.schedule(t)
    x = alpha * prior.sample(2, generator(7))[:, None] + sigma * normal((2, 1, 10), generator(8))
    a, b = normal((2, 1, 10), generator(9)), normal((2, 1, 10), generator(10))

    def pulled(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(prior(at, t).mean, at, b)[0]

    slope = (prior(x + h * a, t).mean - prior(x - h * a, t).mean) / (2 * h)
    torch.testing.assert_close((pulled(x) * a).sum(2), (slope * b).sum(2), rtol=1e-4, atol=1e-5)
    x.requires_grad_()
    through = torch.autograd.grad(prior(x, t).mean, x, b, create_graph=True)[0]
    curvature = torch.autograd.grad((through * a).sum(), x)[0]
    torch.testing.assert_close(curvature, (pulled(x + h * a) - pulled(x - h * a)) / (2 * h), rtol=1e-3, atol=1e-4)


def test_a_row_does_not_depend_on_its_batch_and_keeps_its_type():
    prior = LevyPrior(BernoulliLaplace(), d=16)
    x = prior.sample(3, generator(1))[:, None]
    torch.testing.assert_close(prior(x, 200).mean[1:2], prior(x[1:2], 200).mean, rtol=1e-12, atol=1e-12)
    assert prior(x.float(), 200).mean.dtype == torch.float32
    assert prior.fingerprint != LevyPrior(BernoulliLaplace(atom=0.8), d=16).fingerprint


def test_a_number_that_is_eight_noise_levels_off_gets_a_wider_window():
    v = torch.zeros(1, 16, dtype=torch.float64)
    v[0, 8] = 8 * 5.0
    found, finer = (Chain(grid_of(Laplace(), 5.0, 16, r), 1.0).mean(v) for r in (1.4, 2.8))
    assert float((found - v).abs().max()) > REACH * 5.0  # beyond the first window
    torch.testing.assert_close(found, finer, rtol=0, atol=1e-3)


def test_the_prior_knows_its_second_moments():
    prior = LevyPrior(Laplace(), d=8)
    x = prior.sample(100_000, generator(0))
    assert prior.variance == pytest.approx(float(x.square().mean()), rel=0.03)
    torch.testing.assert_close(prior.covariance, x.mT @ x / len(x), rtol=0.1, atol=0.1)
    assert prior.second_moments.variance == pytest.approx(prior.variance)
    assert math.isfinite(LevyPrior(Student(1.0), d=8).variance)


@pytest.mark.parametrize("increments", PROCESSES, ids=str)
def test_gibbs_samples_are_those_of_quadrature(increments: Increments):
    matrix = torch.tensor([[0.6, 0.4], [-0.2, 1.0]], dtype=torch.float64)
    y = torch.tensor([[0.8, 1.1], [0.1, -0.2]], dtype=torch.float64)
    found = Model(increments, matrix, y, 0.4).sample(1600, generator(2), burn_in=50, thin=1)
    assert found.x.shape == (2, 1600, 2)
    assert float(found.r_hat.max()) < 1.05
    for row in range(2):
        mean, covariance = moments(increments, matrix, y[row], 0.4, 7.0)
        x = found.x[row]
        torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.08)
        torch.testing.assert_close(x.mT.cov(), covariance, rtol=0.25, atol=0.05)


def test_gibbs_and_the_denoiser_agree_in_many_dimensions():
    for increments in (Laplace(), BernoulliLaplace()):
        y = increments.draw((1, 20), generator(1)).cumsum(1) + 0.3 * normal((1, 20), generator(2))
        x = (
            Model(increments, torch.eye(20, dtype=torch.float64), y, 0.3)
            .sample(400, generator(3), burn_in=60, thin=1)
            .x
        )
        mean, jacobian = Chain(grid_of(increments, 0.3, 20, 1.4), 1.0).mean_and_jacobian(y)
        std = (jacobian.diagonal(dim1=1, dim2=2) * 0.3**2).sqrt()
        assert float(((x.mean(1) - mean) / std).abs().mean()) < 3 / math.sqrt(400)


def test_split_r_hat_sees_chains_that_disagree_and_chains_that_drift():
    same = normal((1, 2, 400, 1), generator(0))
    apart = same + torch.tensor([0.0, 2.0], dtype=torch.float64)[None, :, None, None]
    drift = same + torch.linspace(0, 4, 400, dtype=torch.float64)[:, None]
    assert float(split_r_hat(same)) < 1.02 < 1.2 < float(min(split_r_hat(apart), split_r_hat(drift)))
    assert float(split_r_hat(torch.zeros(1, 2, 10, 1))) == 1


def test_the_scores_of_exact_samples_and_of_others():
    reference = normal((200, 400, 2), generator(0)) * torch.tensor([1.0, 3.0])
    x = normal((200, SAMPLES, 2), generator(1)) * torch.tensor([1.0, 3.0])
    exact = score(x, reference)
    assert abs(float(exact.distance.mean())) < 0.01
    assert abs(float(exact.excess.mean())) < 0.02
    assert float(exact.coverage_50.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(exact.coverage_90.mean()) == pytest.approx(0.9, abs=0.01)
    # of a point at the mean of N(0, 1): 2 E|Y| - E|Y - Y'| over E|Y - Y'|, both known
    point = score(torch.zeros(200, 1, 2, dtype=torch.float64), reference)
    assert float(point.distance.mean()) == pytest.approx(math.sqrt(2) - 1, abs=0.01)
    assert bool(point.coverage_90.isnan().all())
    shifted = score(x + torch.tensor([2.0, 0.0]), reference)
    assert float(shifted.excess.mean()) == pytest.approx(4 / 10, abs=0.03)
    assert float(within(torch.tensor([[[0.0], [1.0], [3.0]]]))) == pytest.approx(2.0)


def test_an_atom_counts_half():
    x, reference = torch.zeros(1, SAMPLES, 1), torch.zeros(1, 10, 1)
    assert float(coverage(x, reference, 0.9)) == 0.0
    assert float(coverage(x + torch.linspace(-1, 1, SAMPLES)[:, None], reference, 0.9)) == 1.0


@pytest.mark.parametrize("task", TASKS)
def test_the_physics_measures_by_its_matrix(task: str):
    problems = problems_of("laplace", task, 3, generator(0), d=16)
    x = normal((3, 1, 16), generator(1))
    measured, by_matrix = problems.physics.A(x).flatten(1), x[:, 0] @ problems.matrix.mT
    torch.testing.assert_close(measured, by_matrix @ problems.matrix if task == "imputation" else by_matrix)
    rows = problems.matrix @ problems.matrix.mT
    if task != "blur":
        torch.testing.assert_close(rows, torch.eye(len(rows), dtype=torch.float64))
    else:
        torch.testing.assert_close(problems.matrix.sum(1), torch.ones(16, dtype=torch.float64))
        torch.testing.assert_close(problems.matrix.roll((1, 1), (0, 1)), problems.matrix)
    assert len(matrix_of("fourier", 16, generator(2))) >= 2 * LOWEST - 1
    with pytest.raises(ValueError, match="task must be one of"):
        matrix_of("nothing", 16, generator(0))


def test_the_noise_is_25_decibels_below_the_power():
    problems = problems_of("laplace", "denoise", 1, generator(0))
    power = problems.prior.sample(4000, generator(3)).square().mean(1).median()
    assert 10 * math.log10(float(power) / problems.noise_std**2) == pytest.approx(25, abs=0.5)


def test_every_solver_of_the_registry_is_run_and_free_step_sizes_exist():
    every = methods(50)
    assert set(SOLVERS) <= set(every)
    for name, free in FREE.items():
        assert free in {f.name for f in dataclasses.fields(SOLVERS.make(name))}
        assert len(Method(name).candidates()) > 1
    assert Method("pigdm").candidates() == []


@pytest.mark.parametrize("best", [0.02, 1.0, 200.0])
def test_the_search_goes_on_beyond_an_end_and_stops_where_the_solver_refuses(best: float):
    values = [0.1, 0.3, 1.0, 3.0, 10.0]

    def loss(value: float) -> float:
        return abs(math.log(value / best))

    found = search(loss, values, lambda value: True)
    assert max(found / best, best / found) < RATIO  # no further off than the next value
    bounded = search(loss, values, lambda value: 0.1 <= value <= 10)
    assert bounded == min(max(best, 0.1), 10)
    assert search(lambda value: value, values, lambda value: True) == pytest.approx(0.1 / RATIO**FURTHER)
    assert search(lambda value: 1 + 0.01 * value, values, lambda value: True) == pytest.approx(0.1 / RATIO)  # a plateau


def test_the_section_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    few = {name: methods(6)[name] for name in ("dps", "dps, CMI", "cadps-exact", "cadps-paper", "dpir", "tds")}
    monkeypatch.setattr(levy, "methods", lambda steps: few)
    found = levy.measure(Settings(quick=True, scratch=tmp_path))
    rows = {row[0]: row[1] for row in found.tables["distance"].rows}
    assert set(rows) == {FLOOR, *few}
    assert rows["cadps-paper"] == "diverged (100%)"  # on an unbounded range: a status, and no number in the means
    best = float(str(rows["cadps-exact"]).split()[0])
    assert best < float(str(rows["dps"]).split()[0]) < float(str(rows["tds"]).split()[0])
    changes = {row[0]: row[1] for row in found.tables["cmi"].rows}
    assert float(str(changes["dps"]).split()[0]) == pytest.approx(0, abs=1e-6)  # a Gaussian process has no gradient
    assert len(list(tmp_path.glob("*.json"))) == 1 + len(few) + 1
    monkeypatch.setattr(levy, "run", None)  # nothing is run again
    assert levy.measure(Settings(quick=True, scratch=tmp_path)).tables["distance"] == found.tables["distance"]


def test_what_a_solver_refuses_is_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(levy, "methods", lambda steps: {"odd": Method("dsg", sampler=levy.ProbabilityFlow())})
    (row,) = Job("imputation", "gauss", Settings(quick=True)).rows("odd")
    assert "uses the noise of the sampler" in str(dict(zip(COLUMNS, row, strict=True))["refused"])


@pytest.mark.parametrize("family", ["laplace", "bernoulli-laplace"])
def test_the_solvers_run_on_it_with_their_defaults(family: str):
    problems = problems_of(family, "imputation", 1, generator(0), d=12)
    reference = problems.reference(100, generator(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RestorationWarning)
        found = restore(
            problems.y,
            problems.physics,
            problems.prior,
            solver="cadps",
            cmi=True,
            steps=10,
            samples=6,
            value_range=None,
        )
    assert bool(found.ok.all())
    assert float(score(found.samples[:, :, 0], reference.x).distance) < 0.3


@pytest.mark.parametrize("scale", [0.05, 4.0])
def test_defaults_are_relative_to_the_size_of_the_signals(scale: float):
    """A signal in other units gives the same restoration in these units: the switch of the covariance and the window of
    CMI are relative to the prior's own variance."""
    g = generator(0)
    weights, means = torch.tensor([0.4, 0.6], dtype=torch.float64), 2 * normal((2, 1, 6), g)
    covariance = torch.stack([torch.diag(0.2 + torch.rand(6, generator=g, dtype=torch.float64)) for _ in range(2)])
    matrix, y = normal((3, 6), g), normal((1, 3), g)

    def restored(c: float) -> Tensor:
        prior = GaussianMixture(weights, c * means, c**2 * covariance, VE())
        physics = from_matrix(matrix, (1, 6), noise_std=0.3 * c, dtype=torch.float64)
        found = restore(c * y, physics, prior, solver=CADPS(), cmi=CMI(0.5), steps=12, samples=3, value_range=None)
        return found.samples / c

    torch.testing.assert_close(restored(scale), restored(1.0), rtol=1e-4, atol=1e-4)


def test_a_callable_prior_takes_the_variance_of_its_signals():
    prior = from_callable(lambda x, t: x, VE(), "x0", value_range=None, channels=None, variance=25.0)
    assert prior.variance == 25.0
    with pytest.raises(ValueError, match="variance must be a number > 0"):
        from_callable(lambda x, t: x, VE(), "x0", variance=0.0)


def test_families_are_the_paper_s():
    assert FAMILIES["gauss"].variance == 0.25
    assert FAMILIES["laplace"].variance == 2.0
    assert FAMILIES["bernoulli-laplace"].variance == pytest.approx(0.2)
    assert {p.nu for p in FAMILIES.values() if isinstance(p, Student)} == {1.0, 3.0}
