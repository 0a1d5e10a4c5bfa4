"""``A^T S^-1 e`` and ``A^T S^-1/2 z`` against dense matrices, for every physics, canvas and noise level."""

import math

import pytest
import torch
from deepinv.physics import DecomposablePhysics, GaussianNoise, LinearPhysics
from torch import Tensor

from cmidiff import physics as named
from cmidiff.measurement import Measurement
from tests.cases import F64, NONLINEAR, PHYSICS, Shape, dense_matrix, matrix_physics, randn

R2 = 0.37


def canvases(image: Shape) -> list[Shape]:
    """The image itself, a larger canvas, and three channels around a single one."""
    larger = (image[0], image[1] + 3, image[2] + 5)
    return [image, larger, *([(3, *image[1:]), (3, *larger[1:])] if image[0] == 1 else [])]


def levels(name: str) -> tuple[float, float]:
    """Noise-free too, but for tomography, whose singular values fall to 1e-8 without a gap."""
    return (0.1, 0.2) if name == "tomography" else (0.0, 0.2)


CASES = [
    (name, noise, canvas) for name in PHYSICS for noise in levels(name) for canvas in canvases(PHYSICS[name].shape)
]


def picked(canvas: Shape, image: Shape) -> Tensor:
    """``P``: crop and, where the image has one channel and the canvas several, the mean of the channels; dense."""
    inside = torch.arange(math.prod(canvas)).reshape(canvas)[:, : image[1], : image[2]]
    p = torch.zeros(math.prod(image), math.prod(canvas), dtype=F64)
    if image[0] == canvas[0]:
        p[torch.arange(math.prod(image)), inside.flatten()] = 1
        return p
    for channel in inside:
        p[torch.arange(math.prod(image)), channel.flatten()] = 1 / canvas[0]
    return p


def built(name: str, noise: float, canvas: Shape, batch: int = 2) -> tuple[Measurement, Tensor]:
    """The measurement and its dense matrix on the canvas."""
    case = PHYSICS[name]
    physics = case.build(noise)
    y = physics.A(randn(batch, *case.shape))
    matrix = dense_matrix(physics, case.shape) @ picked(canvas, case.shape)
    return Measurement(torch.randn(y.shape, dtype=F64), physics, noise, canvas, case.shape), matrix


def power(matrix: Tensor, noise: float, exponent: float) -> Tensor:
    """``A^T (noise^2 I + R2 A A^T)^exponent``, directions without any signal left out."""
    u, w, vt = torch.linalg.svd(matrix, full_matrices=False)
    seen = w > 1e-9 * w[0]
    spectrum = torch.where(seen, (noise**2 + R2 * w**2) ** exponent * w, 0.0)
    spectrum = torch.where(seen, spectrum, 0.0)
    return (vt.mT * spectrum) @ u.mT


def test_every_named_task_is_in_the_table():
    assert set(named.TASKS) <= set(PHYSICS) | set(NONLINEAR)


def test_the_table_holds_both_kinds_of_physics():
    kinds = {isinstance(case.build(0.1), DecomposablePhysics) for case in PHYSICS.values()}
    assert kinds == {True, False}


