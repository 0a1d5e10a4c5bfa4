"""Kernels from words, dense matrices, masks behind a blur, unknown borders, scratches."""

from __future__ import annotations

import math

import pytest
import torch
from deepinv.physics import GaussianNoise, Inpainting, LinearPhysics
from torch import Tensor

from cmidiff.measurement import Measurement
from cmidiff.physics import (
    TASKS,
    ValidBlur,
    adjoint_error,
    canvas_shape,
    from_kernel,
    from_mask,
    from_matrix,
    gaussian_kernel,
    known_entries,
    measure,
    measured_count,
    parse_kernel,
    random_mask,
    scratch_mask,
)

DOUBLE = torch.float64


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def covariance(kernel: Tensor) -> Tensor:
    """The 2x2 matrix of second moments, pixels squared, rows first; the kernel has its mean at its centre."""
    rows, columns = (torch.arange(n, dtype=DOUBLE) - n // 2 for n in kernel.shape)
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    assert float((kernel * place).sum((1, 2)).abs().max()) < 1e-9
    return torch.einsum("ahw,bhw,hw->ab", place, place, kernel)


@pytest.mark.parametrize("spec", ["gaussian:1.5", "disk:3.2", "motion:9,30", "motion:4.5,-90", "disk:0.3"])
def test_a_kernel_sums_to_one_and_is_centred(spec: str) -> None:
    kernel = parse_kernel(spec)
    assert all(n % 2 == 1 for n in kernel.shape)
    assert float(kernel.min()) >= 0
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-12)
    covariance(kernel)


