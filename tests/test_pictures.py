"""Pictures: what is on disk is what the solver sees, and what the solver found is what is on disk."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmidiff.app.errors import BadInput
from cmidiff.app.figures import Tile, side_by_side, std_map, std_tile
from cmidiff.app.pictures import (
    Picture,
    fitted_alpha,
    read_kernel,
    read_mask,
    read_picture,
    resized,
    to_image,
    write_picture,
)

RANDOM = np.random.default_rng(0)


def deep_png(path: Path, array: np.ndarray) -> Path:
    """A PNG of sixteen bits per channel, (H, W, C)."""
    height, width, channels = array.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_are_kept(tmp_path: Path, channels: int) -> None:
    array = RANDOM.integers(0, 65536, (5, 7, channels))
    picture = read_picture(deep_png(tmp_path / "deep.png", array))
    expected = torch.from_numpy(array / 65535).permute(2, 0, 1).to(torch.float32)
    colours = 1 if channels <= 2 else 3
    torch.testing.assert_close(picture.values, expected[:colours], rtol=0, atol=1e-7)
    if channels in (2, 4):
        assert picture.alpha is not None
        torch.testing.assert_close(picture.alpha, expected[colours:], rtol=0, atol=1e-7)
    else:
        assert picture.alpha is None


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_writing_and_reading_give_the_same_bytes(tmp_path: Path, mode: str) -> None:
    array = RANDOM.integers(0, 256, (6, 5, len(mode)), dtype=np.uint8)
    source = tmp_path / "source.png"
    Image.fromarray(array.squeeze(), mode=None).save(source)
    picture = read_picture(source)
    write_picture(tmp_path / "copy.png", picture.values, picture.alpha)
    with Image.open(tmp_path / "copy.png") as copy:
        np.testing.assert_array_equal(np.asarray(copy).reshape(array.shape), array)


def test_orientation_is_applied(tmp_path: Path) -> None:
    array = RANDOM.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    shown = np.rot90(array, k=-1).transpose(2, 0, 1) / 255
    torch.testing.assert_close(read_picture(tmp_path / "turned.png").values, torch.tensor(shown.copy()).float())


def test_palettes_and_black_and_white_are_read(tmp_path: Path) -> None:
    colours = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8))
    colours.quantize(2).save(tmp_path / "palette.png")
    values = read_picture(tmp_path / "palette.png").values
    torch.testing.assert_close(values[:, 0], torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    torch.testing.assert_close(read_picture(tmp_path / "bits.png").values, torch.tensor([[[1.0, 0.0]]]))


def test_unusable_files_say_what_is_wrong(tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    with pytest.raises(BadInput, match=r"cannot read .*notes\.png as a picture: give a sound PNG"):
        read_picture(text)
    with pytest.raises(BadInput, match="no such file"):
        read_picture(tmp_path / "absent.png")
    with pytest.raises(BadInput, match="is a folder"):
        read_picture(tmp_path)
    whole = deep_png(tmp_path / "deep.png", RANDOM.integers(0, 65536, (9, 9, 3)))
    whole.write_bytes(whole.read_bytes()[:60])
    with pytest.raises(BadInput, match="cannot read"):
        read_picture(whole)
    array = np.ones((3, 3), dtype=np.float32)
    array[1, 1] = np.nan
    Image.fromarray(array).save(tmp_path / "nan.tiff")
    with pytest.raises(BadInput, match="not finite"):
        read_picture(tmp_path / "nan.tiff")


def test_a_resized_picture_is_the_centre() -> None:
    ramp = torch.arange(12.0).expand(1, 6, 12) / 12
    same = resized(Picture(ramp), (6, 6)).values
    torch.testing.assert_close(same, ramp[..., 3:9])
    half = resized(Picture(ramp), (6, 3)).values
    torch.testing.assert_close(half[0, 1, 2:-2], ramp[0, 0].reshape(6, 2).mean(1)[2:-2], rtol=0, atol=1e-3)


def test_masks_are_zeros_and_ones_of_the_right_size(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[255, 200], [40, 0]], dtype=np.uint8)).save(path)
    torch.testing.assert_close(read_mask(path, 2, 2), torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]]))
    with pytest.raises(BadInput, match=r"the mask .* is 2x2 but the picture is 3x2"):
        read_mask(path, 2, 3)
    Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(path)
    with pytest.raises(BadInput, match="hides every pixel"):
        read_mask(path, 2, 2)


def test_kernels_sum_to_one(tmp_path: Path) -> None:
    path = tmp_path / "kernel.png"
    Image.fromarray(np.array([[0, 60, 0], [60, 120, 60], [0, 60, 0]], dtype=np.uint8)).save(path)
    kernel = read_kernel(path, 8, 8)
    torch.testing.assert_close(kernel, torch.tensor([[0, 1, 0], [1, 2, 1], [0, 1, 0]]) / 6)
    with pytest.raises(BadInput, match="larger than the picture"):
        read_kernel(path, 2, 8)


def test_transparency_follows_the_size() -> None:
    alpha = torch.full((1, 2, 2), 0.5)
    assert fitted_alpha(None, 4, 4) is None
    assert fitted_alpha(alpha, 2, 2) is alpha
    torch.testing.assert_close(fitted_alpha(alpha, 4, 4), torch.full((1, 4, 4), 0.5))


def test_values_out_of_range_are_clipped_on_writing() -> None:
    image = to_image(torch.tensor([[[-1.0, 0.5, 2.0]]]))
    assert list(np.asarray(image).ravel()) == [0, 128, 255]


def test_small_pictures_are_enlarged_by_a_whole_factor() -> None:
    values = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    tile = Tile(to_image(values), "title", "note")
    sheet = np.asarray(side_by_side([tile] * 7))
    pixels = np.asarray(tile.image).repeat(4, 0).repeat(4, 1)
    rows, columns = np.nonzero((sheet == pixels[0, 0]).all(-1))
    found = [
        (top, left)
        for top, left in zip(rows, columns, strict=True)
        if np.array_equal(sheet[top : top + 256, left : left + 256], pixels)
    ]
    assert len(found) == 7
    assert len({top for top, _ in found}) == 2


def test_the_map_shows_the_deviation_over_channels() -> None:
    std = torch.zeros(3, 4, 4)
    std[:, 1, 2] = torch.tensor([0.1, 0.2, 0.2])
    image, top = std_tile(std)
    assert top == pytest.approx((0.09 / 3) ** 0.5)
    brightness = np.asarray(image).sum(-1)
    assert np.unravel_index(brightness.argmax(), brightness.shape) == (1, 2)
    assert std_map(std).width > 256
    assert std_tile(torch.zeros(1, 4, 4))[1] == 0
