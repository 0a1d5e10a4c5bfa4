"""The laboratory's instruments against dense formulas, and each section in its quick form."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cmidiff.app.cli import app
from cmidiff.covariance import Diagonal, FreeHunch
from cmidiff.information import CMI
from cmidiff.laboratory import SECTIONS, Findings, Settings, Table, chains, posterior, trajectory, validate
from cmidiff.laboratory import run as runner
from cmidiff.laboratory.chains import EXACT, METHODS, BlockDraws, Method, Outcome, draw_floor, run_solver
from cmidiff.laboratory.mixtures import (
    FAMILIES,
    DiagonalMixture,
    ExactPosterior,
    Problems,
    make_prior,
    make_problems,
    sliced_wasserstein,
)
from cmidiff.laboratory.photographs import load_images
from cmidiff.laboratory.posterior import FLOOR, Job, gaussian_errors, verdict
from cmidiff.laboratory.run import Section
from cmidiff.prior import GaussianMixture
from cmidiff.samplers import Ancestral
from cmidiff.solvers import CADPS
from cmidiff.statistics import Estimate, estimate
from cmidiff.step import Problem, Step
from tests.cases import F64, generator, matrix_physics, randn

QUICK = Settings(seed=3, quick=True, workers=1)


def dense(prior: DiagonalMixture) -> GaussianMixture:
    """The same prior by the library's own class."""
    return GaussianMixture(prior.weights, prior.means, prior.variances.expand_as(prior.means).clone(), prior.schedule)


# instruments


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mixtures_denoiser_is_the_dense_one(family):
    prior = make_prior(family, 8, generator(1))
    x_t = randn(5, 8, seed=2)
    for t in (20.0, 400.0, 900.0):
        torch.testing.assert_close(prior(x_t, t).mean, dense(prior)(x_t, t).mean, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_coordinates_have_unit_variance(family):
    covariance = dense(make_prior(family, 8, generator(1))).moments()[1]
    expected = torch.ones(8, dtype=F64)
    if family == "gaussian":  # variances are drawn around 1
        assert 0.1 < float(covariance.diagonal().min()) < float(covariance.diagonal().max()) < 1.9
    else:
        torch.testing.assert_close(covariance.diagonal(), expected)


def test_measured_rows_are_those_of_their_problem():
    problems = make_problems("mixture-25", 6, 2, 3, generator(4))
    measurement, x = problems.measurement(4), randn(12, 6, seed=5)
    e = randn(12, 2, seed=6)
    for p in range(3):
        rows = slice(4 * p, 4 * p + 4)
        torch.testing.assert_close(measurement.A(x)[rows], x[rows] @ problems.matrices[p].mT)
        torch.testing.assert_close(measurement.At(e)[rows], e[rows] @ problems.matrices[p])
        torch.testing.assert_close(measurement.y[rows], problems.y[p].expand(4, -1))
    singular = torch.linalg.svdvals(problems.matrices)
    assert 0 < float(singular.min()) < float(singular.max()) <= 1


def theirs(problems: Problems, p: int) -> GaussianMixture:
    physics = matrix_physics(problems.matrices[p], noise_std=problems.noise_std)
    return dense(problems.prior).posterior(problems.y[p : p + 1], physics, problems.noise_std)


@pytest.mark.parametrize("family", FAMILIES)
def test_posterior_weights_samples_and_denoiser_are_the_dense_ones(family):
    problems = make_problems(family, 6, 2, 3, generator(7), noise_std=0.3)
    n = 20_000
    samples = problems.posterior_samples(n, generator(8))
    x_t = randn(6, 6, seed=9)
    for p in range(3):
        own = theirs(problems, p)
        torch.testing.assert_close(problems.mode_weights()[p], own.weights, rtol=1e-8, atol=1e-12)
        mean, covariance = own.moments()
        z = (samples[p].mean(0) - mean) / (covariance.diagonal() / n).sqrt()
        assert float(z.abs().max()) < 4.5
        torch.testing.assert_close(torch.cov(samples[p].mT), covariance, rtol=0.1, atol=0.03)
    for t in (30.0, 500.0):
        measurement = problems.measurement(2)
        problem = Problem(problems.prior, measurement, Ancestral(), BlockDraws(0), tuple(range(len(x_t))))
        ours = ExactPosterior(problems).estimate(Step.at(problem, x_t, t, t - 1, graph=False))
        for p in range(3):
            rows = slice(2 * p, 2 * p + 2)
            torch.testing.assert_close(ours[rows], theirs(problems, p)(x_t[rows], t).mean, rtol=1e-7, atol=1e-8)


def test_sliced_wasserstein_of_a_shift_and_of_the_same_cloud():
    a, shift = randn(2, 400, 5, seed=1), randn(5, seed=2)
    distance = sliced_wasserstein(a, a + shift, slices=5_000, generator=generator(3))
    torch.testing.assert_close(distance, (shift.norm() / math.sqrt(5)).expand(2), rtol=0.03, atol=0)
    again = sliced_wasserstein(a, a[:, torch.randperm(400, generator=generator(4))], slices=50, generator=generator(3))
    assert float(again.max()) == 0


def test_gaussian_errors_of_exact_samples():
    problems = make_problems("gaussian", 8, 2, 40, generator(1))
    mean, ratio = gaussian_errors(problems, problems.posterior_samples(400, generator(2)))
    assert float(mean.square().mean().sqrt()) == pytest.approx(1 / math.sqrt(400), rel=0.25)
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / 400 / 80))
    shifted = problems.posterior_samples(400, generator(2)) + 100 * problems.matrices.sum(1, keepdim=True)
    assert float(gaussian_errors(problems, shifted)[0].min()) > 10


