"""The six promises of the design, each with a test."""

from __future__ import annotations

import dataclasses
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from deepinv.physics import LinearPhysics
from torch import Tensor, nn

from cmidiff import (
    CADPS,
    CMI,
    DDIM,
    DPIR,
    DPS,
    DSG,
    MCG,
    NetworkPrior,
    PiGDM,
    ProbabilityFlow,
    Unconditional,
    load_prior,
    physics,
    restore,
)
from cmidiff.covariance import Isotropic
from cmidiff.moments import SecondMoments
from cmidiff.physics import TASKS
from cmidiff.result import MISFIT_BOUND, Progress, RestorationWarning
from cmidiff.solvers import DDNM, MMPS, SITCOM, TMPD, CADPSReleased, DiffPIR, Solver

pytestmark = pytest.mark.filterwarnings("ignore::cmidiff.result.RestorationWarning")  # runs of few steps
SHAPE = (3, 16, 16)
SOLVERS: list[Solver] = [
    *(DPS(0.016), MCG(0.016), DSG(0.05), PiGDM(), CADPS(), CADPS("diagonal"), CADPS("isotropic"), CADPS("exact")),
    *(CADPSReleased(0.0024), DiffPIR(), DDNM(), TMPD(), MMPS(), SITCOM(iterations=3), CADPS("free-hunch")),
]


