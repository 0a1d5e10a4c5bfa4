"""The named tasks against dense matrices, the official codes' operators, and their own promises."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from deepinv.physics import (
    MRI,
    DownsamplingMatlab,
    GaussianNoise,
    Inpainting,
    LinearPhysics,
    PoissonGaussianNoise,
    PoissonNoise,
    Tomography,
    UniformNoise,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmidiff.physics import (
    TASKS,
    Task,
    adjoint_error,
    box_mask,
    colorize,
    compressed_sensing,
    deblur_gaussian,
    deblur_motion,
    denoise,
    from_callable,
    from_kernel,
    from_mask,
    from_signs,
    gaussian_kernel,
    hdr,
    inpaint_box,
    inpaint_random,
    known_entries,
    measure,
    measured_count,
    motion_kernel,
    nonlinear_blur,
    phase_retrieval,
    random_mask,
    super_resolution,
)
from cmidiff.physics.nonlinear import decode, encode
from tests.cases import NONLINEAR

CONFORMANCE = Path(__file__).parents[2] / "shared" / "conformance" / "operators.npz"
DOUBLE = torch.float64


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def dense(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear map, column by column."""
    basis = torch.eye(math.prod(shape), dtype=DOUBLE).reshape(-1, *shape)
    return function(basis).flatten(1).T


def every_task(shape: tuple[int, int, int], **options: object) -> dict[str, LinearPhysics]:
    """Every named task that takes images of this shape, with the paddings of the blurs."""
    tasks: dict[str, LinearPhysics] = {
        name: task(shape, **options)  # pyright: ignore
        for name, task in TASKS.items()
        if name not in ("super-resolution", "colorize", *NONLINEAR)
    }
    tasks["deblur-motion/zeros"] = deblur_motion(shape, kernel_size=5, padding="zeros", **options)  # pyright: ignore
    for padding in ("reflect", "replicate"):
        tasks[f"deblur/{padding}"] = deblur_gaussian(shape, kernel_size=5, std=1.0, padding=padding, **options)  # pyright: ignore
    if shape[0] == 3:
        tasks["colorize"] = colorize(shape, **options)  # pyright: ignore
    factors = [f for f in (2, 3, 4, 5) if all(side % f == 0 and side >= 2 * f for side in shape[1:])]
    return tasks | {f"super-resolution/{f}": super_resolution(shape, factor=f, **options) for f in factors}  # pyright: ignore


@pytest.mark.parametrize("shape", [(3, 8, 6), (1, 9, 6), (3, 7, 7)], ids=str)
def test_adjoint_is_the_transposed_matrix_and_prox_its_minimiser(shape: tuple[int, int, int]) -> None:
    gamma = 7.0
    for name, physics in every_task(shape, dtype=DOUBLE).items():
        matrix = dense(physics.A, shape)
        y_shape = physics.A(torch.zeros(1, *shape, dtype=DOUBLE)).shape[1:]
        assert (dense(physics.A_adjoint, tuple(y_shape)) - matrix.T).abs().max() < 1e-12, name
        z, y = normal(1, *shape), normal(1, *y_shape, seed=1)
        normal_matrix = gamma * matrix.T @ matrix + torch.eye(matrix.shape[1], dtype=DOUBLE)
        exact = torch.linalg.solve(normal_matrix, gamma * matrix.T @ y.flatten() + z.flatten())
        closed_form = not name.startswith(("deblur/", "deblur-motion/", "compressed"))
        tolerance = 1e-12 if closed_form else 1e-3  # deepinv's conjugate gradients
        assert (physics.prox_l2(z, y, gamma).flatten() - exact).norm() < tolerance * exact.norm(), name


@settings(max_examples=12, deadline=None)
@given(channels=st.sampled_from([1, 3]), height=st.integers(4, 40), width=st.integers(4, 40), seed=st.integers(0, 99))
def test_dot_test_at_any_size(channels: int, height: int, width: int, seed: int) -> None:
    for name, physics in every_task((channels, height, width), dtype=DOUBLE).items():
        assert adjoint_error(physics, (channels, height, width), seed=seed) < 1e-10, name