def test_mode_shares_count_the_nearest_component():
    problems = make_problems("mixture-25", 8, 2, 2, generator(1))
    x = problems.prior.means[[3, 3, 7, 20]].expand(2, 4, 8)
    shares = problems.modes(x)
    assert shares[0, [3, 7, 20]].tolist() == [0.5, 0.25, 0.25]
    assert float(shares.sum()) == 2


def test_interval_is_students_and_the_verdict_follows():
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.half) == (2.0, pytest.approx(4.302653 / math.sqrt(3), rel=1e-6))
    gaps = (Estimate(5, mean, 1.0) for mean in (-2.0, 0.5, 2.0))
    assert [verdict(gap) for gap in gaps] == ["better", "no difference", "worse"]


# known posteriors


@pytest.fixture(scope="module")
def problems() -> Problems:
    return make_problems("mixture-25", 8, 2, 8, generator(11))


def test_the_exact_posterior_reaches_the_floor_and_others_do_not(problems):
    base = torch.stack([draw_floor(problems, chains=128, seed=k).distance for k in range(6)]).mean()
    ratios = {
        name: float(run_solver(problems, METHODS[name], 0.4, 0.0, chains=128, steps=60, seed=5).distance.mean() / base)
        for name in ("exact posterior", "unconditional", "PiGDM = CADPS isotropic", "CADPS exact")
    }
    assert 0.6 < ratios["exact posterior"] < 1.4
    blind, pigdm = ratios["unconditional"], ratios["PiGDM = CADPS isotropic"]
    assert ratios["exact posterior"] < ratios["CADPS exact"] < pigdm < blind


def test_a_churned_run_with_the_whole_likelihood_is_nearer_to_the_posterior(problems):
    few = problems.take(slice(4))
    options = {"chains": 96, "steps": 80, "seed": 5}
    distance = {
        name: float(run_solver(few, METHODS[name], 1.0, 0.0, **options).distance.mean())
        for name in ("CADPS exact", "CADPS complete, churned")
    }
    assert distance["CADPS complete, churned"] < 0.8 * distance["CADPS exact"], distance


def test_float32_measures_the_same(problems):
    solver = METHODS["CADPS exact"]
    options = {"chains": 96, "steps": 50, "seed": 5}
    double = run_solver(problems, solver, 1.0, 0.3, **options).distance
    # Other random numbers, and other samples: the means over problems agree within their spread.
    single = run_solver(problems.to(torch.float32), solver, 1.0, 0.3, **options).distance.to(F64)
    gap = (single - double) / (single - double).std() * math.sqrt(len(double))
    assert abs(float(gap.mean())) < 4.5