class TinyNetwork(nn.Module):
    """A small denoiser with the parts whose arithmetic could couple images: convolutions and group norms."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1)
            )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.layers(x_t) * (0.3 + 0.001 * t.reshape(-1, 1, 1, 1))


def tiny_prior() -> NetworkPrior:
    network = TinyNetwork().requires_grad_(False)
    return NetworkPrior(network, "v", multiple=8)


def name(solver: Solver) -> str:
    return f"{type(solver).__name__}-{type(getattr(solver, 'covariance', None)).__name__}"


@pytest.fixture
def problem() -> tuple[Tensor, LinearPhysics]:
    x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(3))
    task = physics.inpaint_random(SHAPE, hidden=0.5, noise_std=0.05, seed=1)
    return physics.measure(x, task, seed=2), task


# 1. Image i of seed k depends on (image, seed) alone


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_result_is_independent_of_the_batch(solver: Solver, problem: tuple[Tensor, LinearPhysics]) -> None:
    y, task = problem
    before = y.clone()
    options = {"solver": solver, "cmi": CMI(0.3), "steps": 8}
    batch = restore(y, task, tiny_prior(), samples=2, seed=[4, 5, 6], **options)
    turned = restore(y[[2, 0, 1]], task, tiny_prior(), samples=2, seed=[6, 4, 5], **options)
    for b in range(3):
        alone = restore(y[b : b + 1], task, tiny_prior(), samples=2, seed=4 + b, **options)
        torch.testing.assert_close(alone.samples[0], batch.samples[b], rtol=0, atol=1e-5)
        torch.testing.assert_close(turned.samples[(b + 1) % 3], batch.samples[b], rtol=0, atol=1e-5)
    assert torch.equal(y, before)
    assert (batch.samples[:, 0] - batch.samples[:, 1]).abs().mean() > 1e-3, "samples of one image differ"


def test_an_estimate_is_independent_of_the_batch_and_of_the_seed(problem: tuple[Tensor, LinearPhysics]) -> None:
    y, task = problem
    batch = restore(y, task, tiny_prior(), seed=1)
    assert batch.samples.shape == (3, 0, *SHAPE)
    for b in range(3):
        alone = restore(y[b : b + 1], task, tiny_prior(), seed=b)
        torch.testing.assert_close(alone.estimate[0], batch.estimate[b], rtol=0, atol=1e-4)


def test_one_seed_gives_every_image_of_a_batch_its_own_noise(problem: tuple[Tensor, LinearPhysics]) -> None:
    y, task = problem
    same = y[:1].expand(3, *SHAPE)
    options = {"solver": PiGDM(), "steps": 6}
    found = restore(same, task, tiny_prior(), seed=5, **options).samples[:, 0]
    first = restore(y[:1], task, tiny_prior(), seed=5, **options).samples[0, 0]
    torch.testing.assert_close(found[0], first, rtol=0, atol=1e-5)
    centred = (found - found.mean(0)).flatten(1)
    assert float(torch.corrcoef(centred)[0, 1]) < 0  # of three independent ones around their mean: -1/2
    assert float((found[1] - found[2]).abs().mean()) > 1e-3
    several = restore(same, task, tiny_prior(), seed=[5, 5, 5], **options).samples[:, 0]
    torch.testing.assert_close(several, first.expand(3, *SHAPE), rtol=0, atol=1e-5)


def test_samples_may_be_grouped_at_will(problem: tuple[Tensor, LinearPhysics]) -> None:
    y, task = problem
    three = restore(y[:1], task, tiny_prior(), steps=6, samples=3, seed=5)
    third = restore(y[:1], task, tiny_prior(), steps=6, samples=1, first_sample=2, seed=5)
    torch.testing.assert_close(third.samples[:, 0], three.samples[:, 2], rtol=0, atol=1e-5)


def test_seeds_differ_and_zero_is_one(problem: tuple[Tensor, LinearPhysics]) -> None:
    y, task = problem
    runs = [restore(y[:1], task, tiny_prior(), solver=PiGDM(), steps=6, seed=seed).samples for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2])
    both = restore(y[[0, 0]], task, tiny_prior(), solver=PiGDM(), steps=6, seed=[0, 1]).samples
    torch.testing.assert_close(both[0], runs[0][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(both[1], runs[2][0], rtol=0, atol=1e-5)


def test_a_mask_for_each_image(problem: tuple[Tensor, LinearPhysics]) -> None:
    y, _ = problem
    masks = (torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(9)) < 0.5).float()
    options = {"solver": PiGDM(), "steps": 6}
    batch = restore(y * masks, physics.from_mask(masks, noise_std=0.05), tiny_prior(), seed=[0, 1, 2], **options)
    for b in range(3):
        task = physics.from_mask(masks[b : b + 1], noise_std=0.05)
        alone = restore((y * masks)[b : b + 1], task, tiny_prior(), seed=b, **options)
        torch.testing.assert_close(alone.samples[0], batch.samples[b], rtol=0, atol=1e-5)


# 2. The stated sigma is the real sigma


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_noise_std_is_in_units_of_the_door(value_range: tuple[float, float]) -> None:
    """Independent pixels ``x ~ N(0, 0.3^2)`` in [-1, 1], known exactly: the posterior's variance says which sigma was
    used."""
    low, high = value_range
    gain, data_std, noise_std = (high - low) / 2, 0.3, 0.15 * (high - low) / 2
    prior = NetworkPrior(_gaussian_denoiser(data_std), "x0", value_range=(-1.0, 1.0))
    shape = (3, 8, 8)
    y = torch.full((1, *shape), low + 1.2 * gain, dtype=torch.float64)
    task = physics.denoise(shape, noise_std=noise_std)
    solver = CADPS(Isotropic(data_std**2))
    found = restore(
        y, task, prior, solver=solver, sampler=ProbabilityFlow(), steps=100, samples=12, value_range=value_range
    ).samples
    variance = (gain * data_std) ** 2 * noise_std**2 / ((gain * data_std) ** 2 + noise_std**2)
    expected = low + gain + 0.2 * gain * (gain * data_std) ** 2 / ((gain * data_std) ** 2 + noise_std**2)
    count = found.numel()
    assert abs(float(found.mean()) - expected) < 5 * (variance / count) ** 0.5 + 0.01 * gain
    assert float(found.var()) / variance == pytest.approx(1.0, abs=5 * (2 / count) ** 0.5 + 0.06)


def _gaussian_denoiser(data_std: float):
    schedule = NetworkPrior(lambda x, t: x).schedule

    def x_hat(x_t: Tensor, t: Tensor) -> Tensor:
        alpha_t, sigma_t = schedule(float(t[0]))
        return alpha_t * data_std**2 / (alpha_t**2 * data_std**2 + sigma_t**2) * x_t

    return x_hat


# 3. Zero strength is the unconditional sampler, eta = 0 the base solver, bit for bit


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_zero_strength_is_unconditional(solver: Solver, problem: tuple[Tensor, LinearPhysics]) -> None:
    y, task = problem
    if isinstance(solver, MCG):
        solver = MCG(0.0, project=lambda step, x: x)
    else:
        field = "rate" if isinstance(solver, DSG | SITCOM) else "scale"
        solver = dataclasses.replace(solver, **{field: 0.0})  # pyright: ignore[reportArgumentType]
    free = restore(y, task, tiny_prior(), solver=Unconditional(), sampler=solver.sampler, steps=6)
    assert torch.equal(restore(y, task, tiny_prior(), solver=solver, steps=6).samples, free.samples)


@pytest.mark.parametrize("solver", [*SOLVERS, DPIR()], ids=name)
@pytest.mark.parametrize("contraction", ["finite-difference", "double-backward"])
def test_eta_zero_is_the_base_solver(solver: Solver, contraction: str, problem: tuple[Tensor, LinearPhysics]) -> None:
    y, task = problem
    base = restore(y, task, tiny_prior(), solver=solver, steps=6).samples
    cmi = CMI(0.0, contraction=contraction)  # pyright: ignore[reportArgumentType]
    assert torch.equal(restore(y, task, tiny_prior(), solver=solver, cmi=cmi, steps=6).samples, base)
    moved = restore(y, task, tiny_prior(), solver=solver, cmi=CMI(1.0), steps=6).samples
    assert not torch.equal(moved, base)


# 4. Bad input fails at the door; a diverged sample is a status


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.full((1, *SHAPE), float("nan"))}, "finite"),
        ({"y": torch.zeros(0, *SHAPE)}, "non-empty"),
        ({"noise_std": -0.1}, "noise_std"),
        ({"samples": -1}, "samples must be a whole number of at least 0"),
        ({"samples": 0, "solver": "pigdm"}, "samples must be a whole number of at least 1"),
        ({"samples": 2, "solver": "dpir"}, "DPIR gives one estimate and no samples"),
        ({"solver": "pigmd"}, "unknown solver 'pigmd': did you mean pigdm"),
        ({"sampler": "ancestrl"}, "unknown sampler 'ancestrl': did you mean ancestral"),
        ({"first_sample": -1}, "first_sample"),
        ({"steps": 0}, "steps"),
        ({"steps": True, "solver": "pigdm"}, "steps"),
        ({"steps": 5000, "solver": "unconditional"}, "at most 1000"),
        ({"seed": [1, 2]}, "seed"),
        ({"value_range": (1.0, 0.0)}, "value_range"),
    ],
)
def test_bad_input_is_refused_with_a_reason(change: dict, message: str, problem: tuple[Tensor, LinearPhysics]) -> None:
    y, task = problem
    arguments = {"y": y[:1], "steps": 4, **change}
    with pytest.raises(ValueError, match=message):
        restore(arguments.pop("y"), task, tiny_prior(), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.zeros(1, *SHAPE, dtype=torch.uint8)}, "floating-point numbers in units of value_range"),
        ({"y": torch.zeros(1, *SHAPE, dtype=torch.int64)}, "floating-point numbers in units of value_range"),
        ({"solver": 3}, "solver must be"),
        ({"solver": lambda step: step}, "solver must be"),
        ({"sampler": 3}, "sampler must be"),
        ({"sampler": CADPS()}, "sampler must be"),
        ({"cmi": 0.1}, "cmi must be a CMI"),
        ({"seed": 0.5}, "seed must be"),
        ({"seed": "1"}, "seed must be"),
    ],
)
def test_what_is_of_another_kind_is_refused(change: dict, message: str, problem: tuple[Tensor, LinearPhysics]) -> None:
    y, task = problem
    arguments = {"y": y[:1], "steps": 4, **change}
    with pytest.raises(TypeError, match=message):
        restore(arguments.pop("y"), task, tiny_prior(), **arguments)


def test_a_class_a_name_and_an_object_are_the_same_solver(problem: tuple[Tensor, LinearPhysics]) -> None:
    y, task = problem
    found = [
        restore(y[:1], task, tiny_prior(), solver=solver, sampler=sampler, cmi=cmi, steps=3).samples
        for solver, sampler, cmi in ((PiGDM(), DDIM(), CMI()), (PiGDM, DDIM, True), ("pigdm", "ddim", CMI(0.1)))
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_result_that_does_not_explain_its_measurement_is_announced(problem: tuple[Tensor, LinearPhysics]) -> None:
    y, task = problem
    with pytest.warns(RestorationWarning, match="does not explain the measurement") as seen:
        found = restore(y[:1] + 0.5, task, tiny_prior(), solver=DPS(0.0), steps=3)
    assert seen[0].filename == __file__, "the warning points at the call"
    status = found.status[0][0]
    assert status.ok
    assert not status.explains
    assert status.misfit > MISFIT_BOUND
    mask: Any = task.mask
    known = mask.expand_as(y[:1]) > 0
    misfit = (y[:1] + 0.5 - found.samples[:, 0])[known].square().mean().sqrt() / 0.05
    assert status.misfit == pytest.approx(float(misfit), rel=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        easy = restore(y[:1], TASKS["denoise"](SHAPE, noise_std=10.0), tiny_prior(), solver=DPS(0.0), steps=3)
        free = restore(y[:1] + 0.5, task, tiny_prior(), solver=Unconditional(), steps=3)
    assert easy.status[0][0].explains
    assert free.status[0][0].misfit == status.misfit
    assert free.status[0][0].explains, "samples of the prior are not meant to explain a measurement"


def test_what_is_no_physics_is_refused(problem: tuple[Tensor, LinearPhysics]) -> None:
    with pytest.raises(TypeError, match="deepinv"):
        restore(problem[0], lambda x: x, tiny_prior())  # pyright: ignore[reportArgumentType]


def test_a_diverged_sample_is_a_status_and_costs_no_other(problem: tuple[Tensor, LinearPhysics]) -> None:
    y, task = problem
    healthy = tiny_prior()
    calls = iter(range(1000))

    def breaks(x_t: Tensor, t: Tensor) -> Tensor:
        out = healthy.network(x_t, t)
        if next(calls) == 3:
            out = out.clone()
            out[1] = float("nan")
        return out

    options = {"solver": PiGDM(), "steps": 8}
    found = restore(y, task, NetworkPrior(breaks, "v", multiple=8), **options)
    assert [status[0].ok for status in found.status] == [True, False, True]
    assert found.status[1][0].step == 4
    assert "step 4 of 8" in found.status[1][0].message
    assert bool(torch.isfinite(found.samples).all())
    assert float(found.samples[1].std()) > 0, "a diverged sample is its last estimate, not a silent zero"
    assert bool(torch.isnan(found.mean[1]).all())
    well = restore(y, task, healthy, **options)
    torch.testing.assert_close(found.samples[[0, 2]], well.samples[[0, 2]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", ["cadps-isotropic", "dpir"])
def test_a_signal_without_a_range_diverges_with_a_status(solver: str) -> None:
    """A denoiser that enlarges its argument: nothing is clipped, and states grow without bound."""
    moments = SecondMoments(torch.zeros(12).double(), torch.ones(12).double())
    prior = NetworkPrior(lambda x, t: 30 * x, "x0", channels=None, value_range=None, second_moments=moments)
    task = physics.from_callable(lambda x: x[..., ::2], (12,), noise_std=0.1)
    y = torch.ones(2, 6)
    y[1] = 0.0
    found = restore(y, task, prior, solver=solver, steps=12, value_range=None)
    assert not bool(found.ok[0].any())
    assert found.status[0][0].step is not None
    assert "diverged at step" in found.status[0][0].message
    assert float(found.samples[0].abs().max()) < 1e6, "the last estimate that was finite"


# 5. Loading a checkpoint never executes code


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


def test_a_pickle_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for part in ("unet", "scheduler"):
        (tmp_path / part).mkdir()
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [32]}
    config = {"_class_name": "UNet2DModel", "in_channels": 3, "out_channels": 3, **blocks}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="more than tensors"):
        load_prior(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"config\.json"):
        load_prior(tmp_path)
    assert not (tmp_path / "trapped").exists()


# 6. Long work shows progress and can be interrupted (resuming: test_samples_may_be_grouped_at_will,
# tests/test_train.py)


def test_progress_is_shown_and_an_interrupt_goes_through(problem: tuple[Tensor, LinearPhysics]) -> None:
    y, task = problem
    seen: list[Progress] = []

    def watch(progress: Progress) -> None:
        seen.append(progress)
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(y[:1], task, tiny_prior(), steps=6, samples=2, callback=watch)
    assert [progress.step for progress in seen] == [1, 2, 3]
    assert seen[0].x_hat.shape == (2, *SHAPE)
    assert seen[0].misfit.shape == (2,)


def test_what_cannot_fit_in_memory_is_refused_before_the_run(monkeypatch):
    monkeypatch.setattr("cmidiff.prior.fitting.free_memory", lambda device: 2**24)
    physics = TASKS["denoise"]((3, 256, 256), noise_std=0.1)
    with pytest.raises(ValueError, match="not enough memory"):
        restore(torch.rand(1, 3, 256, 256), physics, load_prior("natural-64"), steps=1, tile=None)


@pytest.mark.parametrize("solver", ["pigdm", "dpir", "cadps"])
def test_rows_computed_at_once_do_not_change_the_result(solver: str, problem: tuple[Tensor, LinearPhysics]) -> None:
    """Of several images, with one mask or a mask each, and of samples of one image."""
    y, task = problem
    masks = (torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(9)) < 0.5).float()
    each = physics.from_mask(masks, noise_std=0.05)
    samples = None if solver == "dpir" else 2
    for given, used in ((y, task), (y * masks, each)):
        whole, parts = (
            restore(given, used, tiny_prior(), solver=solver, samples=samples, steps=4, batch_size=size)
            for size in (None, 2)
        )
        torch.testing.assert_close(parts.estimate, whole.estimate, rtol=0, atol=1e-5)
        torch.testing.assert_close(parts.samples, whole.samples, rtol=0, atol=1e-5)
        torch.testing.assert_close(parts.stats["misfit"], whole.stats["misfit"], rtol=1e-3, atol=1e-4)
        assert [[s.ok for s in row] for row in parts.status] == [[s.ok for s in row] for row in whole.status]
    if samples:
        options = {"solver": solver, "steps": 4, "samples": 3}
        whole, parts = (restore(y[:1], task, tiny_prior(), batch_size=size, **options) for size in (None, 2))
        torch.testing.assert_close(parts.samples, whole.samples, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_a_batch_size_is_a_whole_number(size: Any, problem: tuple[Tensor, LinearPhysics]) -> None:
    with pytest.raises(ValueError, match="batch_size must be a whole number >= 1"):
        restore(problem[0], problem[1], tiny_prior(), batch_size=size)


def test_a_physics_that_cannot_be_taken_apart_is_refused(problem: tuple[Tensor, LinearPhysics]) -> None:
    y, _ = problem
    gains = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1)  # held by the functions, not by the physics
    own = LinearPhysics(A=lambda x: gains * x, A_adjoint=lambda e: gains * e)
    assert restore(y, own, tiny_prior(), solver=PiGDM, noise_std=0.05, steps=2).ok.all()
    with pytest.raises(ValueError, match="cannot be applied to a part of its batch of 3 images"):
        restore(y, own, tiny_prior(), solver=PiGDM, noise_std=0.05, steps=2, batch_size=1)
