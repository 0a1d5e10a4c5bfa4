"""JPEG: the tables of files and of pixels, the cells of the coefficients, and restoration with a denoiser."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cmidiff.physics import (
    Quantisation,
    estimate_jpeg_noise,
    estimate_noise,
    find_tables,
    jpeg_noise_std,
    jpeg_quality,
    read_tables,
    restore_jpeg,
    tables_of,
)

PLANE = Path(__file__).resolve().parent.parent / "cmidiff" / "assets" / "plane.png"
SAMPLINGS = {(1, 1): 0, (1, 2): 1, (2, 2): 2}  # Pillow's numbers


def photograph() -> Tensor:
    """Values in [0, 1], (1, 3, 96, 96): noise of the statistics of a photograph, smooth and textured parts."""
    with Image.open(PLANE) as opened:
        image = opened.convert("RGB").resize((96, 96), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].double() / 255


def compress(x: Tensor, quality: int, sampling: tuple[int, int] = (2, 2)) -> tuple[Tensor, io.BytesIO]:
    """The decoded pixels, and the file."""
    pixels = (x[0] * 255).round().clamp(0, 255).byte()
    image = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=SAMPLINGS[sampling])
    file.seek(0)
    with Image.open(file) as opened:
        decoded = torch.from_numpy(np.asarray(opened).copy()).double() / 255
    file.seek(0)
    return (decoded[None, None] if decoded.ndim == 2 else decoded.permute(2, 0, 1)[None]), file


def psnr(x: Tensor, truth: Tensor) -> float:
    return float(-10 * (x - truth).square().mean().log10())


@pytest.mark.parametrize("quality", [5, 15, 30, 50, 75, 90, 100])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_a_file_says_its_quality_and_its_sampling(quality: int, sampling: tuple[int, int], tmp_path: Path) -> None:
    _, file = compress(photograph(), quality, sampling)
    path = tmp_path / "image.jpg"
    path.write_bytes(file.read())
    tables, standard = read_tables(path), tables_of(quality, sampling=sampling)
    assert tables is not None
    assert tables.chroma is not None
    assert standard.chroma is not None
    assert torch.equal(tables.luma, standard.luma)
    assert torch.equal(tables.chroma, standard.chroma)
    assert tables.sampling == sampling
    assert jpeg_quality(path) == jpeg_quality(tables) == quality


def test_files_without_known_tables(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    with Image.open(PLANE) as opened:
        opened.save(path)
        opened.convert("CMYK").save(tmp_path / "image.jpg")
    assert read_tables(path) is None
    assert jpeg_quality(path) is None
    assert read_tables(tmp_path / "image.jpg") is None
    ink = read_tables(tmp_path / "image.jpg", converted=True)
    assert ink is not None
    assert torch.equal(ink.luma, tables_of(75).luma), "Pillow's default quality"
    with pytest.raises(ValueError, match="must lie in 1 to 100; got 0"):
        tables_of(0)


@pytest.mark.parametrize("crop", [(0, 0), (3, 6)], ids=str)
@pytest.mark.parametrize("sampling", [(1, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("quality", [10, 30, 50, 85])
def test_pixels_say_their_quality_and_grid(quality: int, sampling: tuple[int, int], crop: tuple[int, int]) -> None:
    y, _ = compress(photograph(), quality, sampling)
    found = find_tables(y[0, :, crop[0] :, crop[1] :])
    assert found is not None
    assert torch.equal(found.luma, tables_of(quality).luma)
    assert [(n + c) % 8 for n, c in zip(found.offset, crop, strict=True)] == [0, 0]
    if crop == (0, 0) and quality in (30, 50):
        assert found.sampling == sampling


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_pixels_that_were_never_compressed(noise: float) -> None:
    x = photograph()
    x = x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    x = (x * 255).round().clamp(0, 255) / 255
    assert find_tables(x[0]) is None
    assert find_tables(x[0, :1]) is None
    assert jpeg_quality(torch.full((3, 64, 64), 0.5)) is None


def test_gray_images_have_cells_too() -> None:
    x = photograph().mean(1, keepdim=True)
    y, file = compress(x, 20)
    tables = read_tables(Image.open(file))
    assert tables is not None
    assert tables.chroma is None
    assert torch.equal(tables.luma, tables_of(20).luma)
    assert Quantisation(y, tables).consistent
    assert find_tables(y[0]) is not None


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("size", [(96, 96), (83, 61)], ids=str)
def test_the_truth_lies_in_the_cells(sampling: tuple[int, int], size: tuple[int, int]) -> None:
    x = photograph()[..., : size[0], : size[1]]
    y, file = compress(x, 20, sampling)
    tables = read_tables(Image.open(file))
    assert tables is not None
    cells = Quantisation(y, tables)
    assert cells.consistent
    moved = (cells.project(x, 1.0) - x).abs()
    assert float(moved.mean()) < 0.5 / 255  # what the encoder rounds before the transform
    assert float((cells.project(y, 1.0) - y).abs().max()) < 1 / 255


@pytest.mark.parametrize("sampling", [(1, 2), (2, 2)], ids=str)
@pytest.mark.parametrize("size", [(96, 96), (83, 61)], ids=str)
@pytest.mark.parametrize("quality", [85, 95])
def test_chroma_is_that_before_decoders_interpolate_it(
    sampling: tuple[int, int], size: tuple[int, int], quality: int
) -> None:
    x = photograph()[..., : size[0], : size[1]]
    y, file = compress(x, quality, sampling)
    tables = read_tables(Image.open(file))
    assert tables is not None
    cells = Quantisation(y, tables)
    assert cells.known == [True, True]
    down, across = sampling
    rows, columns = (s.stop for s in cells.region)
    image = np.asarray(Image.fromarray(((x[0] * 255).round().permute(1, 2, 0).byte()).numpy()).convert("YCbCr"))
    planes = torch.from_numpy(image[:rows, :columns, 1:].copy()).double().reshape(rows // down, down, -1, across, 2)
    blocks = planes.mean((1, 3)).permute(2, 0, 1).reshape(2, rows // down // 8, 8, -1, 8).transpose(2, 3)
    k = torch.arange(8, dtype=torch.float64)
    cosine = torch.cos(torch.pi * (2 * k[None] + 1) * k[:, None] / 16) / 2
    cosine[0] /= 2**0.5
    true = cosine @ ((blocks - 128) @ cosine.T) / 255
    outside = (true - cells.centres[1][0]).abs() > 0.5 * cells.steps[1] + 1 / 255  # 1: encoders round pixels
    assert float(outside.double().mean()) < 0.02


def test_a_projection_meets_the_cells_and_moves_as_little_as_it_can() -> None:
    y, _ = compress(photograph(), 30)
    cells = Quantisation(y, tables_of(30))
    far = torch.rand(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)
    once = cells.project(far, 1.0)
    torch.testing.assert_close(cells.project(once, 1.0), once)
    torch.testing.assert_close(cells.project(once, 1.2), once)  # a wider cell holds it already
    inside = cells.project(y, 0.5)
    torch.testing.assert_close(cells.project(inside, 1.0), inside)


def smooth(x: Tensor, sigma: float) -> Tensor:
    """A denoiser that needs no weights: a soft threshold on the wavelets of two pixels, at four shifts."""
    total = torch.zeros_like(x)
    for shift in ((0, 0), (0, 1), (1, 0), (1, 1)):
        rolled = x.roll(shift, (-2, -1))
        blocks = torch.nn.functional.pixel_unshuffle(rolled, 2).unflatten(1, (-1, 4))
        haar = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).to(x) / 2
        values = torch.einsum("ij,bcjhw->bcihw", haar, blocks)
        details = values[:, :, 1:]
        values[:, :, 1:] = details.sign() * (details.abs() - sigma).clamp_min(0)
        blocks = torch.einsum("ij,bcihw->bcjhw", haar, values)
        total += torch.nn.functional.pixel_shuffle(blocks.flatten(1, 2), 2).roll([-s for s in shift], (-2, -1))
    return total / 4


def blocking(x: Tensor) -> float:
    """Mean difference of neighbours across the borders of blocks, over that within blocks."""
    step = (x[..., 1:] - x[..., :-1]).abs().mean((0, 1, 2))
    across = step[7::8].mean()
    return float(across / (step.sum() - step[7::8].sum()) * (len(step) - len(step[7::8])))


@pytest.mark.parametrize("quality", [15, 30, 50])
def test_restoration_gains_more_than_the_denoiser_alone(quality: int) -> None:
    x = photograph()
    y, file = compress(x, quality)
    tables = read_tables(Image.open(file))
    assert tables is not None
    restored = restore_jpeg(y, smooth, tables)
    level = jpeg_noise_std(tables)
    alone = max(psnr(smooth(y, factor * level), x) for factor in (0.25, 0.5, 1.0))
    assert psnr(restored, x) > psnr(y, x) + 0.2
    assert psnr(restored, x) > alone
    if quality < 50:
        assert abs(blocking(restored) - blocking(x)) < 0.5 * abs(blocking(y) - blocking(x))


def test_an_image_that_the_tables_do_not_describe_is_denoised_once() -> None:
    y, _ = compress(photograph(), 30)
    resized = torch.nn.functional.interpolate(y, size=(80, 80), mode="bilinear")
    assert not Quantisation(resized, tables_of(30)).consistent
    level = jpeg_noise_std(tables_of(30))
    assert torch.equal(restore_jpeg(resized, smooth, tables_of(30)), smooth(resized, level).clamp(0, 1))
    small = y[..., :7, :]  # smaller than a block
    assert restore_jpeg(torch.nn.functional.pad(small, (0, 0, 0, 1)), smooth, tables_of(30)).isfinite().all()


def test_the_level_falls_with_the_quality() -> None:
    levels = [255 * jpeg_noise_std(tables_of(q)) for q in (15, 30, 50, 75, 90)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == pytest.approx(16, abs=1)
    assert levels[2] == pytest.approx(8, abs=1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [30, 50, 75, 90])
@pytest.mark.parametrize("sigma", [10, 20, 40])
def test_the_noise_before_compression_is_found(sigma: float, quality: int, channels: int) -> None:
    ramp = torch.linspace(0.3, 0.7, 128, dtype=torch.float64)
    smooth = torch.stack([ramp.expand(128, 128), ramp[:, None].expand(128, 128), 1 - ramp.expand(128, 128)])[:channels]
    noise = torch.randn(smooth.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    decoded, file = compress((smooth + sigma / 255 * noise)[None], quality)
    tables = read_tables(Image.open(file))
    assert tables is not None
    found = 255 * estimate_jpeg_noise(decoded[0], tables)
    assert found == pytest.approx(sigma, rel=0.2)
    if quality < 90 and channels == 3:
        assert abs(255 * float(estimate_noise(decoded[0])) - sigma) > abs(found - sigma)


@pytest.mark.parametrize("quality", [50, 75, 90])
def test_a_photographs_noise_before_compression(quality: int) -> None:
    with Image.open(PLANE) as opened:
        x = torch.from_numpy(np.asarray(opened.convert("RGB")).copy()).permute(2, 0, 1).double() / 255
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for sigma, off in ((0, 8.0), (10, 3.5), (20, 4.0)):
        decoded, file = compress((x + sigma / 255 * noise)[None], quality)
        tables = read_tables(Image.open(file))
        assert tables is not None
        assert 255 * estimate_jpeg_noise(decoded[0], tables) == pytest.approx(sigma, abs=off)


def test_noise_shared_by_all_channels_is_that_of_luma_and_other_tables_are_refused() -> None:
    gray = 0.5 + 0.08 * torch.randn(1, 96, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    decoded, file = compress(gray.expand(1, 3, 96, 96), 75)
    tables = read_tables(Image.open(file))
    assert tables is not None
    assert estimate_jpeg_noise(decoded[0], tables) == pytest.approx(0.08, rel=0.1)
    with pytest.raises(ValueError, match="the tables do not describe the image"):
        estimate_jpeg_noise(decoded[0, :, 1:, 3:], tables)


@pytest.mark.parametrize("sampling", [(1, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("quality", [90, 95])
def test_texture_shared_by_all_channels_of_a_colour_image_is_no_noise(sampling: tuple[int, int], quality: int) -> None:
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0.3, 0.7, 192, dtype=torch.float64)
    colours = torch.stack([ramp + 0 * ramp[:, None], ramp[:, None] + 0 * ramp, 0.5 + 0 * ramp[:, None] * ramp])
    texture = 0.06 * torch.randn(1, 192, 192, generator=generator, dtype=torch.float64)
    noise = torch.randn(3, 192, 192, generator=generator, dtype=torch.float64)
    for sigma in (0.0, 0.04):
        decoded, file = compress((colours + texture + sigma * noise)[None], quality, sampling)
        tables = read_tables(Image.open(file))
        assert tables is not None
        found = estimate_jpeg_noise(decoded[0], tables)
        assert found < 0.02 if sigma == 0 else found == pytest.approx(sigma, rel=0.15)