def test_runs_share_their_noise_and_cmi_leaves_a_gaussian_alone():
    problems = make_problems("gaussian", 8, 2, 3, generator(1))
    solver = Method(lambda *_: CADPS(EXACT))
    base, guided = (run_solver(problems, solver, 1.0, eta, chains=16, steps=30, seed=2).x for eta in (0.0, 1.0))
    torch.testing.assert_close(base, guided, rtol=0, atol=1e-4)
    again = run_solver(problems, solver, 1.0, 0.0, chains=16, steps=30, seed=2).x
    assert torch.equal(base, again)


def test_tuning_takes_the_best_scale_then_the_best_eta_on_problems_that_are_not_the_tests(monkeypatch):
    problems = make_problems("mixture-25", 8, 2, 2, generator(2))
    seen = []

    def pretended(problems: Problems, solver: Method, scale: float, eta: float, **_: int) -> Outcome:
        seen.append((scale, eta))
        gain = {0.0: (0.0, 0.0), -0.3: (-0.4, 0.4), 0.1: (-0.1, -0.1), 0.3: (-0.5, -0.5)}.get(eta, (0.2, 0.2))
        alive = torch.full((2,), 0.5 if eta == 0.3 else 1.0)  # the smallest distance, but half of the chains diverged
        distance = 0.2 * (1 + abs(scale - 0.04)) * torch.tensor(gain).exp()  # -0.3 helps one problem and hurts another
        return Outcome(distance, torch.zeros(2), alive, torch.zeros(2, 1, 8))

    monkeypatch.setattr(chains, "run_solver", pretended)
    assert chains.choose_strengths([problems, problems], METHODS["DPS"], chains=2, steps=2, seed=1) == (0.04, 0.1)
    assert {eta for _, eta in seen} == {0.0, *chains.ETAS}
    assert chains.choose_strengths([problems], METHODS["exact posterior"], chains=2, steps=2, seed=1) == (1.0, 0.0)
    job = Job("mixture-25", 8, "DPS", QUICK)
    assert not torch.equal(job.problems("test", 2).matrices[:2], job.problems("tuning", 2).matrices[:2])


def test_the_posterior_section_in_quick_form(monkeypatch):
    some = {name: METHODS[name] for name in ("exact posterior", "unconditional", "CADPS exact")}
    names = (FLOOR, *some)
    monkeypatch.setattr(posterior, "METHODS", some)
    few = [Job(family, 8, name, QUICK) for family in ("mixture-25", "gaussian", "two-modes") for name in names]
    monkeypatch.setattr(posterior, "list_jobs", lambda settings: few)
    found = posterior.measure(QUICK)
    mixture = {(row["solver"], row["cmi"]): row for row in found.tables["mixture"].records()}
    assert mixture[FLOOR, "none"]["/ floor"] == 1
    assert mixture["exact posterior", "none"]["/ floor"] < mixture["unconditional", "none"]["/ floor"]
    every = found.tables["problems"]
    for cmi in ("tuned", "default"):
        row = mixture["CADPS exact", cmi]
        base, guided = (
            [r["distance"] for r in every.records(prior="mixture-25", solver="CADPS exact", cmi=kind)]
            for kind in ("none", cmi)
        )
        gap = estimate(guided, base)
        assert float(row["CMI - base"].split(" ")[0]) == pytest.approx(gap.mean, rel=0.01)
        assert row["verdict"] == verdict(gap)
    assert mixture["CADPS exact", "default"]["eta"] == CMI().eta
    (overview,) = found.tables["overview"].records(solver="CADPS exact")
    assert overview["d 8, m 2"].startswith(f"{mixture['CADPS exact', 'none']['/ floor']:.2f}")
    gaussian = {row["solver"]: row for row in found.tables["gaussian"].records()}
    ours, floor_, blind = (
        float(gaussian[name]["mean error [posterior std]"].split(" ")[0])
        for name in ("CADPS exact", FLOOR, "unconditional")
    )
    assert max(ours, floor_) < 0.5 < blind
    assert set(posterior.draw(found)) == {"mixture-25", "two-modes"}