def test_single_precision_is_the_same_physics() -> None:
    shape = (3, 32, 40)
    x = uniform(2, *shape)
    for name in TASKS:
        double, single = TASKS[name](shape, dtype=DOUBLE), TASKS[name](shape)
        y = single.A(x.float())
        assert y.dtype == torch.float32, name
        assert (y - double.A(x)).abs().max() < 2e-6, name
        if isinstance(single, LinearPhysics):
            assert adjoint_error(single, shape, dtype=torch.float32) < 1e-5, name
        noisy, exact = measure(x.float(), single, seed=3), measure(x, double, seed=3)
        assert (noisy - exact).abs().max() < 2e-6, name


def test_super_resolution_is_the_matlab_resizer() -> None:
    for factor, side in ((2, 12), (3, 27), (4, 16), (16, 64)):
        x = uniform(1, 3, side, 2 * side)
        ours = super_resolution((3, side, 2 * side), factor=factor, dtype=DOUBLE)
        theirs = DownsamplingMatlab(factor, "cubic", padding="reflect")
        assert (ours.A(x) - theirs.A(x)).abs().max() < 1e-13
        y = normal(1, 3, side // factor, 2 * side // factor)
        assert (ours.A_adjoint(y) - theirs.A_adjoint(y)).abs().max() < 1e-13


@pytest.mark.skipif(not CONFORMANCE.is_file(), reason="the reference operators are not here")
def test_operators_of_the_official_codes() -> None:
    with np.load(CONFORMANCE) as file:
        reference = {key: torch.from_numpy(file[key]).double() for key in file.files if not key.startswith("sr4_256")}
    x, shape = reference["x64"], (3, 64, 64)
    assert (gaussian_kernel(kernel_size=61, std=3.0) - reference["gauss_kernel61"]).abs().max() < 1e-8
    blurred = deblur_gaussian(shape, std=3.0, padding="reflect", dtype=DOUBLE).A(x)
    assert (blurred - reference["gauss_y_reflect"]).abs().max() < 2e-6
    given = from_kernel(reference["gauss_kernel61"], shape, padding="reflect", dtype=DOUBLE)
    assert (given.A(x) - reference["gauss_y_reflect"]).abs().max() < 2e-6
    # The DPS code cross-correlates.
    motion = from_kernel(reference["motion_kernel61_seed11"].flip(-2, -1), shape, padding="reflect", dtype=DOUBLE)
    assert (motion.A(x) - reference["motion_y_reflect"]).abs().max() < 2e-6
    assert (super_resolution(shape, factor=4, dtype=DOUBLE).A(x) - reference["sr4_y"]).abs().max() < 2e-6
    circular = deblur_gaussian(shape, std=3.0, dtype=DOUBLE)
    assert (circular.A(x) - reference["kdip_gauss_fft_y"]).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(2, 3), (5, 5), (4, 9), (11, 9)], ids=str)
