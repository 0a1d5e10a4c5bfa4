"""Complex measurements: each number is two real ones, with half of the noise variance each."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from deepinv.physics import GaussianNoise, Inpainting, LinearPhysics, Physics
from torch import Tensor

from cmidiff import CMI, registry, restore
from cmidiff.information import Estimator
from cmidiff.intake import take
from cmidiff.metrics import data_misfit
from cmidiff.physics import known_entries, measure, measured_count
from cmidiff.physics.parts import split
from tests.cases import F64, dense_matrix, matrix_physics, mixture, randn

D, M, NOISE = 12, 5, 0.2
MATRIX = torch.complex(randn(M, D, seed=51), randn(M, D, seed=52)) / 3
Y = torch.complex(randn(2, M, seed=53), randn(2, M, seed=54))
SHORT = {"resample": {"pixel_steps": 5, "latent_steps": 5}}


def whole(noise_std: float = NOISE) -> LinearPhysics:
    noise: Any = GaussianNoise(noise_std)
    return LinearPhysics(
        A=lambda x: x.to(MATRIX.dtype) @ MATRIX.mT,
        A_adjoint=lambda y: y @ MATRIX.conj(),
        img_size=(D,),
        noise_model=noise,
    )


def in_parts(y: Tensor) -> Tensor:
    return torch.view_as_real(y).flatten(1)


def both(**options: Any) -> tuple[Tensor, Tensor]:
    """Results of the complex problem, and of the same one as a real matrix."""
    dense = torch.stack([MATRIX.real, MATRIX.imag], 1).reshape(2 * M, D)
    real = matrix_physics(dense, noise_std=NOISE / math.sqrt(2))
    common: dict[str, Any] = {"prior": mixture(), "value_range": None, "samples": 2, "steps": 12, **options}
    ours, theirs = restore(Y, whole(), **common), restore(in_parts(Y), real, **common)
    return (ours.samples, theirs.samples) if common["samples"] > 1 else (ours.estimate, theirs.estimate)


@pytest.mark.filterwarnings("ignore::cmidiff.result.RestorationWarning")
@pytest.mark.parametrize("solver", registry.SOLVERS.builtin)
def test_a_complex_measurement_is_its_real_and_imaginary_parts(solver: str) -> None:
    made = registry.SOLVERS.make(solver, SHORT.get(solver))
    ours, theirs = both(solver=made, samples=1 if made.point else 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_so_it_is_with_cmi(estimator: Any) -> None:
    ours, theirs = both(solver="dps", cmi=CMI(0.3, estimator=estimator))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert float((ours - both(solver="dps")[0]).abs().max()) > 1e-4


def test_the_adjoint_is_that_of_real_images() -> None:
    physics, e = split(whole()), randn(3, M, 2, seed=4)
    assert isinstance(physics, LinearPhysics)
    torch.testing.assert_close(physics.A_adjoint(e).flatten(1), e.flatten(1) @ dense_matrix(physics, (D,)))


def test_the_noise_is_that_of_the_whole_number() -> None:
    """As `deepinv.physics.GaussianNoise` draws it; the misfit of the truth is 1, in both units."""
    x = randn(400, D, seed=5)
    physics = whole()
    y = measure(x, physics, seed=3)
    noise = y - physics.A(x)
    assert float(noise.real.std()) == pytest.approx(NOISE / math.sqrt(2), rel=0.05)
    assert float(noise.imag.std()) == pytest.approx(NOISE / math.sqrt(2), rel=0.05)
    assert float(physics.noise_model(torch.zeros_like(y)).abs().square().mean().sqrt()) == pytest.approx(
        NOISE, rel=0.05
    )
    measurement = take(y, physics, mixture(), None, None, 0).measurement
    assert float(measurement.misfit(x).square().mean()) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(data_misfit(x, y, physics, noise_std=NOISE), measurement.misfit(x).double())


def test_hidden_numbers_are_hidden_in_both_parts() -> None:
    seen = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], dtype=F64)
    mask: Any = Inpainting((M,), mask=seen)
    physics = split(mask * whole())
    assert known_entries(physics, in_parts(Y).reshape(2, M, 2)).flatten().tolist() == seen.tolist()  # pyright: ignore[reportOptionalMemberAccess]
    assert measured_count(physics, torch.view_as_real(Y)).tolist() == [6, 6]


def test_real_numbers_for_a_complex_map_are_refused() -> None:
    with pytest.raises(ValueError, match=r"y of shape .* does not fit LinearPhysics"):
        restore(Y.real, whole(), mixture(), value_range=None)

    class Phases(Physics):
        img_size = (D,)

        def A(self, x: Tensor, **_: Any) -> Tensor:
            return torch.polar(torch.ones_like(x), x)

    found = restore(
        Phases().A(randn(2, D)), Phases(), mixture(), solver="dps", noise_std=0.1, steps=4, samples=1, value_range=None
    )
    assert bool(found.ok.all())
    with pytest.raises(ValueError, match=r"y is of torch.float64 and A\(x\) of torch.complex128"):
        restore(randn(2, D), Phases(), mixture(), solver="dps", noise_std=0.1, value_range=None)


def test_one_seed_gives_every_image_its_own_noise() -> None:
    x, physics = torch.zeros(3, D, dtype=F64), whole()
    y = measure(x, physics, seed=7)
    assert torch.equal(y[0], measure(x[:1], physics, seed=7)[0])
    assert all(float((y[a] - y[b]).abs().min()) > 0 for a, b in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(y[:2], measure(x[:2], physics, seed=7))