def test_an_interrupted_section_goes_on_with_what_is_finished(tmp_path: Path, monkeypatch):
    job = Job("two-modes", 8, FLOOR, dataclasses.replace(QUICK, scratch=tmp_path))
    first = posterior.run_job_once(job)
    monkeypatch.setattr(posterior, "run_job", lambda job: pytest.fail("computed again"))
    assert posterior.run_job_once(job) == first
    assert len(list(tmp_path.iterdir())) == 1


def test_the_information_falls_along_the_run(monkeypatch):
    some = {name: METHODS[name] for name in ("exact posterior", "CADPS exact")}
    monkeypatch.setattr(trajectory, "METHODS", some)
    monkeypatch.setattr(posterior, "METHODS", some)
    monkeypatch.setattr(chains, "ETAS", (-0.1, 0.1))
    found = trajectory.measure(QUICK)
    for name in some:
        curve = [r["mean [nats]"] for r in found.tables["curves"].records(solver=name, eta=0.0)]
        assert curve[0] > 1.5 * curve[-1] > 0
    first = next(found.tables["curves"].records(solver="exact posterior"))
    problems = Job("mixture-25", 8, "exact posterior", QUICK).problems("test", 2)
    covariance = dense(problems.prior).moments()[1]
    s = torch.eye(2, dtype=F64) + problems.matrices @ covariance @ problems.matrices.mT / problems.noise_std**2
    assert first["mean [nats]"] == pytest.approx(float(0.5 * torch.logdet(s).mean()), rel=0.05)  # nothing is known yet


# sections


def test_the_gradient_section_in_quick_form():
    found = SECTIONS["gradient"].measure(QUICK)
    bias, error = found.tables["bias"], found.tables["error"]
    assert max(row["z"] for row in bias.records() if row["contraction"] == "double-backward") < 4.5
    spread = {row["probes"]: row["relative RMS error"] for row in error.records(
        estimator="measurement-symmetric", contraction="double-backward", probe="rademacher"
    )}  # fmt: skip
    assert spread[1] / spread[16] == pytest.approx(4, rel=0.35)
    for estimator, most in (("measurement-symmetric", 5), ("measurement", 5), ("shared-probe", 12), ("two-term", 12)):
        (whole,) = error.records(estimator=estimator, contraction="double-backward", probe="coordinate", probes=most)
        assert whole["relative RMS error"] < 1e-6
    (summary,) = found.tables["one-probe"].records(estimator="two-term", probe="gaussian")
    assert summary["probes worth one of the default"] > 3
    assert set(SECTIONS["gradient"].draw(found)) == {"error"}


def test_the_difference_section_in_quick_form():
    found = SECTIONS["difference"].measure(QUICK)
    bounds = {
        ("finite-difference", "mixture", "float32"): 1e-2,
        ("finite-difference", "mixture", "float64"): 1e-7,
        ("second-difference", "mixture", "float32"): 5e-2,
        ("second-difference", "mixture", "float64"): 1e-4,
        ("diagonal", "mixture", "float32"): 2e-2,
        ("diagonal", "mixture", "float64"): 1e-4,
        ("finite-difference", "natural-64", "float32"): 2e-2,
        ("diagonal", "natural-64", "float32"): 2e-2,
    }
    for (quantity, on, precision), bound in bounds.items():
        for row in found.tables["default"].records(quantity=quantity, on=on, precision=precision):
            assert row["its error"] < bound
    rows = found.tables["steps"].records(quantity="finite-difference", on="mixture", precision="float64")
    errors = {round(math.log10(row["step"]), 2): row["relative error"] for row in rows}
    assert errors[-8.0] > 10 * min(errors.values())  # rounding
    assert errors[0.5] > 1e3 * min(errors.values())  # truncation
    probes = list(found.tables["probe"].records(probe="rademacher"))
    assert all(row["relative error, mean of 32"] < row["relative error, one probe"] for row in probes)