def test_blur_is_the_convolution_centred_at_half_the_kernel(size: tuple[int, int]) -> None:
    height, width = 7, 8
    kernel = uniform(*size)
    kernel /= kernel.sum()
    matrix = torch.zeros(height, width, height, width, dtype=DOUBLE)
    for i, j, a, b in itertools.product(range(height), range(width), range(size[0]), range(size[1])):
        row, column = (i - (a - size[0] // 2)) % height, (j - (b - size[1] // 2)) % width
        matrix[i, j, row, column] += kernel[a, b]
    x = uniform(2, 1, height, width)
    expected = torch.einsum("ijkl,bckl->bcij", matrix, x)
    physics = from_kernel(kernel, (1, height, width), dtype=DOUBLE)
    assert (physics.A(x) - expected).abs().max() < 1e-13
    if max(size) <= 5:
        inner = from_kernel(kernel, (1, height, width), padding="reflect", dtype=DOUBLE).A(x)[..., 3:4, 3:5]
        assert (inner - expected[..., 3:4, 3:5]).abs().max() < 1e-13


def test_a_kernel_and_a_mask_for_each_image() -> None:
    x = uniform(2, 3, 16, 16)
    kernels = torch.stack([gaussian_kernel(kernel_size=5, std=s)[None] for s in (0.7, 1.5)])
    masks = torch.cat([random_mask((3, 16, 16), hidden=0.5, seed=s) for s in (0, 1)])
    for padding in ("circular", "reflect"):
        together = from_kernel(kernels, (3, 16, 16), padding=padding, dtype=DOUBLE).A(x)
        for b in range(2):
            alone = from_kernel(kernels[b, 0], (3, 16, 16), padding=padding, dtype=DOUBLE).A(x[b : b + 1])
            assert (together[b] - alone[0]).abs().max() < 1e-14
    for mask in (masks, masks.expand(2, 3, 16, 16)):
        physics = from_mask(mask, (3, 16, 16), dtype=DOUBLE)
        assert torch.equal(physics.A(x), masks * x)
        assert adjoint_error(physics, (3, 16, 16)) < 1e-15


def test_masks_hide_what_they_say() -> None:
    mask = random_mask((3, 50, 20), hidden=0.9, seed=4)
    assert int((mask == 0).sum()) == 900
    assert not torch.equal(mask, random_mask((3, 50, 20), hidden=0.9, seed=5))
    for seed in range(20):
        box = box_mask((3, 32, 48), seed=seed)[0, 0]
        rows, columns = (box == 0).nonzero().unbind(1)
        assert rows.max() - rows.min() + 1 == 16
        assert columns.max() - columns.min() + 1 == 24
        assert int((box == 0).sum()) == 16 * 24
        assert rows.min() >= 2
        assert columns.max() <= 44
    assert torch.equal(
        box_mask((1, 4, 4), size=(1, 2), position=(3, 2)).flatten().nonzero().flatten(), torch.arange(14)
    )


def test_kernels_sum_to_one_and_motion_stays_centred() -> None:
    offset = torch.arange(61, dtype=DOUBLE) - 30
    for intensity, seed in itertools.product((0.0, 0.5, 1.0), range(5)):
        kernel = motion_kernel(intensity=intensity, seed=seed)
        assert float(kernel.min()) >= 0
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-12)
        assert float((kernel.sum(0) * offset).sum()) == pytest.approx(0, abs=1e-9)
        assert float((kernel.sum(1) * offset).sum()) == pytest.approx(0, abs=1e-9)
    assert not torch.equal(motion_kernel(seed=0), motion_kernel(seed=1))
    assert float(gaussian_kernel(kernel_size=61, std=5.0).sum()) == pytest.approx(1, abs=1e-12)
    line = motion_kernel(intensity=0.0, seed=2)  # all mass within half a pixel, bilinear weights apart, of one line
    rows, columns = torch.meshgrid(offset, offset, indexing="ij")
    covariance = torch.tensor(
        [[(line * rows * rows).sum(), (line * rows * columns).sum()], [0, (line * columns**2).sum()]]
    )
    assert float(torch.linalg.eigvalsh(covariance, UPLO="U").min()) < 0.3


def test_draws_do_not_touch_the_global_generator_and_repeat() -> None:
    shape = (3, 16, 16)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for name, task in TASKS.items():
        x = uniform(2, *shape)
        first, again = task(shape, dtype=DOUBLE), task(shape, dtype=DOUBLE)
        assert torch.equal(measure(x, first, seed=1), measure(x, again, seed=1)), name
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_are_the_same_on_every_machine() -> None:
    kept = random_mask((1, 4, 5), hidden=0.5, seed=7).flatten().nonzero().flatten().tolist()
    assert kept == [0, 2, 5, 6, 8, 10, 13, 14, 16, 18]
    kernel = motion_kernel(kernel_size=9, seed=7)
    assert kernel[4, 3:6].tolist() == pytest.approx([0.1891, 0.2919, 0.1359], abs=1e-4)
    y = measure(torch.zeros(1, 1, 2, 2, dtype=DOUBLE), denoise((1, 2, 2), noise_std=1.0, dtype=DOUBLE), seed=7)
    drawn = [-0.1467950974849952, 0.7861412987235358, 0.9468216090039564, -1.1143440212610307]
    assert y.flatten().tolist() == pytest.approx(drawn, abs=1e-12)


def test_measurement_depends_on_image_and_seed_alone() -> None:
    x, shape = uniform(3, 3, 16, 16), (3, 16, 16)
    before = x.clone()
    for name, task in TASKS.items():
        physics = task(shape, dtype=DOUBLE)
        y = measure(x, physics, seed=[5, 6, 7])
        reordered = measure(x[[2, 0]], physics, seed=[7, 5])
        assert (reordered - y[[2, 0]]).abs().max() < 1e-13, name
        assert torch.equal(measure(x, physics, seed=5)[0], y[0]), name
        assert (measure(x, physics, seed=0) - measure(x, physics, seed=1)).abs().max() > 0, name
    assert torch.equal(x, before)


def test_the_stated_noise_is_the_real_noise() -> None:
    x = uniform(1, 3, 128, 128)
    for name, task in TASKS.items():
        physics = task((3, 128, 128), noise_std=0.07, dtype=DOUBLE)
        noise = measure(x, physics, seed=2) - physics.A(x)
        count = measured_count(physics, noise)
        known = known_entries(physics, noise)
        if known is not None:
            assert float((noise * (1 - known)).abs().max()) == 0, name
            assert float(count) == 3 * float(known.sum()), name
        measured_std = float((noise.square().sum() / count).sqrt())
        assert abs(measured_std / 0.07 - 1) < 4 / math.sqrt(2 * float(count)), name
    assert torch.equal(measure(x, denoise((3, 128, 128), noise_std=0.0, dtype=DOUBLE)), x)


def test_photons_are_counted() -> None:
    """Each entry of ``y`` is a whole number of photons, of mean ``A x`` and variance ``gain A x``."""
    x, gain = torch.full((1, 1, 200, 200), 0.3, dtype=DOUBLE), 1 / 64
    physics = denoise((1, 200, 200), dtype=DOUBLE)
    physics.noise_model = PoissonNoise(gain)
    y = measure(x, physics, seed=1)
    assert float((y / gain - (y / gain).round()).abs().max()) < 1e-9
    assert float(y.mean()) == pytest.approx(0.3, abs=4 * (gain * 0.3) ** 0.5 / 200)
    assert float(y.var()) == pytest.approx(gain * 0.3, rel=4 * 2**0.5 / 200)
    physics.noise_model = PoissonNoise(gain, normalize=False)
    assert torch.equal(measure(x, physics, seed=1) * gain, y)
    physics.noise_model = PoissonGaussianNoise(gain, 0.1)
    both = measure(x, physics, seed=1) - y
    assert float(both.std()) == pytest.approx(0.1, rel=4 / 2**0.5 / 200)
    assert abs(float((both * (y - 0.3)).mean())) < 4 * 0.1 * (gain * 0.3) ** 0.5 / 200  # independent of the photons


def test_photons_depend_on_image_and_seed_alone_and_are_none_where_hidden() -> None:
    task = Task.draw("inpaint-random", (3, 16, 16), {"poisson": 0.05, "hidden": 0.5})
    physics, x = task.build((3, 16, 16), DOUBLE), uniform(3, 3, 16, 16)
    y = measure(x, physics, seed=[5, 6, 7])
    assert torch.equal(measure(x[[2, 0]], physics, seed=[7, 5]), y[[2, 0]])
    assert not bool((y * (1 - task.tensors["mask"])).any())
    assert isinstance(physics.noise_model, PoissonNoise)
    single = task.build((3, 16, 16))
    assert torch.equal(measure(x.float(), single, seed=[5, 6, 7]).double().round(decimals=3), y.round(decimals=3))


def test_phase_retrieval_is_blind_to_a_flip_and_a_shift() -> None:
    x = uniform(2, 3, 8, 10)
    physics = phase_retrieval((3, 8, 10), dtype=DOUBLE)
    y = physics.A(x)
    assert y.shape == (2, 3, 16, 20)
    assert float((physics.A(x.flip(-2, -1)) - y).abs().max()) < 1e-12
    grown = torch.nn.functional.pad(x[..., :4, :5], (2, 3, 1, 3))
    assert float((physics.A(grown) - physics.A(grown.roll((1, -1), (-2, -1)))).abs().max()) < 1e-12
    torch.testing.assert_close(y.square().sum((-2, -1)), x.square().sum((-2, -1)))  # Parseval
    power = torch.fft.ifft2(y.square()).real * 16 * 20
    overlap = sum(x[0, 0, i, j] * x[0, 0, i + 2, j + 3] for i in range(6) for j in range(7))
    assert float(power[0, 0, 2, 3]) == pytest.approx(float(overlap), rel=1e-10)  # Wiener, Khinchin


def test_exposure_clips_what_the_sensor_cannot_hold() -> None:
    x = torch.tensor([0.0, 0.2, 0.25, 0.5, 0.7, 0.75, 1.0], dtype=DOUBLE).reshape(1, 1, 1, 7)
    y = hdr((1, 1, 7), factor=2.0, dtype=DOUBLE).A(x)
    assert y.flatten().tolist() == pytest.approx([0, 0, 0, 0.5, 0.9, 1, 1])
    torch.testing.assert_close(2 * y - 1, (2 * (2 * x - 1)).clamp(-1, 1))  # the same task as stated in [-1, 1]


def test_blur_of_light_keeps_light_and_spreads_highlights() -> None:
    physics = nonlinear_blur((1, 16, 16), kernel_size=5, seed=3, dtype=DOUBLE)
    flat = torch.full((1, 1, 16, 16), 0.37, dtype=DOUBLE)
    torch.testing.assert_close(physics.A(flat), flat)
    x = torch.full((1, 1, 16, 16), 0.02, dtype=DOUBLE)
    x[..., 8, 8] = 1.0
    linear = deblur_motion((1, 16, 16), kernel_size=5, seed=3, dtype=DOUBLE)
    assert bool((physics.A(x) >= linear.A(x) - 1e-12).all())  # the curve is concave
    assert float((physics.A(x) - linear.A(x)).max()) > 0.1
    curve = torch.linspace(-0.5, 1.5, 401, dtype=DOUBLE)
    torch.testing.assert_close(encode(decode(curve)), curve, rtol=0, atol=1e-7)
    assert float(decode(torch.tensor(0.5))) == pytest.approx(0.21404, abs=1e-5)  # the standard's own middle grey
    slope = torch.func.vmap(torch.func.grad(encode))(torch.tensor([-1e-9, 0.0, 1e-9], dtype=DOUBLE))
    assert slope[[0, 2]].tolist() == pytest.approx([12.92, 12.92])


def test_compressed_sensing_rows_are_orthonormal() -> None:
    for ratio in (0.1, 0.25, 0.5, 1.0):
        physics = compressed_sensing((1, 12, 15), ratio=ratio, dtype=DOUBLE)
        matrix = dense(physics.A, (1, 12, 15))
        assert (matrix @ matrix.T - torch.eye(len(matrix), dtype=DOUBLE)).abs().max() < 1e-12
        assert abs(len(matrix) / 180 - ratio) < 0.05


@pytest.mark.parametrize("name", TASKS)
def test_a_task_restores_the_exact_physics_from_what_was_stored(name: str) -> None:
    shape = (3, 16, 24)
    task = Task.draw(name, shape, {"noise_std": 0.02})
    parameters = json.loads(json.dumps(task.parameters)) | ({"seed": 999} if "seed" in task.parameters else {})
    copy = Task(name, parameters, {key: value.clone() for key, value in task.tensors.items()})
    x = uniform(1, *shape)
    direct = TASKS[name](shape, noise_std=0.02, dtype=DOUBLE)
    assert torch.equal(measure(x, copy.build(shape, DOUBLE)), measure(x, direct))


def test_tasks_of_a_users_own_mask_and_kernel() -> None:
    x, mask, kernel = uniform(1, 3, 8, 8), random_mask((3, 8, 8), seed=1), gaussian_kernel(kernel_size=3, std=1.0)
    masked = Task("mask", {"noise_std": 0.1}, {"mask": mask}).build((3, 8, 8), DOUBLE)
    assert torch.equal(masked.A(x), x * mask)
    assert float(masked.noise_model.sigma) == pytest.approx(0.1)  # pyright: ignore
    blurred = Task("kernel", {"padding": "reflect"}, {"kernel": kernel}).build((3, 8, 8), DOUBLE)
    assert torch.equal(blurred.A(x), from_kernel(kernel, (3, 8, 8), padding="reflect", dtype=DOUBLE).A(x))


def gradient_map(x: Tensor) -> Tensor:
    """A linear map of another shape: differences of neighbours along rows, two channels mixed."""
    return (x[..., 1:] - x[..., :-1])[:, :1] + 2 * x[:, 1:, :, 1:]


def test_own_callable_by_reverse_differentiation() -> None:
    for dtype, tolerance in ((DOUBLE, 1e-14), (torch.float32, 1e-5)):
        physics = from_callable(gradient_map, (2, 6, 5), noise_std=0.1, dtype=dtype)
        assert adjoint_error(physics, (2, 6, 5), batch=3, dtype=dtype) < tolerance
    matrix = dense(gradient_map, (2, 6, 5))
    physics = from_callable(gradient_map, (2, 6, 5), dtype=DOUBLE)
    assert (dense(physics.A_adjoint, (1, 6, 4)) - matrix.T).abs().max() < 1e-14
    fourier = from_callable(lambda x: torch.fft.rfft2(x), (2, 6, 5), dtype=DOUBLE)
    assert adjoint_error(fourier, (2, 6, 5)) < 1e-14


def test_own_callable_with_its_adjoint() -> None:
    roll = from_callable(
        lambda x: x.roll(1, -1), (1, 4, 4), adjoint=lambda y: y.roll(-1, -1), noise_std=0.2, dtype=DOUBLE
    )
    assert adjoint_error(roll, (1, 4, 4)) < 1e-15
    x = uniform(2, 1, 4, 4)
    assert (measure(x, roll, seed=[0, 1]) - x.roll(1, -1)).abs().max() > 0


def numpy_map(x: Tensor) -> Tensor:
    return torch.from_numpy(2 * x.detach().numpy())


@pytest.mark.parametrize(
    ("A", "adjoint", "message"),
    [
        (lambda x: x + 1, None, r"A\(0\) is not 0"),
        (lambda x: x.clamp_min(0), None, r"A\(u \+ v\) is not"),
        (lambda x: x - x.mean(0), None, "in a batch than alone"),
        (lambda x: 2 * x, lambda y: y, "adjoint is not the adjoint of A"),
        (numpy_map, None, "Pass adjoint="),
        (lambda x: x.sum(), None, "must map a batch"),
        (lambda x: x[:, :1], lambda y: y[:, :, 1:], "could not be evaluated|not the adjoint"),
        (3, None, "must be functions"),
    ],
)
def test_own_callable_that_is_wrong(A: Callable, adjoint: Callable | None, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        from_callable(A, (2, 5, 5), adjoint=adjoint)


def test_mri_and_tomography_are_accepted() -> None:
    mask = torch.zeros(1, 2, 16, 16, dtype=DOUBLE)
    mask[..., ::3] = 1
    mri = MRI(mask=mask, img_size=(2, 16, 16), noise_model=GaussianNoise(torch.tensor(0.05, dtype=DOUBLE)))
    assert adjoint_error(mri, (2, 16, 16)) < 1e-12
    y = measure(uniform(2, 2, 16, 16), mri, seed=[0, 1])
    assert float((y * (1 - mask)).abs().max()) == 0
    assert measured_count(mri, y).tolist() == [2 * 16 * 6] * 2
    ct = Tomography(angles=12, img_width=16, normalize=True, noise_model=GaussianNoise(0.05))  # float32 only
    assert adjoint_error(ct, (1, 16, 16), dtype=torch.float32) < 1e-6
    sinogram = measure(uniform(1, 1, 16, 16).float(), ct)
    assert measured_count(ct, sinogram).tolist() == [sinogram[0].numel()]


def nan_kernel() -> Tensor:
    return torch.tensor([[float("nan"), 1.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: denoise((3, 8, 8), noise_std=-0.1), "noise_std must be a finite number of at least 0.*-0.1"),
        (lambda: denoise((3, 8, 8), noise_std=float("nan")), "noise_std must be a finite.*nan"),
        (lambda: denoise((3, 8, 8), dtype=torch.float16), "float32 or torch.float64; got torch.float16"),
        (lambda: denoise((3, 0, 8)), r"three positive integers.*\(3, 0, 8\)"),
        (lambda: denoise((2, 3, 8, 8)), "three positive integers.*pass x.shape"),
        (lambda: inpaint_box((3, 8, 8), size=9), "must lie inside the image"),
        (lambda: inpaint_box((3, 8, 8), size=8), "leave some of it"),
        (lambda: inpaint_box((3, 8, 8), size=4, position=(6, 0)), r"got size \(4, 4\) at \(6, 0\)"),
        (lambda: inpaint_box((3, 8, 8), size=0), "size must be one or two integers"),
        (lambda: inpaint_random((3, 8, 8), hidden=1.0), r"hidden must lie in \[0, 1\)"),
        (lambda: inpaint_random((3, 8, 8), hidden=0.999), "leaves no pixel"),
        (lambda: inpaint_random((3, 8, 8), seed=0.5), "seed must be an integer"),  # pyright: ignore
        (lambda: deblur_gaussian((3, 8, 8), kernel_size=60), "odd integer.*60"),
        (lambda: deblur_gaussian((3, 8, 8), std=0.0), "std must be a positive number"),
        (lambda: deblur_gaussian((3, 8, 8), padding="mirror"), "padding must be one of.*'mirror'"),
        (lambda: deblur_gaussian((3, 8, 8), padding="reflect"), r"reaches \(12, 12\) pixels in an image of 8x8"),
        (lambda: deblur_motion((3, 8, 8), intensity=1.5), r"intensity must lie in \[0, 1\]; got 1.5"),
        (lambda: super_resolution((3, 10, 8), factor=4), "must divide.*10x8.*Crop or pad the image to 8x8"),
        (lambda: super_resolution((3, 8, 8), factor=8), "two pixels a side"),
        (lambda: super_resolution((3, 8, 8), factor=1.5), "whole number.*1.5"),  # pyright: ignore
        (lambda: colorize((1, 8, 8)), "3 channels; got 1"),
        (lambda: compressed_sensing((3, 8, 8), ratio=1.1), r"ratio must lie in \[0, 1\]"),
        (lambda: compressed_sensing((3, 8, 8), ratio=0.0), "leaves no measurement"),
        (lambda: from_signs(torch.zeros(3, 8, 8)), "only -1 and 1"),
        (lambda: from_mask(torch.full((8, 8), 0.5)), "only 0 .*and 1 .*0.5 to 0.5"),
        (lambda: from_mask(torch.tensor([[1.0, float("nan")]])), "only 0 .*and 1"),
        (lambda: from_mask(torch.zeros(8, 8)), "inverted"),
        (lambda: from_mask(torch.ones(8, 9), (3, 8, 8)), r"must be \(1 or 3, 8, 8\).*got \(1, 8, 9\)"),
        (lambda: from_mask(torch.ones(0, 8)), r"must be a tensor \(H, W\).*got \(0, 8\)"),
        (lambda: from_kernel(nan_kernel(), (3, 8, 8)), "finite and not all zero"),
        (lambda: from_kernel(torch.zeros(3, 3), (3, 8, 8)), "only zeros"),
        (lambda: from_kernel(torch.ones(3), (3, 8, 8)), r"A kernel must be a tensor \(k, l\).*got \(3,\)"),
        (lambda: from_kernel(torch.ones(1, 2, 3, 3) / 9, (3, 8, 8)), "1 or 3 channels"),
        (lambda: Task.draw("inpaint-rando", (3, 8, 8)), "unknown task 'inpaint-rando': did you mean inpaint-random"),
        (lambda: Task.draw("denoise", (3, 8, 8), {"noise-std": 1}), "'noise-std': did you mean noise_std"),
        (lambda: Task("mask", {}, {}), "needs the tensor 'mask'"),
        (lambda: Task.draw("inpaint-random", (3, 8, 8)).build((3, 8, 10)), r"must be \(1 or 3, 8, 10\)"),
        (lambda: Task.draw("compressed-sensing", (3, 8, 8)).build((3, 8, 10)), r"drawn for images of \(3, 8, 8\)"),
        (lambda: measure(torch.ones(1, 3, 8, 8).byte(), denoise((3, 8, 8))), "floats in.*uint8.*255"),
        (lambda: measure(torch.full((1, 3, 8, 8), float("nan")), denoise((3, 8, 8))), "finite; got 192 NaN"),
        (lambda: measure(torch.ones(1, 3, 8, 9), denoise((3, 8, 8))), r"for images of \(3, 8, 8\); got \(3, 8, 9\)"),
        (lambda: measure(torch.ones(2, 3, 8, 8), denoise((3, 8, 8)), seed=[1]), "1 seeds for 2 images"),
        (lambda: measure(torch.ones(1, 1, 4, 4), Inpainting((1, 4, 4), mask=torch.ones(1, 4, 4))), "Gaussian noise"),  # pyright: ignore
        (
            lambda: measure(torch.ones(1, 1, 4, 4), LinearPhysics(noise_model=UniformNoise())),  # pyright: ignore
            "or that of photons.*UniformNoise",
        ),
        (
            lambda: measure(torch.ones(1, 1, 4, 4), LinearPhysics(noise_model=PoissonNoise(0.0))),  # pyright: ignore
            "gain of Poisson noise must be a positive number.*0.0",
        ),
        (lambda: Task.draw("denoise", (3, 8, 8), {"poisson": -1.0}), "gain of Poisson noise.*-1.0"),
        (lambda: phase_retrieval((3, 8, 8), oversampling=0.5), r"oversampling must lie in \[1"),
        (lambda: hdr((3, 8, 8), factor=0.5), r"factor must lie in \[1"),
    ],
)
def test_bad_input_fails_at_the_door(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_kernel_that_changes_the_brightness_warns() -> None:
    with pytest.warns(UserWarning, match="sums to 9, not 1"):
        from_kernel(torch.ones(3, 3), (3, 8, 8))


@pytest.mark.parametrize("padding", ["reflect", "replicate", "zeros", "circular"])
@pytest.mark.parametrize(
    "kernel", [torch.ones(1, 5) / 5, torch.ones(5, 1) / 5, torch.ones(1, 1)], ids=["row", "column", "point"]
)
def test_a_kernel_of_one_pixel_width(kernel: Tensor, padding: str) -> None:
    physics = from_kernel(kernel.to(DOUBLE), (1, 9, 8), noise_std=0.0, padding=padding, dtype=DOUBLE)
    matrix = dense(physics.A, (1, 9, 8))
    torch.testing.assert_close(dense(physics.A_adjoint, (1, 9, 8)), matrix.T)
    middle = torch.zeros(1, 1, 9, 8, dtype=DOUBLE)
    middle[..., 4, 4] = 1
    half = [n // 2 for n in kernel.shape]
    expected = torch.zeros_like(middle)
    expected[..., 4 - half[0] : 5 + half[0], 4 - half[1] : 5 + half[1]] = kernel.to(DOUBLE)
    torch.testing.assert_close(physics.A(middle), expected)