@pytest.mark.parametrize(("name", "noise", "canvas"), CASES)
def test_products(name, noise, canvas):
    m, matrix = built(name, noise, canvas)
    x = randn(2, *canvas)
    torch.testing.assert_close(m.A(x).flatten(1), x.flatten(1) @ matrix.mT, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(m.At(m.y).flatten(1), m.y.flatten(1) @ matrix, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(m.pull(x, m.y), m.At(m.y))
    torch.testing.assert_close(m.residual(x), m.y - m.A(x))


@pytest.mark.parametrize(("name", "noise", "canvas"), CASES)
def test_solve(name, noise, canvas):
    m, matrix = built(name, noise, canvas)
    theirs = m.y.flatten(1) @ power(matrix, noise, -1.0).mT
    torch.testing.assert_close(m.solve(m.y, R2).flatten(1), theirs, rtol=0, atol=1e-7 * float(theirs.abs().max()))


@pytest.mark.parametrize(("name", "noise", "canvas"), CASES)
def test_inverse(name, noise, canvas):
    """``(sigma_y^2 I + R2 A A^T)^-1 e`` where the decomposition is declared and there is noise."""
    m, matrix = built(name, noise, canvas)
    ours = m.inverse(m.y, R2)
    assert (ours is None) == (noise == 0 or not isinstance(m.physics, DecomposablePhysics))
    if ours is not None:
        s = noise**2 * torch.eye(len(matrix), dtype=F64) + R2 * matrix @ matrix.mT
        theirs = torch.linalg.solve(s, m.y.flatten(1).mT).mT
        torch.testing.assert_close(ours.flatten(1), theirs, rtol=0, atol=1e-8 * float(theirs.abs().max()))


@pytest.mark.parametrize(("name", "noise", "canvas"), CASES)
def test_prox(name, noise, canvas):
    """``argmin_x |y - A x|^2 / sigma_y^2 + |x - v|^2 / R2`` by its normal equations."""
    m, matrix = built(name, noise, canvas)
    if noise > 0:
        v = randn(2, *canvas)
        system = matrix.mT @ matrix / noise**2 + torch.eye(matrix.shape[1], dtype=F64) / R2
        right = m.y.flatten(1) @ matrix / noise**2 + v.flatten(1) / R2
        theirs = torch.linalg.solve(system, right.mT).mT
        torch.testing.assert_close(m.prox(v, R2).flatten(1), theirs, rtol=0, atol=1e-7 * float(theirs.abs().max()))


def test_the_spectrum_of_the_identity_is_one_and_of_others_positive():
    identity = built("denoise", 0.1, (3, 8, 8))[0]
    torch.testing.assert_close(identity.spectrum, torch.ones(2, 3, 8, 8, dtype=F64))
    for name in PHYSICS:
        m, matrix = built(name, 0.1, PHYSICS[name].shape)
        assert bool((m.spectrum >= 0).all())
        assert float(m.spectrum.mean()) == pytest.approx(float(matrix.square().sum() / matrix.shape[1]), rel=0.5)


@pytest.mark.parametrize(("name", "noise", "canvas"), CASES)
def test_whiten(name, noise, canvas):
    m, matrix = built(name, noise, canvas)
    theirs = m.y.flatten(1) @ power(matrix, noise, -0.5).mT
    atol = 1e-7 * float(theirs.abs().max())
    torch.testing.assert_close(m.whiten(m.y, R2).flatten(1), theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_singular_physics_without_a_declared_decomposition(dtype, noise):
    matrix = randn(8, 5, seed=1) @ randn(5, 12, seed=2)
    z = randn(3, 8, seed=5)
    m = Measurement(z.to(dtype), matrix_physics(matrix.to(dtype), (12,)), noise, (12,), (12,))
    double = dtype == torch.float64
    for ours, exponent in ((m.solve(m.y, R2), -1.0), (m.whiten(m.y, R2), -0.5)):
        theirs = z @ power(matrix, noise, exponent).mT
        tolerance = (1e-9 if double else 2e-4) if exponent == -1.0 else (1e-7 if double else 2e-3)
        torch.testing.assert_close(ours.to(F64), theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


@pytest.mark.parametrize("declared", [True, False])
def test_what_counts_as_not_measured_is_decided_for_each_image(declared):
    """Singular values of one image may be rounding errors beside those of another."""
    gains, y, shape = torch.tensor([1.0, 1e-9], dtype=F64).reshape(2, 1, 1, 1), randn(2, 1, 4, 4), (1, 4, 4)

    def measured(rows: slice) -> Measurement:
        values = gains[rows] * torch.logspace(0, -1, 16, dtype=F64).reshape(1, *shape)
        physics = DecomposablePhysics(mask=values, img_size=shape)  # pyright: ignore[reportArgumentType]
        noise = GaussianNoise(0.0)
        plain = LinearPhysics(A=physics.A, A_adjoint=physics.A_adjoint, img_size=shape, noise_model=noise)  # pyright: ignore[reportArgumentType]
        return Measurement(y[rows], physics if declared else plain, 0.0, shape, shape)

    both = measured(slice(2))
    for row in range(2):
        alone = measured(slice(row, row + 1))
        for value in ("solve", "whiten"):
            ours, own = (getattr(m, value)(m.y, R2)[-1 if m is alone else row] for m in (both, alone))
            torch.testing.assert_close(ours, own, rtol=1e-6, atol=1e-9 * float(own.abs().max()))
        ours, own = (m.filter(m.y, lambda w2: (w2 > 0).to(w2))[-1 if m is alone else row] for m in (both, alone))
        torch.testing.assert_close(ours, own)
        torch.testing.assert_close(own, y[row])


@pytest.mark.parametrize("noise", [1e-2, 0.3])
def test_whiten_iterates_until_it_has_converged(noise):
    """A condition number of 4000 needs more than the 60 iterations that large noise is content with."""
    w = torch.logspace(-3, 0, 200, dtype=F64)
    u = torch.linalg.qr(randn(200, 200, seed=3))[0]
    m = Measurement(randn(2, 200), matrix_physics(u * w, (200,)), noise, (200,), (200,))
    theirs = m.y @ power(u * w, noise, -0.5).mT
    assert float((m.whiten(m.y, R2) - theirs).norm() / theirs.norm()) < 1e-6


@pytest.mark.parametrize("name", PHYSICS)
def test_weights_whiten_noise_of_many_variances(name):
    """``A`` stands for ``W A`` in every product, whatever decomposition ``A`` has declared."""
    case = PHYSICS[name]
    bare, matrix = built(name, 0.2, case.shape)
    weight = 0.5 + torch.rand(bare.y.shape, generator=torch.Generator().manual_seed(4), dtype=F64)
    weight = weight[:1]
    m = Measurement(bare.y, bare.physics, 0.2, case.shape, case.shape, weight=weight)
    weighted = weight.reshape(-1, 1) * matrix
    x = randn(2, *case.shape, seed=5)
    torch.testing.assert_close(m.A(x).flatten(1), x.flatten(1) @ weighted.mT, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(m.At(m.y).flatten(1), m.y.flatten(1) @ weighted, rtol=1e-11, atol=1e-11)
    for ours, exponent in ((m.solve(m.y, R2), -1.0), (m.whiten(m.y, R2), -0.5)):
        theirs = m.y.flatten(1) @ power(weighted, 0.2, exponent).mT
        torch.testing.assert_close(ours.flatten(1), theirs, rtol=0, atol=1e-7 * float(theirs.abs().max()))


def test_a_noise_free_blur_in_float32_does_not_amplify_rounding():
    physics = named.deblur_gaussian((3, 64, 64), noise_std=0.0)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    restored = Measurement(physics.A(x), physics, 0.0, (3, 64, 64), (3, 64, 64)).solve(physics.A(x), 1.0)
    assert float(restored.norm()) <= 1.02 * float(x.norm())  # a projection of x


@pytest.mark.parametrize("name", PHYSICS)
def test_misfit_of_the_truth_is_one(name):
    """Where a mask hides entries they count neither as residual nor as measurements."""
    case = PHYSICS[name]
    physics = case.build(0.1)
    x = torch.rand(40, *case.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    y = named.measure(x, physics, seed=range(40))
    m = Measurement(y, physics, 0.1, case.shape, case.shape)
    count = float(named.measured_count(physics, y[:1]))
    assert abs(float((m.misfit(x) ** 2).mean()) - 1) < 5 * (2 / (40 * count)) ** 0.5


def test_misfit_without_noise_is_the_rms_residual_and_ignores_hidden_entries():
    physics = PHYSICS["inpaint-box"].build(0.0)
    x, noise = randn(2, 3, 8, 8), randn(2, 3, 8, 8, seed=1)
    mask = dense_matrix(physics, (3, 8, 8)).diagonal().reshape(1, 3, 8, 8)
    m = Measurement(x * mask + noise, physics, 0.0, (3, 8, 8), (3, 8, 8))
    seen = (noise * mask).square().sum((1, 2, 3)) / mask.sum()
    torch.testing.assert_close(m.misfit(x), seen.sqrt())
