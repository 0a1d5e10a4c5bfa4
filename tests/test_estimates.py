"""The noise level and the blur width of an image, estimated from the image alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cmidiff.app.photograph import read_problem
from cmidiff.images import read_image, write_image
from cmidiff.physics import canvas_shape, estimate_blur_width, estimate_noise, from_kernel, measure, parse_kernel

ASSETS = Path(__file__).resolve().parent.parent / "cmidiff" / "assets"

PLANE = Path(__file__).resolve().parent.parent / "cmidiff" / "assets" / "plane.png"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def photograph() -> Tensor:
    with Image.open(PLANE) as opened:
        image = opened.convert("RGB")
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).double() / 255


def power_law(side: int, seed: int) -> Tensor:
    """Gaussian images with the power spectrum of photographs, ``1 / f^2.5``, (3, side, side) about 0.5."""
    frequency = torch.fft.fftfreq(side, dtype=torch.float64)
    radius = (frequency[:, None] ** 2 + frequency**2).sqrt().clamp_min(1 / side)
    image = torch.fft.ifft2(torch.fft.fft2(normal(3, side, side, seed=seed)) * radius**-1.25).real
    return 0.5 + 0.15 * image / image.std()


@pytest.mark.parametrize("sigma", [5, 15, 25, 50])
@pytest.mark.parametrize("channels", [1, 3])
def test_noise_on_a_smooth_image_is_found(sigma: float, channels: int) -> None:
    ramp = torch.linspace(0.3, 0.7, 96, dtype=torch.float64).expand(channels, 96, 96)
    estimate = 255 * float(estimate_noise(ramp + sigma / 255 * normal(channels, 96, 96)))
    assert estimate == pytest.approx(sigma, rel=0.08)


@pytest.mark.parametrize("sigma", [5, 10, 25])
def test_texture_is_not_taken_for_noise(sigma: float) -> None:
    x = photograph()
    y = x + sigma / 255 * normal(*x.shape)
    first, second = y[:, ::2, ::2] - y[:, 1::2, ::2], y[:, ::2, 1::2] - y[:, 1::2, 1::2]
    mad = 255 * float(((first - second) / 2).abs().median()) / 0.6745
    estimate = 255 * float(estimate_noise(y.clamp(0, 1)))
    assert abs(estimate - sigma) < max(0.15 * sigma, 1)
    assert estimate < mad + 0.1 * sigma


def test_values_that_are_cut_off_are_allowed_for() -> None:
    ramp = torch.linspace(0.0, 1.0, 128, dtype=torch.float64).expand(3, 128, 128)
    y = ramp + 0.1 * normal(3, 128, 128)
    assert float(estimate_noise(y.clamp(0, 1))) == pytest.approx(0.1, rel=0.1)
    assert float(y.clamp(0, 1).sub(ramp).std()) < 0.095  # what is not allowed for
    assert float(estimate_noise(y, value_range=None)) == pytest.approx(0.1, rel=0.1)


def test_the_noise_is_in_the_units_of_the_image_and_each_image_has_its_own() -> None:
    x = 0.5 + torch.stack([0.02 * normal(3, 48, 48, seed=1), 0.1 * normal(3, 48, 48, seed=2)])
    together = estimate_noise(x)
    assert together.shape == (2,)
    torch.testing.assert_close(together[1], estimate_noise(x[1]))
    torch.testing.assert_close(estimate_noise(255 * x, value_range=(0, 255)), 255 * together, rtol=1e-3, atol=0)
    assert float(estimate_noise(torch.full((3, 32, 32), 0.3))) == 0
    assert float(estimate_noise(torch.ones(1, 32, 32))) == 0


@pytest.mark.parametrize("function", [estimate_noise, lambda y: estimate_blur_width(y, 0.01)])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 64, 64, dtype=torch.uint8), r"floats.*uint8"),
        (torch.zeros(64, 64), r"\(C, H, W\)"),
        (torch.zeros(3, 8, 64), "at least"),
        (torch.full((3, 64, 64), float("nan")), "finite"),
    ],
)
def test_images_that_are_not_usable(function: object, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(x)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("width", [0.8, 1.5, 2.5, 4.0])
@pytest.mark.parametrize("noise", [0.002, 0.01])
def test_the_width_of_a_blur_is_found(width: float, noise: float) -> None:
    kernel = parse_kernel(f"gaussian:{width}")
    canvas = canvas_shape(kernel, (3, 128, 128))
    blur = from_kernel(kernel, canvas, padding="valid", dtype=torch.float64)
    x = torch.stack([power_law(192, seed)[:, : canvas[1], : canvas[2]] for seed in (0, 1)])
    y = blur.A(x)
    found = estimate_blur_width(y + noise * normal(*y.shape, seed=5), noise)
    assert float((found / width - 1).abs().max()) < 0.2


def test_a_sharp_image_has_no_width() -> None:
    x = power_law(128, 0) + 0.005 * normal(3, 128, 128, seed=3)
    assert float(estimate_blur_width(x, 0.005)) < 0.5
    assert float(estimate_blur_width(photograph(), 0.004)) < 0.8
    with pytest.raises(ValueError, match="largest must be"):
        estimate_blur_width(x, 0.01, largest=0.2)
    with pytest.raises(ValueError, match="noise_std must be"):
        estimate_blur_width(x, -1.0)


def test_the_width_of_a_photographs_blur_is_found_and_a_stated_one_that_is_too_wide_is_doubted(tmp_path: Path) -> None:
    kernel = parse_kernel("gaussian:2")
    canvas = canvas_shape(kernel, (3, 128, 128))
    blurred = from_kernel(kernel, canvas, padding="valid", noise_std=0.005, dtype=torch.float64)
    y = measure(power_law(canvas[1], 3)[None], blurred, seed=0)[0]
    write_image(tmp_path / "b.png", y.float(), bits=16)
    found = [
        read_problem(tmp_path / "b.png", kernel=Path("gaussian:auto")),
        read_problem(tmp_path / "b.png", "deblur-gaussian"),
    ]
    width = float(found[0].assumed[1].split("gaussian:")[1].split()[0])
    assert found[0].assumed == found[1].assumed
    assert 1.6 < width < 2.4
    assert found[0].result_shape == (3, 128, 128)
    assert found[0].shape[1] > 128
    fits, wide = (read_problem(tmp_path / "b.png", kernel=Path(f"gaussian:{w}")) for w in (width, 1.3 * width))
    assert len(fits.assumed) == 1
    assert "less blurred than stated" in wide.assumed[1]
    assert wide.noise_std == pytest.approx(4 * fits.noise_std, rel=0.05)
    stated = read_problem(tmp_path / "b.png", kernel=Path("gaussian:4"), noise_std=0.005)
    assert stated.noise_std == 0.005, "what is stated is not replaced"
    assert not stated.assumed, "nothing is said to be assumed"
    assert not stated.notes


def test_no_noise_is_that_of_rounding_or_what_a_blurred_image_shows(tmp_path: Path) -> None:
    kernel = Path("gaussian:2")
    canvas = canvas_shape(parse_kernel(str(kernel)), (3, 96, 96))
    exact = from_kernel(parse_kernel(str(kernel)), canvas, padding="valid", noise_std=0.0, dtype=torch.float64)
    clean = measure(power_law(canvas[1], 3)[None].clamp(0, 1), exact, seed=0)[0]
    for bits, rounding in ((8, 1.13e-3), (16, 4.4e-6)):
        write_image(tmp_path / "clean.png", clean.float(), bits=bits)
        for stated in (0.0, 0.5 * rounding):
            free = read_problem(tmp_path / "clean.png", kernel=kernel, noise_std=stated)
            assert free.noise_std == rounding
            assert f"rounding to {bits} bits" in free.assumed[0]
    write_image(tmp_path / "noisy.png", (clean + 0.02 * normal(*clean.shape)).float())
    shown = float(estimate_noise(read_image(tmp_path / "noisy.png").values))
    for stated in (0.0, 1e-4):
        noisy = read_problem(tmp_path / "noisy.png", kernel=kernel, noise_std=stated)
        assert noisy.noise_std == pytest.approx(shown, rel=0.01)
        assert "estimated from the image: sharpening would amplify it" in noisy.assumed[0]
    doubted = read_problem(tmp_path / "noisy.png", kernel=kernel, noise_std=0.005)
    assert doubted.noise_std == 0.005
    assert "noisier than stated" in doubted.notes[-1]


def test_the_benchmark_of_estimates_reads_images_and_finds_their_noise(
    load_benchmark: Callable[[str], Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tool = load_benchmark("estimates")
    monkeypatch.setattr(tool, "print_borders", lambda batch: None)  # it restores 72 frames
    with Image.open(ASSETS / "plane.png") as file:
        file.convert("RGB").resize((128, 128)).save(tmp_path / "a-plane.png")
    tool.main(tmp_path, size=128, kind="a-")
    lines = capsys.readouterr().out.splitlines()
    errors = {line.split()[0]: [float(word) for word in line.split()[1:]] for line in lines[1 : 1 + len(tool.LEVELS)]}
    assert abs(errors["10"][2]) < 1  # not cut off: within 1/255
    assert len(lines) == 2 + len(tool.LEVELS) + len(tool.WIDTHS) * len(tool.NOISES)