def test_kernels_have_the_moments_of_their_shapes() -> None:
    assert torch.allclose(covariance(parse_kernel("gaussian:2")), 4 * torch.eye(2, dtype=DOUBLE), rtol=0.01)
    pixel = torch.eye(2, dtype=DOUBLE) / 12  # of the averaging over a pixel
    disk = covariance(parse_kernel("disk:4.3"))
    assert torch.allclose(disk, 4.3**2 / 4 * torch.eye(2, dtype=DOUBLE) + pixel, rtol=0.01, atol=0.02)
    for angle in (0.0, 30.0, 90.0, 135.0):
        line = covariance(parse_kernel(f"motion:15,{angle}"))
        along = torch.tensor([-math.sin(math.radians(angle)), math.cos(math.radians(angle))], dtype=DOUBLE)
        across = torch.stack([along[1], -along[0]])
        assert float(along @ line @ along) == pytest.approx(15**2 / 12, rel=0.02)
        assert float(across @ line @ across) < 0.3
    rising = parse_kernel("motion:5,45")  # counterclockwise: the upper right and the lower left
    assert rising[0, -1] > 0
    assert rising[0, 0] == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gauss:1", "gaussian:STD.*got 'gauss:1'"),
        ("gaussian", "must be one of"),
        ("gaussian:1,2", "must be written gaussian:STD"),
        ("motion:5", "must be written motion:LENGTH,ANGLE"),
        ("disk:wide", "must be written disk:RADIUS"),
        ("disk:0", "radius must be.*above 0"),
        ("gaussian:-1", "std must be.*above 0"),
        ("motion:nan,0", "length must be"),
        ("motion:5,inf", "angle must be"),
        ("gaussian:1e9", "at most 500"),
    ],
)
def test_a_kernel_that_is_not_understood(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_kernel(spec)


@pytest.mark.parametrize("rows", [4, 12, 20])
def test_a_dense_matrix_has_closed_forms(rows: int) -> None:
    matrix, shape = normal(rows, 12), (3, 2, 2)
    matrix[-1] = matrix[0]  # not of full rank
    physics = from_matrix(matrix, shape, noise_std=0.3, dtype=DOUBLE)
    x, y, z = normal(2, *shape, seed=1), normal(2, rows, seed=2), normal(2, *shape, seed=3)
    torch.testing.assert_close(physics.A(x), x.flatten(1) @ matrix.T)
    torch.testing.assert_close(physics.A_adjoint(y), (y @ matrix).reshape(2, *shape))
    gamma = 3.0
    system = gamma * matrix.T @ matrix + torch.eye(12, dtype=DOUBLE)
    exact = torch.linalg.solve(system, (gamma * y @ matrix + z.flatten(1)).T).T
    torch.testing.assert_close(physics.prox_l2(z, y, gamma).flatten(1), exact)
    measurement = Measurement(y, physics, 0.3, shape, shape)
    exact = y @ torch.linalg.inv(0.09 * torch.eye(rows, dtype=DOUBLE) + 0.5 * matrix @ matrix.T) @ matrix
    torch.testing.assert_close(measurement.solve(y, 0.5).flatten(1), exact)


@pytest.mark.parametrize(
    ("matrix", "shape", "message"),
    [
        (torch.ones(3), (3,), r"real tensor \(m, d\)"),
        (torch.ones(3, 4, dtype=torch.complex64), (4,), "real and imaginary rows"),
        (torch.ones(4, 3), (2, 2), "one column for each of the 4"),
        (torch.full((2, 2), float("nan")), (2,), "finite and not all zero"),
        ([[1.0]], (1,), "real tensor.*list"),
    ],
)
def test_a_matrix_that_is_not_usable(matrix: Tensor, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_matrix(matrix, shape)


COMPOSED = pytest.mark.filterwarnings("ignore:At least one input physics:UserWarning")  # deepinv, of a closed form


@COMPOSED
def test_noise_of_a_masked_blur_is_counted_where_it_is_seen() -> None:
    shape = (3, 32, 32)
    mask = random_mask(shape, hidden=0.9)
    blur = from_kernel(gaussian_kernel(kernel_size=9, std=1.0), shape, noise_std=0.0, dtype=DOUBLE)
    masked = from_mask(mask, shape, noise_std=0.1, dtype=DOUBLE) * blur
    assert isinstance(masked, LinearPhysics)
    seen = 3 * int(mask.sum())
    x = uniform(2, *shape)
    y = measure(x, masked, seed=[0, 1])
    assert measured_count(masked, y).tolist() == [seen, seen]
    assert not bool((y * (1 - mask)).any())
    measurement = Measurement(y, masked, 0.1, shape, shape)
    assert float(measurement.misfit(x).sub(1).abs().max()) < 4 / math.sqrt(2 * seen)


@COMPOSED
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_mask_counts_if_it_is_the_last_operator(depth: int) -> None:
    shape = (1, 8, 8)
    mask = random_mask(shape, hidden=0.5)
    blur = from_kernel(gaussian_kernel(kernel_size=3, std=1.0), shape, dtype=DOUBLE)
    last = Inpainting((1, 8, 8), mask=mask, noise_model=GaussianNoise(0.1))  # pyright: ignore[reportArgumentType]
    composed = last * blur
    for _ in range(depth - 1):
        composed = composed * blur
    y = composed.A(uniform(1, *shape))
    known = known_entries(composed, y)
    assert known is not None
    assert torch.equal(known.double(), mask)
    assert known_entries(blur * last, y) is None  # the noise of the blur is everywhere


def test_stacked_physics_are_refused_with_the_way_out() -> None:
    shape = (1, 8, 8)
    blur = from_kernel(gaussian_kernel(kernel_size=3, std=1.0), shape, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"A\(x\) must be one tensor.*from_callable"):
        measure(uniform(1, *shape), blur.stack(blur))


@pytest.mark.parametrize("size", [(5, 5), (3, 7), (1, 5), (4, 6)], ids=str)
def test_the_border_of_a_valid_blur_is_unknown(size: tuple[int, int]) -> None:
    kernel = uniform(*size)
    kernel /= kernel.sum()
    shape = canvas_shape(kernel, (2, 10, 12))
    physics = from_kernel(kernel, shape, padding="valid", dtype=DOUBLE)
    assert isinstance(physics, ValidBlur)
    x = uniform(2, *shape)
    y = physics.A(x)
    assert y.shape == (2, 2, 10, 12)
    zeros = from_kernel(kernel, shape, padding="zeros", dtype=DOUBLE)  # equal where it needs no pixel from outside
    assert float((physics.crop(zeros.A(x)) - y).abs().max()) < 1e-13
    assert adjoint_error(physics, shape) < 1e-13


def test_the_proximal_map_of_a_valid_blur_is_its_minimiser() -> None:
    kernel = parse_kernel("motion:5,30")
    shape = canvas_shape(kernel, (1, 9, 8))
    physics = from_kernel(kernel, shape, padding="valid", dtype=DOUBLE)
    z, y = normal(2, *shape), normal(2, 1, 9, 8, seed=1)
    basis = torch.eye(math.prod(shape), dtype=DOUBLE).reshape(-1, *shape)
    matrix = physics.A(basis).flatten(1).T
    for gamma in (1.0, 1e3):
        system = gamma * matrix.T @ matrix + torch.eye(len(basis), dtype=DOUBLE)
        exact = torch.linalg.solve(system, (gamma * y.flatten(1) @ matrix + z.flatten(1)).T).T
        assert float((physics.prox_l2(z, y, gamma).flatten(1) - exact).norm() / exact.norm()) < 1e-7


def test_a_kernel_larger_than_the_canvas_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must fit into the image.*canvas_shape"):
        from_kernel(gaussian_kernel(kernel_size=9, std=1.0), (1, 8, 8), padding="valid")


def test_scratches_hide_what_they_say_in_thin_strokes() -> None:
    for seed, hidden in ((0, 0.04), (1, 0.1)):
        mask = scratch_mask((3, 96, 80), hidden=hidden, seed=seed)
        assert int((mask == 0).sum()) == round(hidden * 96 * 80)
        damage = (mask == 0).double()
        assert float(torch.nn.functional.max_pool2d(mask, 7, stride=1, padding=3).min()) == 1  # the image is near
        joined = torch.nn.functional.avg_pool2d(damage, 3, stride=1, padding=1)[damage.bool()] > 1.5 / 9
        assert float(joined.double().mean()) > 0.95  # strokes, not dots
    assert torch.equal(scratch_mask((1, 32, 32), seed=3), scratch_mask((3, 32, 32), seed=3))
    assert not torch.equal(scratch_mask((1, 32, 32), seed=3), scratch_mask((1, 32, 32), seed=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"hidden": 0.0}, "some pixels and not all"), ({"hidden": 1.5}, "hidden must lie"), ({"width": 0.5}, "width")],
)
def test_scratches_that_are_not_meant(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scratch_mask((3, 16, 16), **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_without_noise_measures_exactly(name: str) -> None:
    shape = (3, 16, 16)
    physics = TASKS[name](shape, noise_std=0.0, dtype=DOUBLE)
    x = uniform(2, *shape)
    assert torch.equal(measure(x, physics, seed=[0, 1]), physics.A(x))