def test_the_symmetry_section_in_quick_form():
    found = SECTIONS["symmetry"].measure(QUICK)
    for row in found.tables["images"].records(contraction="finite-difference"):
        assert row["cosine"] > 0.99
    for row in found.tables["images"].records(contraction="second-difference"):
        assert -1 <= row["cosine"] < 0.99  # the network's third derivative is not symmetric
    errors = [row["denoiser's error"] for row in found.tables["known"].records()]
    assert max(errors) < 1  # little training, yet nearer to the exact denoiser than x_0 is


def fake(calls: list[int]) -> Section:
    def measure(settings: Settings) -> Findings:
        calls.append(settings.seed)
        return Findings({"numbers": Table("numbers", ("n", "name", "nothing"), [[0.1234567, "a", None]])})

    return Section("a fake", measure, lambda found: {})


def test_a_finished_section_is_kept_until_its_settings_change(tmp_path: Path, monkeypatch):
    calls: list[int] = []
    monkeypatch.setattr(runner, "SECTIONS", {"fake": fake(calls)})
    (first,) = validate(tmp_path, Settings(seed=1))
    (second,) = validate(tmp_path, Settings(seed=1, workers=7))
    (third,) = validate(tmp_path, Settings(seed=2))
    assert ([kept for _, _, kept in (first, second, third)], calls) == ([False, True, False], [1, 2])
    monkeypatch.setattr(runner, "__version__", "9.9")
    ((_, _, kept),) = validate(tmp_path, Settings(seed=2))
    assert not kept, "figures of another version"
    assert second[1].tables["numbers"].rows == [[0.1234567, "a", None]]
    assert (tmp_path / "fake-numbers.csv").read_text().splitlines() == ["n,name,nothing", "0.1234567,a,"]
    assert "| n | name | nothing |\n| --- | --- | --- |\n| 0.123 | a | - |" in (tmp_path / "fake.md").read_text()
    assert second[1].tables["numbers"].text() == [["0.123", "a", "-"]]
    with pytest.raises(ValueError, match="section must be one of"):
        next(iter(validate(tmp_path, Settings(), ["nothing"])))


def test_images_from_a_folder_are_square_and_in_range(tmp_path: Path):
    from PIL import Image

    Image.new("RGB", (80, 70), (255, 0, 0)).save(tmp_path / "red.png")
    (image,) = load_images(tmp_path, 3)
    assert image.shape == (3, 64, 64)
    assert image.amax((1, 2)).tolist() == [1, -1, -1]
    with pytest.raises(ValueError, match="does not exist"):
        load_images(tmp_path / "nothing", 1)
    assert len(load_images(None, 5)) == 5


def test_the_command_names_what_is_wrong(tmp_path: Path):
    for options, message in ((["--only", "gradent"], "did you mean gradient"), (["--images", "no.tar"], "exist")):
        result = CliRunner().invoke(app, ["validate", "--output", str(tmp_path), *options])
        error = result.exception if isinstance(result.exception, ValueError) else None
        assert result.exit_code != 0
        assert error is None or message in str(error)


def test_isotropic_cadps_is_pigdm_and_shares_its_row(problems):
    options = {"scale": 1.0, "eta": 0.0, "chains": 8, "steps": 20, "seed": 1}
    pigdm = run_solver(problems, METHODS["PiGDM = CADPS isotropic"], **options)
    cadps = run_solver(problems, Method(lambda *_: CADPS("isotropic")), **options)
    torch.testing.assert_close(pigdm.x, cadps.x)


def test_every_solver_has_a_row():
    assert {"exact posterior", "unconditional", "DPS", "PiGDM = CADPS isotropic", "MCG", "DSG"} <= set(METHODS)
    problems = make_problems("gaussian", 2, 1, 1, generator(0))
    built = [method.build(problems, 1.0) for method in METHODS.values()]
    assert {solver.covariance for solver in built if isinstance(solver, CADPS)} == {Diagonal(), EXACT, FreeHunch()}
    assert all(dataclasses.is_dataclass(method) for method in METHODS.values())
